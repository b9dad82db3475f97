"""Softmax attention against the plain formula; what it does where nothing may be seen; its programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.ops.attention import attention
from tests.tolerance import assert_close


def arrays(queries=5, tokens=7, heads=2, dim=8, vdim=3):
    rng = np.random.default_rng(0)
    shapes = ((queries, heads, dim), (tokens, heads, dim), (tokens, heads, vdim))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def plain(query, key, value, visible, scale):
    query, key, value = (np.asarray(x, float) for x in (query, key, value))
    out = np.zeros((len(query), *value.shape[1:]))
    for h in range(query.shape[1]):
        for i in range(len(query)):
            seen = np.flatnonzero(visible[h, i])
            if len(seen):
                weights = np.exp(scale * key[seen, h] @ query[i, h])
                out[i, h] = weights / weights.sum() @ value[seen, h]
    return out


@pytest.mark.parametrize("form", ["none", "causal", "mask", "heads", "both"])
def test_against_the_formula(form):
    query, key, value = arrays()
    rng = np.random.default_rng(1)
    mask = {
        "mask": rng.random((5, 7)) < 0.5,
        "heads": rng.random((2, 5, 7)) < 0.5,
        "both": rng.random((5, 7)) < 0.6,
    }
    mask = mask.get(form)
    if form == "mask":
        mask[2] = False  # a query that may see nothing
    causal = form in ("causal", "both")
    visible = np.ones((2, 5, 7), bool) if mask is None else np.broadcast_to(mask, (2, 5, 7)).copy()
    if causal:
        visible &= np.tril(np.ones((5, 7), bool))
    scale = 0.3 if form == "none" else None
    given = None if mask is None else jnp.asarray(mask)
    call = lambda q, k, v: attention(q, k, v, mask=given, causal=causal, scale=scale)
    assert_close(call(query, key, value), plain(query, key, value, visible, scale or 8**-0.5), rtol=1e-5)
    grads = jax.grad(lambda *a: jnp.sum(jnp.square(call(*a))), (0, 1, 2))(query, key, value)
    for grad in grads:
        assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0


def test_dropout_keeps_the_mean_and_needs_a_key():
    query, key, value = arrays(heads=1, tokens=4)
    still = attention(query, key, value)
    np.testing.assert_array_equal(attention(query, key, value, dropout=0.5), still)
    draws = jax.vmap(lambda k: attention(query, key, value, dropout=0.5, dropout_key=k))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert jnp.abs(draws[0] - still).max() > 0.01
    np.testing.assert_allclose(draws.mean(0), still, atol=0.06)


def test_bfloat16_softmax_is_float32():
    query, key, value = arrays(tokens=64)
    half = attention(*(x.astype(jnp.bfloat16) for x in (query, key, value)))
    assert half.dtype == jnp.bfloat16
    assert_close(half, attention(query, key, value), rtol=0.02)


def test_cudnn_is_refused_with_a_reason():
    query, key, value = arrays(vdim=8)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        attention(query, key, value, implementation="cudnn")
    half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    with pytest.raises(ValueError, match="masks other than the causal"):
        attention(*half, mask=jnp.ones((5, 7), bool), implementation="cudnn")
    with pytest.raises(ValueError, match="multiple of 8"):
        attention(*(x[..., :6] for x in half), implementation="cudnn")
