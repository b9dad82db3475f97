"""Transpositions that stay what they are."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Shaped

from slotzoo.ops.device import compiling_for_gpu


def turned(x: Shaped[Array, "*batch row column"]) -> Shaped[Array, "*batch column row"]:
    """Every matrix transposed, between two barriers; for a GPU transposed and no more.

    XLA's CPU compiler would put the transposition into the product that reads it or made it, and take a slow program
    for that; or what makes `x` into the transposition, and compute it anew in the other order.
    """
    if compiling_for_gpu():
        return jnp.swapaxes(x, -1, -2)
    return lax.optimization_barrier(jnp.swapaxes(lax.optimization_barrier(x), -1, -2))
