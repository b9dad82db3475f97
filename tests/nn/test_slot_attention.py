"""Slot attention as a layer, transposed convolutions, the GRU, pixel positions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.nn.conv import ConvTranspose, conv_transpose2d
from slotzoo.nn.gru import GRUCell
from slotzoo.nn.position import SoftPositionEmbedding, position_grid
from slotzoo.nn.slot_attention import SlotAttention, _neumann


pytestmark = pytest.mark.usefixtures("compiled_quickly")

PADS = ["SAME", "VALID", ((2, 3), (2, 3)), ((1, 2), (3, 0))]


@settings(max_examples=12)
@given(
    st.integers(1, 6),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(1, 2), (3, 3), (4, 1)]),
    st.sampled_from(PADS),
)
def test_transposed_convolution_is_that_of_jax(kernel, stride, size, padding):
    rng = np.random.default_rng(kernel)
    x = jnp.asarray(rng.normal(size=(2, *size, 2)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, 2, 3)), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")
    if isinstance(padding, str):
        expected = jax.lax.conv_transpose(x, w, (stride, stride), padding, dimension_numbers=numbers)
    else:
        expected = jax.lax.conv_general_dilated(
            x, w, (1, 1), padding, lhs_dilation=(stride, stride), dimension_numbers=numbers
        )
    if 0 in expected.shape:
        with pytest.raises(ShapeError, match="leaves none"):
            conv_transpose2d(x, w, stride=stride, padding=padding)
        return
    actual = conv_transpose2d(x, w, stride=stride, padding=padding)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_transposed_convolution_has_no_dilated_product():
    """What makes it fast: an ordinary convolution of the small map."""
    layer = ConvTranspose(8, 4, 5, key=jax.random.key(0))
    text = jax.jit(jax.grad(lambda x: layer(x).sum())).lower(jnp.ones((1, 8, 8, 8))).as_text()
    assert "stablehlo.convolution" in text
    assert "lhs_dilate = [2, 2]" not in text and "lhs_dilation = [2, 2]" not in text
    with pytest.raises(ConfigError, match='"SAME", "VALID" or pairs'):
        ConvTranspose(3, 4, 5, padding="same", key=jax.random.key(0))(jnp.ones((1, 8, 8, 3)))


def test_transposed_convolution_begins_as_the_authors_does():
    """LeCun-normal: a variance of one over all taps, of which one in four reaches a pixel."""
    layer = ConvTranspose(64, 64, 5, key=jax.random.key(0))
    assert 0.98 < float(jnp.var(layer.weight)) * 25 * 64 < 1.02
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 64)), jnp.float32)
    assert 0.4 < float(jnp.std(layer(x)[:, 4:-4, 4:-4])) < 0.6


def test_gru_gates():
    """An update gate of one keeps the state; a reset gate of zero hides it from the new one."""
    cell = GRUCell(2, 2, key=jax.random.key(0))
    bias = lambda *gates: jnp.repeat(jnp.asarray(gates, jnp.float32), 2)
    x, state = jnp.ones(2), jnp.asarray([0.3, -0.4])
    gated = lambda *gates: eqx.tree_at(lambda c: c.bias_input, cell, bias(*gates))
    kept = gated(0, 1e3, 0)
    np.testing.assert_allclose(kept(x, state), state, rtol=1e-6)
    fresh = gated(-1e3, -1e3, 0)
    np.testing.assert_allclose(fresh(x, state), jnp.tanh(x @ cell.weight_input[:, 4:]), rtol=1e-5)


def test_positions_fit_any_size():
    grid = position_grid(3, 2)
    np.testing.assert_allclose(grid[2, 0], [1, 0, 0, 1])
    np.testing.assert_allclose(grid[..., :2] + grid[..., 2:], 1)
    embed = SoftPositionEmbedding(4, key=jax.random.key(0))
    for size in [(1, 1), (5, 3)]:
        assert embed(jnp.zeros((2, *size, 4))).shape == (2, *size, 4)


def test_neumann_series_is_the_gradient_at_a_fixed_point():
    """Of `s = A s + x` the cotangent of x is `(I - A^T)^-1 g`; with no terms, that of one step."""
    rng = np.random.default_rng(0)
    a = jnp.asarray(0.3 * rng.normal(size=(4, 4)) / 2, jnp.float32)
    x, g = (jnp.asarray(rng.normal(size=(1, 4)), jnp.float32) for _ in range(2))
    fixed = x @ jnp.linalg.inv(jnp.eye(4) - a)

    def cotangent(terms):
        solved = lambda x: _neumann(lambda s: s @ a + x, terms, jax.lax.stop_gradient(fixed) @ a + x, fixed)
        value, pullback = jax.vjp(solved, x)
        np.testing.assert_allclose(value, fixed, atol=1e-5)
        return pullback(g)[0]

    np.testing.assert_allclose(cotangent(40), g @ jnp.linalg.inv(jnp.eye(4) - a).T, atol=1e-5)
    np.testing.assert_allclose(cotangent(1), g + g @ a.T, atol=1e-6)
    np.testing.assert_allclose(cotangent(0), g, atol=1e-6)


def test_neumann_gradient_of_the_module():
    rng = np.random.default_rng(0)
    inputs, start = (jnp.asarray(rng.normal(size=(n, 4)), jnp.float32) for n in (6, 2))

    def gradient(kind, terms):
        module = SlotAttention(4, 4, mlp_dim=4, gradient=kind, neumann_terms=terms, key=jax.random.key(1))
        return jax.jit(jax.grad(lambda x: module(x, start, iterations=2).slots.sum()))(inputs)

    np.testing.assert_allclose(gradient("neumann", 0), gradient("implicit", 4), rtol=1e-5, atol=1e-7)
    assert np.abs(gradient("neumann", 2) - gradient("implicit", 4)).max() > 1e-4


def test_implicit_gradients_keep_one_step():
    """The loop that settles the slots is not part of the backward pass, and the initial slots have no gradient."""
    module = SlotAttention(6, 6, mlp_dim=8, gradient="implicit", key=jax.random.key(1))
    inputs, start = jnp.ones((20, 6)), jnp.ones((3, 6))
    loss = lambda x, s, n: module(x, s, iterations=n).slots.sum()
    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    assert np.abs(grad(inputs, start, 3)[1]).max() == 0
    lines = [len(grad.lower(inputs, start, n).as_text().splitlines()) for n in (1, 9)]
    assert lines[0] == lines[1]


def test_mistakes_are_one_sentence():
    key = jax.random.key(0)
    with pytest.raises(ConfigError, match="cannot be split into heads=4"):
        SlotAttention(6, 6, mlp_dim=8, heads=4, key=key)
    with pytest.raises(ConfigError, match='num_slots goes with init="learned"'):
        SlotAttention(6, 6, mlp_dim=8, num_slots=3, key=key)
    with pytest.raises(ConfigError, match="has no initial slots; pass them as slots0"):
        SlotAttention(6, 6, mlp_dim=None, init="given", key=key).sample_slots(3, key=key)
    with pytest.raises(ConfigError, match="iterations=0 must be at least 1"):
        SlotAttention(6, 6, mlp_dim=8, key=key)(jnp.ones((5, 6)), jnp.ones((2, 6)), iterations=0)
