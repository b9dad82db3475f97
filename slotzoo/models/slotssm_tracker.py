"""OC-SlotSSM as a model that follows objects: the face of SAVi and STATM for a SlotSSM that paints slot by slot."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.models.objects import TrackerConfig, TrackOutput
from slotzoo.models.slotssm import SlotSSM, SlotSSMOutput, SlotSSMState


# What a model that is trained on a target predicts, in the words of the models that follow objects.
TARGETS = {"video": "rgb", "depth": "depth"}


class SlotSSMTracker(eqx.Module):
    """`SlotSSM` with the outputs of `slotzoo.models.objects.TrackOutput`.

    It has no parameters of its own. Slots find their objects by themselves, so there is nothing to tell them of the
    first frame. Takes one clip with values in [0, 1].
    """

    model: SlotSSM
    config: TrackerConfig = eqx.field(static=True)

    def __init__(self, model: SlotSSM):
        """**Raises** ConfigError for a model without a mask for every slot of every frame it is shown."""
        c = model.config
        if c.decoder != "broadcast" or c.decode != "every":
            raise ConfigError(
                f"SlotSSM: with decoder={c.decoder!r} and decode={c.decode!r} there is no mask of every slot in every "
                "frame to follow objects by; choose decoder='broadcast' and decode='every'."
            )
        if c.target not in TARGETS or c.resolution != c.out_resolution:
            raise ConfigError(
                f"SlotSSM: target={c.target!r}, resolution={c.resolution}, out_resolution={c.out_resolution}: objects "
                "are followed by a model that paints the frames it is shown, or their depth, at their size."
            )
        self.model = model
        self.config = TrackerConfig(
            height=c.resolution,
            width=c.resolution,
            num_slots=c.out_slots,
            targets=(TARGETS[c.target],),
            low=c.low,
            high=c.high,
            longest=c.max_frames if c.mixer == "attention" else None,
        )

    def init_state(
        self, conditions: Array | None = None, *, draws: Array | None = None, key: PRNGKeyArray | None = None
    ) -> SlotSSMState:
        """The state before the first frame. **Raises** ConfigError for conditions, of which it was built without."""
        del draws, key
        if conditions is not None:
            raise ConfigError("SlotSSM is told nothing of the first frame, and got conditions; leave them out.")
        return self.model.init_state()

    def __call__(
        self,
        video: Float[Array, "time height width channel"],
        conditions: Array | None = None,
        *,
        state: SlotSSMState | None = None,
        draws: Array | None = None,
        key: PRNGKeyArray | None = None,
    ) -> TrackOutput:
        """Take a clip apart; with a `state` it goes on from there."""
        state = self.init_state(conditions, draws=draws) if state is None else state
        return self._output(self.model(video, state=state, key=key))

    def step(
        self, frame: Float[Array, "height width channel"], state: SlotSSMState
    ) -> tuple[TrackOutput, SlotSSMState]:
        """One frame: the output of a call without its `time` axis, and the state to go on with."""
        out = self(frame[None], state=state)
        return out.first(), out.state

    def loss(
        self,
        batch: dict[str, Array],
        *,
        key: PRNGKeyArray | None = None,
        step: Int[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """That of the model."""
        return self.model.loss(batch, key=key, step=step)

    def _output(self, out: SlotSSMOutput) -> TrackOutput:
        made = out.outputs
        assert made.masks is not None and made.reconstruction is not None
        (target,) = self.config.targets
        return TrackOutput(
            out.slots, made.masks, {target: made.reconstruction}, self._attention(out), out.state
        )

    def _attention(self, out: SlotSSMOutput) -> Float[Array, "time slot token"] | None:
        """Of the last block that reads the frame, summed over heads, where slots compete for the tokens."""
        shares = next((shares for shares in reversed(out.attention) if shares is not None), None)
        if shares is None or self.model.config.cross != "inverted":
            return None
        summed = jnp.sum(shares, axis=1)
        return summed if summed.shape[1] == self.config.num_slots else None
