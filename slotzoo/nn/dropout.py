"""Dropout as a function: on where a key is given."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.ops.dropout import keep_mask


def dropout(
    x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None, *, shared: bool = False
) -> Float[Array, "..."]:
    """Zero entries with probability `rate` and divide the others by `1 - rate`; `x` itself without a key.

    `shared`: the same entries all along the first axis.
    """
    if key is None or rate == 0:
        return x
    shape = (1, *x.shape[1:]) if shared else x.shape
    return jnp.where(keep_mask(key, rate, shape), x / (1 - rate), jnp.zeros_like(x))
