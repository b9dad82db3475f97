"""Transpositions that stay what they are."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped


def turned(x: Shaped[Array, "batch row column"]) -> Shaped[Array, "batch column row"]:
    """Every matrix transposed, behind a barrier: XLA's CPU compiler would put the transposition into the product that
    reads it, and take a slow program for that.
    """
    return lax.optimization_barrier(jnp.swapaxes(x, 1, 2))
