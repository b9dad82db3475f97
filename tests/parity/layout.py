"""Images with channels first, as PyTorch has them, and last, as ours."""

import jax
import jax.numpy as jnp
import numpy as np


def last(images: np.ndarray) -> jax.Array:
    """Channels last."""
    return jnp.moveaxis(jnp.asarray(images), -3, -1)


def first(images: jax.Array) -> jax.Array:
    """Channels first."""
    return jnp.moveaxis(images, -1, -3)
