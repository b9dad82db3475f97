"""What SlotSSM is made of: how its parts start, and single formulas."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ShapeError
from slotzoo.nn.conv import Conv, ConvTranspose
from slotzoo.nn.inverted_attention import InvertedAttention, attention_map
from slotzoo.nn.linear import Linear
from slotzoo.nn.mamba import CausalConv, Mamba, Mamba2
from slotzoo.nn.recurrent_mixers import RIMMixer
from slotzoo.nn.torch_init import TORCH_UNIFORM, TORCH_UNIFORM_TRANSPOSED, torch_biases
from slotzoo.nn.vit import ViTEncoder, grid_positions, patchify, unpatchify
from tests.arrays import random_module
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def within(array, bound):
    """Uniform between minus `bound` and `bound`, as far as the largest entry of some hundred shows."""
    largest = float(jnp.abs(array).max())
    assert 0.8 * bound < largest <= bound, (largest, bound)


def test_mamba_starts_as_published(key):
    mixer = eqx.filter_jit(lambda: Mamba(32, state=5, expand=1.25, key=key))()
    assert (mixer.inner, mixer.rank) == (40, 2) and mixer.dt_proj.bias is not None
    steps = jax.nn.softplus(mixer.dt_proj.bias)
    assert float(steps.min()) >= 1e-3 * 0.999 and float(steps.max()) <= 0.1 * 1.001
    assert float(steps.max() / steps.min()) > 10
    assert_close(jnp.exp(mixer.a_log), np.tile(np.arange(1.0, 6.0), (40, 1)), rtol=1e-6)
    within(mixer.in_proj.weight, 32**-0.5)
    within(mixer.conv.weight, 0.5)
    within(mixer.dt_proj.weight, 2**-0.5)
    within(mixer.out_proj.weight, 40**-0.5)
    assert mixer.in_proj.bias is None and (mixer.d == 1).all()


def test_mamba_2_starts_as_published(key):
    mixer = eqx.filter_jit(lambda: Mamba2(64, state=4, head_dim=2, groups=2, conv_init=0.1, key=key))()
    rates = jnp.exp(mixer.a_log)
    assert mixer.heads == 64 and float(rates.min()) >= 1 and float(rates.max()) <= 16.001
    steps = jax.nn.softplus(mixer.dt_bias)
    assert float(steps.min()) >= 1e-3 * 0.999 and float(steps.max()) <= 0.1 * 1.001
    within(mixer.conv.weight, 0.1)
    within(mixer.conv.bias, 0.5)


@pytest.mark.parametrize("kind", ["linear", "conv", "transposed"])
def test_layers_start_as_pytorch_draws_them(kind, key):
    match kind:
        case "linear":
            layer, fan = Linear(50, 60, init=TORCH_UNIFORM, key=key), 50
        case "conv":
            layer, fan = Conv(4, 60, 3, init=TORCH_UNIFORM, key=key), 36
        case _:
            layer, fan = ConvTranspose(30, 40, 3, init=TORCH_UNIFORM_TRANSPOSED, key=key), 360
    drawn = torch_biases((layer, {"other": jnp.ones(2)}), key=key)
    within(drawn[0].weight, fan**-0.5)
    within(drawn[0].bias, fan**-0.5)
    np.testing.assert_array_equal(drawn[0].weight, layer.weight)
    np.testing.assert_array_equal(drawn[1]["other"], 1)


def test_layers_of_a_transformer_may_start_equal(key):
    def sum_of_differences(same):
        build = lambda: ViTEncoder(
            size=2, channels=1, patch=2, dim=4, layers=2, heads=2, same_start=same, key=key
        )
        first, second = build().layers
        return sum(
            float(jnp.abs(a - b).sum()) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True)
        )

    assert sum_of_differences(True) == 0 < sum_of_differences(False)


def test_causal_convolution_is_a_sum_over_the_past():
    conv = random_module(lambda: CausalConv(3, 4, key=jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 3)), jnp.float32)
    y, past = conv(x, jnp.zeros((2, 3, 3)))
    assert conv.bias is not None
    for t in range(5):
        expected = conv.bias[None] + sum(conv.weight[3 - k][None] * x[t - k] for k in range(min(t, 3) + 1))
        assert_close(y[t], expected, rtol=1e-6)
    np.testing.assert_array_equal(past, jnp.swapaxes(x[2:], 0, 1))
    # Shorter than its width: zeros stay in front.
    np.testing.assert_array_equal(conv(x[:1], jnp.zeros((2, 3, 3)))[1][:, :2], 0)


def test_a_token_that_nobody_may_see_is_nobodys():
    attention = random_module(lambda: InvertedAttention(4, heads=2, key=jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    mask = jnp.ones((2, 3), bool).at[:, 1].set(False)

    def run(x):
        out = attention(x[:2], x[2:], mask=mask)
        return out.values.sum(), out

    (_, out), grad = jax.value_and_grad(run, has_aux=True)(x)
    assert_close(out.attention.sum((0, 1)), jnp.asarray([1.0, 0.0, 1.0]), rtol=1e-6)
    assert jnp.isfinite(grad).all()
    np.testing.assert_array_equal(grad[3], 0)
    plain = attention_map(attention.project, x[:2], x[2:], mask=mask)
    assert_close(plain.sum(-1), jnp.ones((2, 2)), rtol=1e-6)


def test_the_op_and_the_formula_agree():
    """Without a mask the competition is `slot_attention`; a mask that hides nothing takes the plain formula."""
    attention = random_module(lambda: InvertedAttention(4, heads=2, key=jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)
    both = [attention(x[:2], x[2:], mask=mask) for mask in (None, jnp.ones((2, 5), bool))]
    assert_close(both[0].values, both[1].values, rtol=1e-5)


def test_patches_and_their_places():
    picture = jnp.arange(4 * 4 * 2.0).reshape(4, 4, 2)
    tokens = patchify(picture, 2)
    np.testing.assert_array_equal(tokens[1], picture[:2, 2:].ravel())
    np.testing.assert_array_equal(unpatchify(tokens, 2, 2), picture)
    places = grid_positions(2, 3, 8)
    # Columns first: the second place of the first row differs from the first in the first half.
    assert_close(places[1, :4], [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)], rtol=1e-6)
    np.testing.assert_array_equal(places[1, 4:], places[0, 4:])
    np.testing.assert_array_equal(places[3, :4], places[0, :4])


def test_mechanisms_that_rest_keep_their_state():
    rim = random_module(lambda: RIMMixer(4, slots=5, active=2, heads=2, key=jax.random.key(0)))
    state = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)
    _, after = rim.step(x, state)
    moved = np.abs(np.asarray(after - state)).max(-1) > 0
    assert moved.sum() == 2
    with pytest.raises(ShapeError, match="5 mechanisms were made, they cannot serve 4 slots"):
        rim.init_state(4)
