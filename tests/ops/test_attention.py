"""Softmax attention against the plain formula; what it does where nothing may be seen; its programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError
from slotzoo.ops.attention import attention
from slotzoo.ops.dropout import keep_mask
from tests.ops.test_compiled import h200
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


@pytest.mark.parametrize("form", ["none", "mask", "causal", "dropout"])
def test_gradients(form):
    """The backward pass written by hand, batched, against automatic differentiation of the formula."""
    query, key, value = (jnp.stack([x, x[::-1]]) for x in arrays())
    visible = jnp.asarray(np.random.default_rng(1).random((5, 7)) < 0.5).at[2].set(False)
    visible = {"mask": visible, "causal": jnp.tril(jnp.ones((5, 7), bool))}.get(form, jnp.ones((5, 7), bool))
    drop = jax.random.key(3) if form == "dropout" else None
    keep = jnp.ones((2, 5, 7)) if drop is None else keep_mask(drop, 0.3, (2, 5, 7)).astype(float) / 0.7

    def formula(q, k, v):
        logits = jnp.where(visible[None], jnp.einsum("qhd,khd->hqk", q, k) * 8**-0.5, -1e9)
        weights = jnp.where(visible.any(-1)[None, :, None], jax.nn.softmax(logits), 0.0) * keep
        return jnp.einsum("hqk,khd->qhd", weights, v)

    mask = visible if form == "mask" else None
    ours = lambda q, k, v: attention(q, k, v, mask=mask, causal=form == "causal", dropout=0.3, dropout_key=drop)
    cotangent = jnp.cos(jnp.arange(2 * 5 * 2 * 3.0)).reshape(2, 5, 2, 3)

    def both(fn):
        out, pullback = jax.vjp(jax.vmap(fn), query, key, value)
        return out, *pullback(cotangent)

    for name, a, b in zip(("out", "query", "key", "value"), both(ours), both(formula), strict=True):
        assert_close(a, b, rtol=1e-5, what=name)


@pytest.mark.parametrize("queries", [150, 600])
def test_blocks_of_a_causal_square_are_the_square(queries):
    """Long enough that queries are worked on in blocks: as with the same mask given, which is done at once."""
    query, key, value = arrays(queries, 140, heads=1, dim=4)
    seen = jnp.tril(jnp.ones((queries, 140), bool))

    def both(**options):
        out, pullback = jax.vjp(lambda *a: attention(*a, **options), query, key, value)
        return out, *pullback(jnp.cos(out))

    for a, b in zip(jax.jit(lambda: both(causal=True))(), jax.jit(lambda: both(mask=seen))(), strict=True):
        assert_close(a, b, rtol=1e-5)


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
    with pytest.raises(ConfigError, match="bfloat16 or float16"):
        attention(query, key, value, implementation="cudnn")
    half = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    with pytest.raises(ConfigError, match="masks other than the causal"):
        attention(*half, mask=jnp.ones((5, 7), bool), implementation="cudnn")
    with pytest.raises(ConfigError, match="multiple of 8"):
        attention(*(x[..., :6] for x in half), implementation="cudnn")


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.75])
def test_kept_share(rate):
    kept = keep_mask(jax.random.key(0), rate, (3, 33333))
    assert abs(float(kept.mean()) - (1 - rate)) < 0.006
    assert rate == 0 or not (kept[:, 1:] == kept[:, :-1]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_a_described_gpu(dtype):
    """Without the GPU itself there is no cuDNN to ask: the gradient's program is XLA's."""
    shapes = [jax.ShapeDtypeStruct((6, 2, 8), dtype)] * 3
    loss = lambda *a: attention(*a, causal=True).astype(jnp.float32).sum()
    with h200():
        text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("dot_general") == 7 and "cudnn" not in text
