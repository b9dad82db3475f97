"""Which entries dropout keeps."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from slotzoo.ops.random_words import random_words


def keep_mask(key: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with probability `1 - rate`, to the nearest 1 / 65536.

    Sixteen bits for an entry, two entries from each word of `random_words`: a small part of the time of
    `jax.random.bernoulli` on a CPU, where dropout of attention weights would otherwise cost as much as they.
    """
    size = math.prod(shape)
    words = random_words(key, -(-size // 2))
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size].reshape(shape)
    # As 32 bits, so that the threshold of rate 0 fits.
    return halves.astype(jnp.uint32) < jnp.uint32(round((1 - rate) * 65536))
