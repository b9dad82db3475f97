"""ConvLSTM, S5 and attention by random features: against plain forms of themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from slotzoo.errors import ConfigError
from slotzoo.nn.conv_lstm import ConvLSTM
from slotzoo.nn.favor import projection, softmax_features
from slotzoo.nn.s5 import S5
from slotzoo.ops.attention import attention
from slotzoo.ops.linear_attention import linear_attention
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_conv_lstm_gradients_are_those_of_the_plain_loop(key, kernel_size):
    layer = ConvLSTM(2, kernel_size=kernel_size, key=key)
    keys = jax.random.split(key, 4)
    u, state = jax.random.normal(keys[0], (2, 5, 3, 3, 2)), jax.random.normal(keys[1], (2, 3, 3, 4))
    weights = jax.random.normal(keys[2], u.shape), jax.random.normal(keys[3], state.shape)

    def plain(layer, u, state):
        state, y = jax.lax.scan(lambda state, u: layer.step(u, state)[::-1], state, u)
        return y, state

    @eqx.filter_jit
    def gradients(form, inputs):
        def loss(inputs):
            layer, u, state = inputs
            y, last = jax.vmap(lambda u, s: form(layer, u, s))(u, state)
            return jnp.sum(weights[0] * y) + jnp.sum(weights[1] * last)

        return eqx.filter_value_and_grad(loss)(inputs)

    ours = gradients(lambda layer, u, s: layer(u, s), (layer, u, state))
    expected = gradients(plain, (layer, u, state))
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert_close(got, want, rtol=1e-5)


@pytest.mark.parametrize("gate", ["full_glu", "half_glu1", "half_glu2", "gelu", "none"])
def test_s5_steps(key, gate):
    layer = S5(3, 8, blocks=2, gate=gate, discretisation="bilinear", key=key)
    u = jax.random.normal(key, (6, 2, 3))
    y, last = layer(u)
    state, stepped = jax.lax.scan(lambda state, u: layer.step(u, state)[::-1], jnp.zeros((2, 8)), u)
    assert_close(stepped, y, rtol=1e-5)
    assert_close(state, last, rtol=1e-5)


def test_s5_both_ways_has_no_step(key):
    layer = S5(3, 8, bidirectional=True, key=key)
    u = jax.random.normal(key, (6, 3))
    assert (layer(u)[0][0] != layer(u.at[5].add(1.0))[0][0]).any()
    with pytest.raises(ConfigError, match="cannot go step by step"):
        layer.step(u[0], jnp.zeros(8))


@pytest.mark.parametrize("frame", [None, 1, 3])
def test_linear_attention_is_its_quadratic_form(key, frame, monkeypatch):
    monkeypatch.setattr("slotzoo.ops.linear_attention.CHUNK", 6)
    keys = jax.random.split(key, 3)
    q, k, v = (jax.random.uniform(one, (15, 2, 4), minval=0.1) for one in keys)

    def plain(q, k, v):
        products = jnp.einsum("qhm,khm->hqk", q, k)
        if frame is not None:
            number = jnp.arange(15) // frame
            products = jnp.where((number[:, None] >= number[None, :])[None], products, 0.0)
        return jnp.einsum("hqk,khd->qhd", products / products.sum(-1, keepdims=True), v)

    chunked = lambda q, k, v: linear_attention(q, k, v, frame=frame)[0]
    both = [
        jax.jit(jax.value_and_grad(lambda *x, f=f: jnp.sum(f(*x) ** 2), (0, 1, 2))) for f in (chunked, plain)
    ]
    for got, want in zip(*(jax.tree.leaves(f(q, k, v)) for f in both), strict=True):
        assert_close(got, want, rtol=1e-5)


def test_softmax_features_approximate_softmax(key):
    """The mean over random features is the softmax attention: more features, a smaller error."""
    keys = jax.random.split(key, 4)
    q, k, v = (0.5 * jax.random.normal(one, (12, 2, 8)) for one in keys[:3])
    exact = attention(q, k, v, causal=True)
    errors = []
    for features in (16, 1024):
        weights = projection(features, 8, key=keys[3])
        pair = softmax_features(q, weights, shift="token"), softmax_features(k, weights, shift="none")
        errors.append(float(jnp.abs(linear_attention(*pair, v, frame=1)[0] - exact).mean()))
    assert errors[1] < 0.05 and errors[1] < errors[0] / 3, errors
