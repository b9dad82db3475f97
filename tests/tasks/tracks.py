"""The smallest model with the face of the models that follow objects: slots are brightnesses, no convolution."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from slotzoo.models.objects import TrackOutput


@dataclasses.dataclass(frozen=True)
class FollowerConfig:
    height: int = 8
    width: int = 8
    low: float = 0.0
    high: float = 1.0
    num_slots: int = 3
    conditioning: str | None = "boxes"
    background: float | None = 0.0
    targets: tuple[str, ...] = ("flow",)


class State(NamedTuple):
    slots: Any
    memory: Any


class Follower(eqx.Module):
    """Slot k owns grey `k / 2`; after `stamina` frames since its memory was emptied it mixes two slots up."""

    gain: jax.Array
    config: FollowerConfig = eqx.field(static=True)
    stamina: int = eqx.field(static=True)

    def __init__(self, config: FollowerConfig = FollowerConfig(), stamina: int = 10**6):
        self.gain, self.config, self.stamina = jnp.float32(1), config, stamina

    def conditions(self, clip):
        return (clip["mask"] if self.config.conditioning == "segmentation" else clip["boxes"])[0]

    def init_state(self, conditions=None, *, draws=None, key=None):
        assert (conditions is None) == (self.config.conditioning is None)
        del draws, key
        return State(jnp.linspace(0.0, 1.0, self.config.num_slots), jnp.int32(0))

    def __call__(self, video, conditions=None, *, state=None, draws=None, key=None):
        state = self.init_state(conditions, key=key) if state is None else state

        def frame(state, image):
            near = -50.0 * jnp.square(image.mean(-1)[None] - state.slots[:, None, None])
            masks = jax.nn.softmax(near, axis=0)
            tired = state.memory >= self.stamina
            masks = jnp.where(tired, masks[jnp.asarray([0, 2, 1])], masks)
            flow = self.gain * jnp.stack([image.mean(-1)] * 3, axis=-1)
            return State(state.slots, state.memory + 1), (state.slots[:, None], masks, flow)

        state, (slots, masks, flow) = jax.lax.scan(frame, state, video)
        made = {"flow": flow, "depth": flow[..., :1], "rgb": flow}
        predictions = {name: made[name] for name in self.config.targets}
        attention = masks.reshape(*masks.shape[:2], -1)
        return TrackOutput(slots, masks, predictions, attention, state)

    def loss(self, batch, *, draws=None, key=None, step=None):
        out = self(batch["video"], self.conditions(batch) if self.config.conditioning else None)
        terms = {name: jnp.sum(jnp.square(out.predictions[name] - batch[name])) for name in self.config.targets}
        return sum(terms.values(), jnp.float32(0)), terms


class Clock(eqx.Module):
    """What a model with a memory has for a predictor."""

    def init_memory(self, num_slots):
        return jnp.int32(0)


class Forgetful(Follower):
    """With a memory that the authors' evaluation empties between slices."""

    predictor: Clock

    def __init__(self, config: FollowerConfig = FollowerConfig(), stamina: int = 10**6):
        super().__init__(config, stamina)
        self.predictor = Clock()
