"""Random bits in bulk, for noise and dropout: Threefry as plain arithmetic, which XLA compiles into one loop."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt32


# Of Threefry 2x32, by the number of the round modulo 8.
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
# `jax.random` does 20. Every bit reaches every other after 8 (Random123's search for these rotations), and the paper
# has 13 pass BigCrush for the sister of 64-bit words: enough for noise and dropout.
_ROUNDS = 13
# The second half of every counter. `jax.random` counts from 0 there, so that no block is one of its own.
_TAG = 0x9E3779B9


def random_words(key: PRNGKeyArray, count: int) -> UInt32[Array, " count"]:
    """`count` uniform words of 32 bits, a function of the key and the place alone.

    Both words of every block are used and nothing but the result is stored. `jax.random.bits` uses the exclusive or of
    the two and runs its rounds as a loop over arrays in memory on a CPU: a million words take it 3.4 ms of a core,
    here 0.7. Keys of another generator than Threefry take the way of `jax.random.bits`.

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011, section 4.2 and table 2.
    """
    data = jax.random.key_data(key)
    if data.shape != (2,):
        return jax.random.bits(key, (count,), jnp.uint32)
    counter = jnp.arange(-(-count // 2), dtype=jnp.uint32)
    # Without the barrier every block is computed twice, once for each of its words.
    first, second = jax.lax.optimization_barrier(_threefry(data, counter, jnp.full_like(counter, _TAG)))
    return jnp.concatenate([first, second])[:count]


def gumbel_noise(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """`-log(-log(u))` with `u` uniform among the 2^23 middles of equal parts of (0, 1): from -2.8 to 16.6."""
    words = random_words(key, math.prod(shape)).reshape(shape)
    uniform = ((words >> jnp.uint32(9)).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)
    return -jnp.log(-jnp.log(uniform))


def _threefry(key: Array, x: Array, y: Array) -> tuple[Array, Array]:
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for i in range(_ROUNDS):
        x = x + y
        turn = _ROTATIONS[i % 8]
        y = ((y << jnp.uint32(turn)) | (y >> jnp.uint32(32 - turn))) ^ x
        if i % 4 == 3:
            block = i // 4 + 1
            x, y = x + keys[block % 3], y + keys[(block + 1) % 3] + jnp.uint32(block)
    return x, y
