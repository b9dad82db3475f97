"""Multi-head attention: its three forms agree, masks hold, errors are sentences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.nn.attention import MultiHeadAttention
from tests.arrays import random_module
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def layer(**options):
    return random_module(lambda: MultiHeadAttention(8, heads=2, key=jax.random.key(0), **options))


@pytest.mark.parametrize("use_bias", [False, True])
def test_cached_equals_parallel(use_bias, key):
    """Token by token in a scan, and first three at once and then the rest, are the parallel causal pass."""
    attend = layer(use_bias=use_bias, use_out_bias=use_bias)
    x = jax.random.normal(key, (6, 8))
    whole = attend(x, causal=True)

    def step(cache, token):
        y, cache = attend.extend(token[None], cache)
        return cache, y[0]

    cache, single = jax.lax.scan(step, attend.init_cache(6), x)
    assert_close(single, whole, rtol=1e-5)
    assert int(cache.position) == 6
    first, cache = attend.extend(x[:3], attend.init_cache(9))
    rest, _ = attend.extend(x[3:], cache)
    assert_close(jnp.concatenate([first, rest]), whole, rtol=1e-5)
    with pytest.raises(ShapeError, match="made for 4 tokens, 6 do not fit"):
        attend.extend(x, attend.init_cache(4))


def test_more_tokens_than_the_cache_has_room_for_are_nan(key):
    """Nothing can be raised while it runs, and the wrong numbers of an overwritten cache would look like right ones."""
    attend = MultiHeadAttention(4, heads=2, key=key)
    x = jax.random.normal(key, (6, 4))
    step = jax.jit(lambda cache, token: attend.extend(token[None], cache)[::-1])
    _, y = jax.lax.scan(step, attend.init_cache(4), x)
    np.testing.assert_allclose(y[:4, 0], attend(x[:4], causal=True), rtol=1e-5, atol=1e-6)
    assert np.isnan(y[4:]).all()
    first, cache = attend.extend(x[:3], attend.init_cache(4), seen=jnp.ones((3, 4), bool))
    assert np.isfinite(first).all() and np.isnan(attend.extend(x[3:5], cache)[0]).all()


def test_cross_attention(key):
    attend = layer(context_dim=5, head_dim=3, out_dim=7)
    x, context = jax.random.normal(key, (6, 8)), jax.random.normal(key, (4, 5))
    y = attend(x, context)
    assert y.shape == (6, 7)
    np.testing.assert_array_equal(attend.attend(x, *attend.project(context)), y)
    hidden = jnp.arange(4) < 3
    masked = attend(x, context, mask=jnp.broadcast_to(hidden[None], (6, 4)))
    assert_close(masked, attend(x, context[:3]), rtol=1e-5)
    # A set: the order of the context does not matter.
    assert_close(attend(x, context[::-1]), y, rtol=1e-5)


def test_heads_must_divide():
    with pytest.raises(ConfigError, match="8 channels cannot be split into heads=3"):
        MultiHeadAttention(8, heads=3, key=jax.random.key(0))
