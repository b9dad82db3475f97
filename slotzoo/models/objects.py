"""What the models of objects in images share."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float


class ObjectsOutput(NamedTuple):
    """An image taken apart into slots, in the value range of its model (`config.low` to `config.high`)."""

    reconstruction: Float[Array, "height width channel"]
    # Each pixel's share of each slot: sums to 1, or less where some is left.
    masks: Float[Array, "slot height width"]
    pictures: Float[Array, "slot height width channel"]  # what each slot paints, before its mask
    slots: Float[Array, "slot dim"]
    extra: dict[str, Any]  # arrays of this model only, by name
