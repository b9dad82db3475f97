"""What the suite `images` measures of GNM: a training step at the published size, and pasting glimpses.

The seed's figures (torch eager, 2 cores, four images of 128 pixels): 0.200 s for a training step as it runs, with the
prior decoded for its log at every step, 0.153 s without, 0.091 and 0.057 s for the forward pass. The published paste
samples four neighbours of every pixel by index, whose gradient scatters, once for each of four stacks of channels.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from experiments.benchmarks import timing
from slotzoo.models.gnm import GNM
from slotzoo.models.gnm_config import GNMConfig
from slotzoo.nn.spatial_transform import paste


def programs(batch: int = 4, config: GNMConfig | None = None) -> dict[str, timing.Program]:
    """Forward pass and training step (RMSprop after clipping, as published), by name."""
    config = config or GNMConfig()
    model = GNM(config, key=jax.random.key(0))
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(1e-4, decay=0.99, eps=1e-8))
    size = (batch, config.resolution, config.resolution, config.in_channels)
    images = jax.random.uniform(jax.random.key(1), size)
    key, at = jax.random.key(2), jnp.int32(1000)

    def loss(parameters: Any, images: Array, key: Array, at: Array) -> Array:
        model = eqx.combine(parameters, static)
        one = lambda image, key: model.loss(image, key=key, step=at)[0]
        return jax.vmap(one)(images, jax.random.split(key, batch)).mean()

    def train(parameters: Any, state: Any, images: Array, key: Array, at: Array):
        value, grads = jax.value_and_grad(loss)(parameters, images, key, at)
        updates, state = optimizer.update(grads, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return {
        "gnm, forward": (loss, (parameters, images, key, at)),
        "gnm, train step": (train, (parameters, optimizer.init(parameters), images, key, at)),
    }


def pastes(cells: int = 64, glimpse: int = 64, size: int = 128) -> dict[str, timing.Program]:
    """Value and gradient of four channels pasted as two matrix products, and by index."""
    keys = jax.random.split(jax.random.key(0), 3)
    glimpses = jax.random.uniform(keys[0], (cells, 4, glimpse, glimpse))
    scale = jax.random.uniform(keys[1], (cells, 2), minval=0.1, maxval=0.3)
    box = jnp.concatenate([scale, jax.random.uniform(keys[2], (cells, 2), minval=-1.0)], -1)

    def gradient(function: Any) -> Any:
        total = lambda glimpses, box: jnp.square(function(glimpses, box, height=size, width=size)).sum()
        return jax.value_and_grad(total, argnums=(0, 1))

    return {
        "paste, products": (gradient(paste), (glimpses, box)),
        "paste, by index": (gradient(pasted_by_index), (glimpses, box)),
    }


def pasted_by_index(glimpse: Array, box: Array, *, height: int, width: int) -> Array:
    """`slotzoo.nn.spatial_transform.paste`, from four neighbours."""
    rows, columns = glimpse.shape[-2:]

    def along(out: int, inner: int, scale: Array, shift: Array) -> Array:
        centre = (2 * jnp.arange(out, dtype=jnp.float32) + 1) / out - 1
        return (((centre[None] - shift[:, None]) / scale[:, None] + 1) * inner - 1) / 2

    y, x = along(height, rows, box[:, 1], box[:, 3]), along(width, columns, box[:, 0], box[:, 2])

    def one(glimpse: Array, y: Array, x: Array) -> Array:
        total = jnp.zeros((glimpse.shape[0], height, width))
        low_y, low_x = jnp.floor(y), jnp.floor(x)
        for i in (0, 1):
            for j in (0, 1):
                weight_y, weight_x = 1 - jnp.abs(y - low_y - i), 1 - jnp.abs(x - low_x - j)
                at_y, at_x = (low_y + i).astype(jnp.int32), (low_x + j).astype(jnp.int32)
                inside = ((at_y >= 0) & (at_y < rows))[:, None] & ((at_x >= 0) & (at_x < columns))[None]
                found = glimpse[:, jnp.clip(at_y, 0, rows - 1)[:, None], jnp.clip(at_x, 0, columns - 1)[None]]
                total += found * (weight_y[:, None] * weight_x[None] * inside)[None]
        return total

    return jax.vmap(one)(glimpse, y, x)
