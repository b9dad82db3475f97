"""The generator against the published test vectors, and what its words look like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.ops import random_words as module
from slotzoo.ops.random_words import gumbel_noise, random_words


# Key, counter, result: `threefry2x32 13` of Random123's kat_vectors.
KNOWN = [
    ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0xFD36D048, 0x2D17272C)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xBA3E4725, 0xF27D669E)),
]


@pytest.mark.parametrize(("key", "counter", "result"), KNOWN)
def test_known_answers(key, counter, result):
    word = lambda value: jnp.asarray([value], jnp.uint32)
    with jax.disable_jit():
        found = module._threefry(jnp.asarray(key, jnp.uint32), *map(word, counter))
    assert tuple(int(x[0]) for x in found) == result


def test_words_are_uniform_and_differ_between_keys():
    keys = jax.random.split(jax.random.key(0), 2)
    words = np.asarray(jax.jit(jax.vmap(lambda key: random_words(key, 40_001)))(keys))
    assert words.shape == (2, 40_001)
    np.testing.assert_array_equal(words[1], random_words(keys[1], 40_001))
    bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    # Four standard deviations of a mean of that many coins.
    assert np.abs(bits.mean(axis=1) - 0.5).max() < 4 * 0.5 / 40_001**0.5
    centred = words / 2.0**32 - 0.5
    assert abs((centred[0] * centred[1]).mean()) < 4 / 12 / 40_001**0.5
    assert len(np.unique(words)) > 80_000


def test_gumbel_noise():
    noise = np.sort(np.asarray(jax.jit(lambda key: gumbel_noise(key, (100, 200)))(jax.random.key(0))).ravel())
    expected = np.exp(-np.exp(-noise))  # the distribution function at what was found, in order
    assert np.abs(expected - (np.arange(20_000) + 0.5) / 20_000).max() < 1.63 / 20_000**0.5  # Kolmogorov, 1 %


def test_other_generators_have_their_own_words():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(random_words(key, 5), jax.random.bits(key, (5,), jnp.uint32))
