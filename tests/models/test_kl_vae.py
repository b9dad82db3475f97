"""The KL-VAE: modes of encoding, its divergence, training as a tokenizer. The recorded numbers: tests/parity."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ShapeError
from slotzoo.models.kl_vae import KLVAE, Gaussian, KLVAEConfig
from slotzoo.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig
from tests.arrays import random_module


pytestmark = pytest.mark.usefixtures("compiled_quickly")

SMALL = KLVAEConfig(
    resolution=4, ch=4, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), z_channels=2, embed_dim=3, groups=2
)


@pytest.fixture(scope="module")
def model():
    return random_module(lambda: KLVAE(dataclasses.replace(SMALL, patch=2), key=jax.random.key(0)), scale=0.2)


def test_modes(model):
    image = jax.random.uniform(jax.random.key(1), (4, 4, 3), minval=-1.0)
    noise = jax.random.normal(jax.random.key(2), (2, 2, 3))

    @eqx.filter_jit
    def run(model):
        stats = model.encode(image, "stats")
        return (
            stats,
            model.encode(image, "mean"),
            model.encode(image, noise=noise),
            model(image),
            model(image, key=jax.random.key(3)),
        )

    stats, mean, sample, plain, drawn = run(model)
    np.testing.assert_array_equal(stats[..., :3], mean)
    np.testing.assert_allclose(sample, mean + stats[..., 3:] * noise, rtol=1e-5, atol=1e-6)
    assert plain.reconstruction.shape == (4, 4, 3)
    assert not np.allclose(plain.reconstruction, drawn.reconstruction)
    with pytest.raises(ValueError, match="needs `noise` or a `key`"):
        model.encode(image)
    with pytest.raises(ShapeError, match=r"built for one image of shape \(4, 4, 3\)"):
        model(image[:2])


def test_divergence():
    normal = Gaussian(jnp.zeros((2, 2, 3)), jnp.zeros((2, 2, 3)))
    assert float(normal.kl()) == 0
    moved = Gaussian(jnp.ones((2, 2, 3)), jnp.full((2, 2, 3), jnp.log(4.0)))
    np.testing.assert_allclose(moved.kl(), 12 * 0.5 * (1 + 4 - 1 - np.log(4.0)), rtol=1e-6)


def test_it_trains_as_a_tokenizer(model, tmp_path):
    task = TokenizerTask(TokenizerTaskConfig(perceptual_weight=0.0, adversarial_weight=0.0, kl_weight=1e-3))
    state = task.module(model, key=jax.random.key(0))
    video = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4, 3)).astype(np.uint8)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(state):
        return task.loss(state, None, {"video": jnp.asarray(video)}, key=jax.random.key(1), step=jnp.int32(0))

    (value, terms), grads = loss(state)
    assert set(terms) == {"kl", "psnr", "l1", "l2"}
    np.testing.assert_allclose(value, terms["l1"] + 1e-3 * terms["kl"] / 48, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    numbers = task.evaluate(
        state,
        None,
        [{"video": video}],
        key=jax.random.key(0),
        step=0,
        folder=tmp_path,
        should_stop=lambda: False,
    )
    assert {"psnr", "l1", "kl"} <= set(numbers) and "perplexity" not in numbers
    table = json.loads((tmp_path / "table.json").read_text())
    assert "KL" in table["columns"] and table["better"]["KL"] == "lower"
