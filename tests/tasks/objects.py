"""The smallest model with the face of the models of single images: segments by brightness, no convolution."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from slotzoo.models.objects import ObjectsOutput


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    resolution: int = 8
    channels: int = 3
    num_slots: int = 3
    low: float = -1.0
    high: float = 1.0


class ToyDraws(NamedTuple):
    slots: jax.Array


class Toy(eqx.Module):
    """Slot k paints grey `centres[k]` where that is nearest to the pixel; `count` is what it says of their number."""

    centres: jax.Array
    config: ToyConfig = eqx.field(static=True)
    count: int | None = eqx.field(static=True)

    def __init__(self, config: ToyConfig = ToyConfig(), count: int | None = None):
        self.centres = jnp.linspace(config.low, config.high, config.num_slots)
        self.config, self.count = config, count

    def draw(self, key, *, slots=None):
        return ToyDraws(jax.random.normal(key, (slots or self.config.num_slots,)))

    def explain(self, image, *, draws=None, key=None, slots=None, iterations=None):
        del draws, key, iterations
        c = self.config
        centres = self.centres if slots is None else jnp.linspace(c.low, c.high, slots)
        distance = jnp.square(image.mean(-1)[None] - centres[:, None, None])
        masks = jax.nn.softmax(-50.0 * distance, axis=0)
        pictures = jnp.broadcast_to(centres[:, None, None, None], (len(centres), *image.shape))
        made = jnp.sum(masks[..., None] * pictures, axis=0)
        counted = {} if self.count is None else {"count": jnp.float32(self.count)}
        return ObjectsOutput(made, masks, pictures, centres[:, None], {"attention": masks, **counted})

    def loss(self, image, *, draws=None, key=None, step):
        del step
        noise = (self.draw(key) if draws is None else draws).slots
        mse = jnp.mean(jnp.square(self.explain(image).reconstruction - image))
        return mse + 0.0 * jnp.sum(noise), {"mse": mse}
