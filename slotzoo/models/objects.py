"""What the models of objects in images and in videos share."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Float


class ObjectsOutput(NamedTuple):
    """An image taken apart into slots, in the value range of its model (`config.low` to `config.high`)."""

    reconstruction: Float[Array, "height width channel"]
    # Each pixel's share of each slot: sums to 1, or less where some is left.
    masks: Float[Array, "slot height width"]
    pictures: Float[Array, "slot height width channel"]  # what each slot paints, before its mask
    slots: Float[Array, "slot dim"]
    extra: dict[str, Any]  # arrays of this model only, by name


class TrackOutput(NamedTuple):
    """A video taken apart into slots that follow its objects; predictions are in the value ranges of their targets.

    `step` gives the same for a single frame, without the leading `time` axis of every field but `state`.
    """

    slots: Float[Array, "*time slot dim"]  # after the frame was seen
    masks: Float[Array, "*time slot height width"]  # each pixel's share of each slot: sums to 1
    predictions: dict[str, Float[Array, "*time height width channel"]]  # by target: flow, rgb, depth
    # How the last step of the slots shared each token of the encoder among them: sums to 1 over slots.
    attention: Float[Array, "*time slot token"] | None
    state: Any  # to carry on with: of the model's own kind

    def first(self) -> "TrackOutput":
        """The first frame alone, without `time`, and the state as it is."""
        return jax.tree.map(lambda x: x[0], self._replace(state=None))._replace(state=self.state)


@dataclasses.dataclass(frozen=True)
class TrackerConfig:
    """What a tracking model without hints says of itself, where its own configuration has other words for it."""

    height: int
    width: int
    num_slots: int
    targets: tuple[str, ...]  # that are predicted: flow, rgb, depth
    low: float = 0.0  # of a black pixel
    high: float = 1.0  # of a white one
    conditioning: None = None
    # What the loss is of the squared errors of a clip: "mean" is over times and places, "each" over channels too.
    reduction: Literal["sum", "mean", "each"] = "each"
    longest: int | None = None  # frames that it can follow; None for any number
