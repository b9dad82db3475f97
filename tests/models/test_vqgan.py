"""The VQ-GAN and its parts: shapes, gradients, errors."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models import model_card, model_config
from slotzoo.models.registry import tiny
from slotzoo.models.vqgan import VQGAN, Discriminator, VQGANConfig
from slotzoo.nn.quantize import VectorQuantizer, histogram, perplexity, usage
from slotzoo.nn.taming import fold, unfold
from tests.arrays import random_module


pytestmark = pytest.mark.usefixtures("compiled_quickly")

SMALL = VQGANConfig(
    resolution=8,
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    z_channels=6,
    n_embed=10,
    embed_dim=4,
    groups=4,
)


def abstract(config):
    return eqx.filter_eval_shape(lambda: VQGAN(config, key=jax.random.key(0)))


def image_of(config, channels=None):
    size = config.resolution
    return jax.ShapeDtypeStruct((size, size, channels or config.in_channels), jnp.float32)


@given(
    levels=st.integers(1, 3),
    latent=st.integers(1, 3),
    patch=st.sampled_from([1, 2, 4]),
    blocks=st.integers(1, 2),
    channels=st.sampled_from([1, 3]),
    double_z=st.booleans(),
)
def test_shapes(levels, latent, patch, blocks, channels, double_z):
    config = dataclasses.replace(
        SMALL,
        ch_mult=(1, 2, 1)[:levels],
        resolution=latent * patch * 2 ** (levels - 1),
        patch=patch,
        num_res_blocks=blocks,
        in_channels=channels,
        double_z=double_z,
    )
    assert config.latent == latent
    model = abstract(config)
    out = eqx.filter_eval_shape(lambda m, x: m(x), model, image_of(config))
    assert out.reconstruction.shape == (config.resolution, config.resolution, channels)
    assert out.quantized.codes.shape == (latent, latent) and out.quantized.codes.dtype == jnp.int32
    assert out.quantized.embeddings.shape == (latent, latent, 4)
    assert out.quantized.distances.shape == (latent, latent, 10)
    tokens = jax.ShapeDtypeStruct((latent, latent), jnp.int32)
    decoded = eqx.filter_eval_shape(lambda m, c: m.decode_tokens(c), model, tokens)
    assert decoded.shape == out.reconstruction.shape


def test_the_call_is_encode_then_decode_and_gradients_reach_every_leaf(key):
    config = dataclasses.replace(SMALL, code_scale=1.0, ch_mult=(1,), attn_resolutions=(), resolution=4)
    model = random_module(lambda: VQGAN(config, key=key))
    image = jax.random.uniform(key, (4, 4, 3), minval=-1.0)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(m):
        out = m(image)
        quantized = jnp.mean(jnp.square(out.quantized.rows - jax.lax.stop_gradient(out.quantized.latents)))
        return jnp.mean(jnp.square(out.reconstruction - image)) + quantized, (
            out,
            m.decode_tokens(out.quantized.codes),
        )

    (_, (out, decoded)), grads = loss(model)
    np.testing.assert_allclose(out.reconstruction, decoded, atol=1e-5)
    np.testing.assert_allclose(out.quantized.embeddings, model.codebook[out.quantized.codes], atol=1e-6)
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(g).all(), name
        # The bias of a key shifts every logit of a query by the same amount.
        assert np.abs(g).max() > 0 or ".key.bias" in name, name


def test_the_paper_sized_model_has_the_cards_parameters():
    model = abstract(model_config("vqgan_dmlab"))
    assert sum(x.size for x in jax.tree.leaves(model)) == model_card("vqgan_dmlab").parameters
    assert model.config.latent == 16


def test_the_tiny_variant_builds():
    config = model_config("vqgan_dmlab", **tiny("vqgan_dmlab"))
    assert sum(x.size for x in jax.tree.leaves(abstract(config))) < 2e6


def test_shape_error_is_one_sentence():
    model = abstract(SMALL)
    with pytest.raises(ShapeError, match=r"built for one image of shape \(8, 8, 3\).*got \(4, 8, 3\)"):
        eqx.filter_eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((4, 8, 3), jnp.float32))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"resolution": 9}, "resolution=9 is not a multiple of 2"),
        ({"groups": 3}, "8 channels cannot be split into groups=3"),
        ({"ch_mult": ()}, "must name a level"),
        ({"n_embed": 0}, "must be at least 1"),
    ],
)
def test_bad_sizes(change, sentence, key):
    with pytest.raises(ConfigError, match=sentence):
        VQGAN(dataclasses.replace(SMALL, **change), key=key)


def test_fold_is_undone_by_unfold(key):
    image = jax.random.normal(key, (6, 9, 2))
    np.testing.assert_array_equal(unfold(fold(image, 3), 3), image)
    np.testing.assert_array_equal(fold(image, 3)[0, 0].reshape(3, 3, 2), image[:3, :3])


def test_discriminator_scores_patches(key):
    model = eqx.filter_eval_shape(lambda: Discriminator(3, 16, 2, key=key))
    scores = eqx.filter_eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))
    assert scores.shape == (6, 6)


@pytest.mark.parametrize("normalize", [False, True])
def test_quantizer_takes_the_nearest_row(normalize, key):
    quantizer = VectorQuantizer(7, 3, normalize=normalize, scale=1.0, key=key)
    z = jax.random.normal(jax.random.key(1), (2, 5, 3))
    out = quantizer(z)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    points, table = (unit(z), unit(quantizer.codebook)) if normalize else (z, quantizer.codebook)
    distances = np.square(np.asarray(points)[..., None, :] - np.asarray(table)[None, None]).sum(-1)
    np.testing.assert_allclose(out.distances, distances, atol=1e-5)
    np.testing.assert_array_equal(out.codes, distances.argmin(-1))
    np.testing.assert_allclose(out.embeddings, quantizer.lookup(out.codes), atol=1e-6)
    # Straight through: the gradient of the embeddings is that of the (normalised) input.
    weights = jax.random.normal(jax.random.key(2), z.shape)
    straight = jax.grad(lambda x: jnp.sum(weights * quantizer(x).embeddings))(z)
    identity = jax.grad(lambda x: jnp.sum(weights * quantizer(x).latents))(z)
    np.testing.assert_allclose(straight, identity, atol=1e-6)


def test_a_zero_vector_has_a_finite_gradient(key):
    quantizer = VectorQuantizer(4, 3, normalize=True, scale=1.0, key=key)
    grads = jax.grad(lambda x: jnp.sum(quantizer(x).embeddings))(jnp.zeros((2, 3)))
    assert np.isfinite(grads).all()


def test_usage_and_perplexity():
    shares = histogram(jnp.array([[0, 0], [1, 1]]), 4)
    np.testing.assert_allclose(shares, [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(perplexity(shares), 2.0, rtol=1e-6)
    np.testing.assert_allclose(usage(shares), 0.5)
    np.testing.assert_allclose(perplexity(histogram(jnp.arange(8), 8)), 8.0, rtol=1e-6)
