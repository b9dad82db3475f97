"""Single layers: against plain formulas, in bfloat16, under vmap, and what they refuse."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.nn.activations import activation
from slotzoo.nn.codebook import Codebook
from slotzoo.nn.conv import Conv, average_pool, upsample_nearest
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.nn.hippo import hippo, normal_matrix
from slotzoo.nn.linear import Embedding, Linear
from slotzoo.nn.norm import GroupNorm, LayerNorm
from slotzoo.nn.resnet import ResNetDecoder, ResNetEncoder
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")

LIKE = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
    "swish": jax.nn.swish,
    "elu": jax.nn.elu,
}


@pytest.mark.parametrize("name", LIKE)
def test_activations(name):
    x = jnp.concatenate([jnp.linspace(-30, 30, 601), jnp.asarray([-1e4, 1e4, 0.0])])
    act = activation(name)
    assert_close(act(x), LIKE[name](x), rtol=1e-6)
    assert_close(jax.vmap(jax.grad(act))(x), jax.vmap(jax.grad(LIKE[name]))(x), rtol=1e-6)
    assert act(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def plain_norm(norm, x):
    if isinstance(norm, LayerNorm):
        y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + norm.eps)
    else:
        z = x.reshape(*x.shape[:-1], norm.groups, -1)
        axes = (-4, -3, -1)
        z = (z - z.mean(axes, keepdims=True)) / jnp.sqrt(z.var(axes, keepdims=True) + norm.eps)
        y = z.reshape(x.shape)
    return y * norm.scale[None, None, None] + norm.bias[None, None, None]


@pytest.mark.parametrize("norm", [LayerNorm(6), GroupNorm(6, 6), GroupNorm(2, 6), GroupNorm(1, 6)], ids=str)
@pytest.mark.parametrize("act", [None, "elu"])
def test_norms(norm, act, key):
    """Values and all gradients, batched, against the textbook formula."""
    scale, bias, x, weights = (
        jax.random.normal(k, s)
        for k, s in zip(jax.random.split(key, 4), [(6,), (6,), (3, 4, 5, 6), (3, 4, 5, 6)], strict=True)
    )
    norm = eqx.tree_at(lambda n: (n.scale, n.bias), norm, (scale, bias))
    x = 2 * x + 1

    def both(fn):
        return eqx.filter_jit(eqx.filter_value_and_grad(lambda inputs: jnp.sum(weights * fn(*inputs))))(
            (norm, x)
        )

    ours = both(lambda norm, x: jax.vmap(lambda x: norm(x, activation=act))(x))
    plain = both(lambda norm, x: plain_norm(norm, x) if act is None else LIKE[act](plain_norm(norm, x)))
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert_close(actual, expected, rtol=1e-5)
    half = norm(x.astype(jnp.bfloat16), activation=act)
    assert half.dtype == jnp.bfloat16
    assert_close(half.astype(jnp.float32), norm(x, activation=act), rtol=2e-2)


def test_group_norm_of_a_constant_is_finite():
    norm = GroupNorm(2, 4)
    value, grad = jax.value_and_grad(lambda x: norm(x, activation="gelu").sum())(jnp.full((3, 3, 4), 1e3))
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()
    with pytest.raises(ValueError, match="5 channels cannot be split into 2 groups"):
        GroupNorm(2, 5)


def test_conv_gain_and_batch_axes(key):
    conv = eqx.tree_at(lambda c: c.bias, Conv(3, 4, 3, key=key), jnp.arange(4.0))
    x = jax.random.normal(key, (2, 5, 6, 6, 3))
    y = conv(x)
    assert y.shape == (2, 5, 6, 6, 4)
    assert_close(y[1, 2], conv(x[1, 2]), rtol=1e-6)
    assert_close(conv(x, gain=0.5), 0.5 * y, rtol=1e-6)
    assert conv(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_resampling():
    x = jnp.arange(24.0).reshape(1, 2, 4, 3)
    assert_close(average_pool(upsample_nearest(x)), x, rtol=1e-6)
    assert_close(average_pool(x)[0, 0, 0], x[0, :2, :2].mean((0, 1)), rtol=1e-6)


def test_embedding_of_the_unknown_is_the_last_row(key):
    table = Embedding(4, 2, key=key)
    np.testing.assert_array_equal(table(jnp.asarray([-1, 3, 0])), table.table[jnp.asarray([3, 3, 0])])


@pytest.mark.parametrize("depths, blocks", [((8,), 1), ((8, 16), 2)])
def test_encoder_and_decoder_sizes(depths, blocks, key):
    encoder = ResNetEncoder(3, depths, blocks, groups=4, key=key)
    decoder = ResNetDecoder(depths[-1], depths, blocks, 5, groups=4, remat=True, key=key)
    assert len(encoder.blocks) == 1 + blocks * (len(depths) - 1)
    assert len(decoder.blocks) == blocks * len(depths)
    shrink = 2 ** (len(depths) - 1)
    maps = jax.eval_shape(encoder, jnp.zeros((2, 8, 8, 3)))
    assert maps.shape == (2, 8 // shrink, 8 // shrink, depths[-1])
    assert jax.eval_shape(decoder, jnp.zeros(maps.shape)).shape == (2, 8, 8, 5)
    assert isinstance(encoder.blocks[-1].skip, Conv) == (depths[-1] != depths[0] and blocks == 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_encoder_and_decoder_steps_equal_calls(dtype, key):
    encoder_key, decoder_key, key = jax.random.split(key, 3)
    depths, x = (4, 8, 8), jax.random.normal(key, (2, 8, 12, 3)).astype(dtype)
    encoder = ResNetEncoder(3, depths, 2, groups=2, key=encoder_key)
    decoder = ResNetDecoder(8, depths, 2, 5, groups=2, key=decoder_key)
    for network in (encoder, decoder):
        # Biases of zero would hide where they are added.
        network = jax.tree.map(lambda v: (v + 0.1).astype(dtype), network)
        step, call = network.step(x, network.prepare()), network(x)
        assert step.shape == call.shape and step.dtype == call.dtype
        assert_close(step, call, rtol=1e-5 if dtype == jnp.float32 else 3e-2, what=type(network).__name__)
        x = call


def test_linear_without_bias(key):
    linear = Linear(3, 2, bias=False, key=key)
    assert_close(linear(jnp.ones((4, 3))), jnp.ones((4, 3)) @ linear.weight, rtol=1e-6)


def test_hippo_is_diagonalised():
    basis = hippo(16, 2)
    # V diag(Lambda) V^H of the kept half plus its conjugate restores the normal matrix, block by block.
    half = basis.vectors @ np.diag(basis.eigenvalues) @ basis.inverse
    restored = 2 * half.real
    block = normal_matrix(8)
    assert_close(restored, np.kron(np.eye(2), block), rtol=1e-12)
    assert (basis.eigenvalues.imag < 0).all()
    with pytest.raises(ValueError, match="size 10 cannot be split into 3 blocks"):
        hippo(10, 3)


@pytest.mark.parametrize("size", [2, 128])
def test_hippo_is_what_an_eigensolver_finds(size):
    basis, normal = hippo(size, conjugate=False), normal_matrix(size)
    assert_close(basis.eigenvalues.imag, np.linalg.eigvalsh(-1j * normal), rtol=1e-10, what="eigenvalues")
    assert np.abs(basis.inverse @ basis.vectors - np.eye(size)).max() < 1e-12
    # The largest eigenvalue is the scale of what rounding leaves.
    left = normal @ basis.vectors - basis.vectors * basis.eigenvalues
    assert np.abs(left).max() < 1e-12 * np.abs(basis.eigenvalues).max()
    half = hippo(size)
    np.testing.assert_array_equal(half.vectors, basis.vectors[:, : size // 2])
    np.testing.assert_array_equal(half.eigenvalues, basis.eigenvalues[: size // 2])


def test_clipped_eigenvalues_decay(key):
    layer = ConvSSM(4, 4, clip_eigenvalues=True, groups=2, key=key)
    layer = eqx.tree_at(lambda m: m.lambda_re, layer, jnp.asarray([0.5, -0.5]))
    re, im = jnp.split(layer.discretise().decay, 2)
    assert float(jnp.max(jnp.hypot(re, im))) < 1
    grads = eqx.filter_grad(lambda m: m.discretise().decay.sum())(layer)
    assert float(grads.lambda_re[0]) == 0 and float(grads.lambda_re[1]) != 0


def test_codebook_passes_gradients_straight_through(key):
    book = Codebook(7, 3, 4, key=key)
    z = jax.random.normal(key, (5, 4))
    out = book(z)
    assert out.embeddings.shape == (5, 4) and 1 <= float(out.perplexity) <= 7
    assert_close(book.lookup(out.codes), out.embeddings, rtol=1e-5)
    grad = jax.grad(lambda z: book(z).embeddings.sum())(z)
    assert float(jnp.abs(grad).max()) > 0
