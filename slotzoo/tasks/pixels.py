"""Between the bytes of a picture and the values that models take."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_float(frame: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 pixels as float32 in [-1, 1]."""
    return frame.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(frame: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Pixels in [-1, 1], clipped and rounded to uint8 (the seed truncates, which darkens by half a level)."""
    return jnp.round((jnp.clip(frame.astype(jnp.float32), -1, 1) + 1) * 127.5).astype(jnp.uint8)


def to_range(images: UInt8[Array, "*shape"], config: Any) -> Float[Array, "*shape"]:
    """uint8 pixels as float32 from `config.low` to `config.high` of a model."""
    return images.astype(jnp.float32) * ((config.high - config.low) / 255) + config.low
