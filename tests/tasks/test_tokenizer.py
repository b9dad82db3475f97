"""The tokenizer's task: losses, their gradients, evaluation."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo import losses
from slotzoo.errors import ConfigError, DataError, ShapeError
from slotzoo.models.vqgan import VQGAN, VQGANConfig
from slotzoo.tasks import tokenizer
from slotzoo.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig
from slotzoo.train.protocols import Task
from slotzoo.train.step import cast_parameters
from tests.arrays import random_module


pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = VQGANConfig(
    resolution=12,
    ch=4,
    ch_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(),
    mid_attention=False,
    z_channels=4,
    n_embed=6,
    embed_dim=3,
    groups=2,
    patch=4,
    code_scale=1.0,
)
PLAIN = dict(perceptual_weight=0.0, l2_weight=1.0)
SMALL = dict(discriminator_width=4, discriminator_layers=1)


@pytest.fixture(scope="module")
def generator():
    return random_module(lambda: VQGAN(CONFIG, key=jax.random.key(0)))


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).integers(0, 256, (2, 3, 12, 12, 3)).astype(np.uint8)


def gradients(task, model, video, step=0, frozen=None):
    @eqx.filter_jit
    def run(model, video, step):
        loss = lambda m: task.loss(m, frozen, {"video": video}, key=jax.random.key(0), step=step)
        return eqx.filter_value_and_grad(loss, has_aux=True)(model)

    return run(model, jnp.asarray(video), jnp.int32(step))


def test_without_an_adversary(generator, video):
    task = TokenizerTask(
        TokenizerTaskConfig(**PLAIN, adversarial_weight=0.0, entropy_weight=0.1, unused_weight=0.1)
    )
    assert isinstance(task, Task)
    model = task.module(generator, key=jax.random.key(1))
    assert model.discriminator is None and task.frozen() is None and task.export(model) is generator
    (value, terms), grads = gradients(task, model, video)
    c = task.config
    wanted = terms["l1"] + terms["l2"] + terms["codebook"] + c.commitment_weight * terms["commitment"]
    wanted = wanted + c.entropy_weight * terms["entropy"] + c.unused_weight * terms["unused"]
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert np.abs(grads.generator.quantizer.codebook).max() > 0
    assert np.abs(grads.generator.encoder.conv_in.weight).max() > 0


@pytest.mark.slow
def test_adversarial_gradients_are_those_of_two_losses(generator, video):
    """The joined scalar gives the generator and the discriminator what two separate losses would."""
    task = TokenizerTask(TokenizerTaskConfig(**PLAIN, **SMALL, adversarial_start=1, adversarial_weight=0.5))
    model = random_module(lambda: task.module(generator, key=jax.random.key(1)), scale=0.3)
    (_, terms), grads = gradients(task, model, video, step=1)
    weight = terms["adversarial_weight"]
    frames = jnp.asarray(video).reshape(-1, 12, 12, 3).astype(jnp.float32) / 127.5 - 1

    @eqx.filter_jit
    def separate(generator, discriminator):
        def generated(generator):
            out = jax.vmap(generator)(frames)
            return out.reconstruction, out.quantized

        def generator_loss(generator):
            made, q = generated(generator)
            unlike = jnp.mean(jnp.abs(made - frames)) + jnp.mean(jnp.square(made - frames))
            adversarial = losses.hinge_generator_loss(jax.vmap(discriminator)(made))
            codes = losses.codebook_loss(q.latents, q.rows) + 0.25 * losses.commitment_loss(q.latents, q.rows)
            return unlike + weight * adversarial + codes

        def parts(weight):
            other = eqx.tree_at(lambda g: g.decoder.conv_out.weight, generator, weight)
            made = generated(other)[0]
            unlike = jnp.mean(jnp.abs(made - frames)) + jnp.mean(jnp.square(made - frames))
            return unlike, losses.hinge_generator_loss(jax.vmap(discriminator)(made))

        pull, push = jax.jacrev(parts)(generator.decoder.conv_out.weight)
        balance = jnp.linalg.norm(pull) / (jnp.linalg.norm(push) + 1e-4)

        def discriminator_loss(discriminator):
            fake = jax.vmap(discriminator)(generated(generator)[0])
            return losses.hinge_discriminator_loss(jax.vmap(discriminator)(frames), fake)

        return (
            eqx.filter_grad(generator_loss)(generator),
            eqx.filter_grad(discriminator_loss)(discriminator),
            balance,
        )

    for_generator, for_discriminator, balance = separate(model.generator, model.discriminator)
    np.testing.assert_allclose(weight, 0.5 * balance, rtol=1e-3)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, grads.generator, for_generator)
    jax.tree.map(close, grads.discriminator, for_discriminator)

    # Before its start the adversary neither learns nor is listened to.
    (_, terms), grads = gradients(task, model, video, step=0)
    assert terms["adversarial_weight"] == 0 and terms["discriminator"] == 0
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(grads.discriminator)) == 0


def test_bfloat16(generator, video):
    """The whole loss traces with a model that was cast as in training."""
    task = TokenizerTask(TokenizerTaskConfig(**PLAIN, **SMALL, adversarial_start=0))
    model = random_module(lambda: task.module(generator, key=jax.random.key(1)))

    def run(model, video):
        loss = lambda m: task.loss(m, None, {"video": video}, key=jax.random.key(0), step=jnp.int32(0))
        return eqx.filter_value_and_grad(loss, has_aux=True)(cast_parameters(model, "bfloat16"))

    (value, terms), grads = eqx.filter_eval_shape(run, model, jnp.asarray(video))
    assert value.dtype == jnp.float32 and {t.dtype for t in terms.values()} == {jnp.dtype("float32")}
    assert grads.generator.encoder.conv_in.weight.dtype == jnp.bfloat16


def test_perceptual_term_uses_the_frozen_network(generator, video):
    class Distance(eqx.Module):
        scale: jax.Array

        def __call__(self, a, b):
            return self.scale * jnp.mean(jnp.square(a - b))

    task = TokenizerTask(TokenizerTaskConfig(l1_weight=0.0, perceptual_weight=2.0, adversarial_weight=0.0))
    model = task.module(generator, key=jax.random.key(1))
    (_, terms), _ = gradients(task, model, video, frozen=Distance(jnp.float32(3.0)))
    np.testing.assert_allclose(terms["perceptual"], 3 * terms["l2"], rtol=1e-5)
    with pytest.raises(ConfigError, match=r"pass `frozen=task.frozen\(\)`"):
        gradients(task, model, video)


def test_evaluation(generator, video, tmp_path):
    task = TokenizerTask(TokenizerTaskConfig(**PLAIN, adversarial_weight=0.0, pictures=3))
    model = task.module(generator, key=jax.random.key(1))
    kwargs = dict(key=jax.random.key(0), step=5, folder=tmp_path, should_stop=lambda: False)
    filled = {"video": np.concatenate([video[:1], np.zeros_like(video[:1])]), "valid": np.array([True, False])}
    result = task.evaluate(model, None, [{"video": video}, filled], **kwargs)
    frames = np.concatenate([video, video[:1]]).reshape(-1, 12, 12, 3) / 255.0
    made = jax.vmap(lambda x: generator(x).reconstruction)(jnp.asarray(frames * 2 - 1, jnp.float32))
    error = np.square((np.clip(made, -1, 1) + 1) / 2 - frames).mean((1, 2, 3))
    np.testing.assert_allclose(result["psnr"], (-10 * np.log10(error)).mean(), rtol=1e-4)
    assert 1 <= result["perplexity"] <= 6 and 0 < result["usage"] <= 1 and -1 <= result["ssim"] <= 1
    codes = jax.vmap(lambda x: generator.encode(x).codes)(jnp.asarray(frames * 2 - 1, jnp.float32))
    np.testing.assert_allclose(result["usage"], len(np.unique(codes)) / 6)
    error = np.square(frames - frames.mean(0)).mean((1, 2, 3))
    np.testing.assert_allclose(result["mean_frame_psnr"], (-10 * np.log10(error)).mean(), rtol=1e-4)
    assert (tmp_path / "reconstructions.png").stat().st_size > 0
    table = json.loads((tmp_path / "table.json").read_text())
    np.testing.assert_allclose(table["rows"][0]["PSNR"], result["psnr"])
    assert [row["name"] for row in table["rows"]] == ["tokenizer", "mean_frame", "mean_colour"]
    with pytest.raises(DataError, match="no held-out frame"):
        task.evaluate(model, None, [], **kwargs)
    stopped = task.evaluate(model, None, [{"video": video}], **(kwargs | dict(should_stop=lambda: True)))
    assert stopped == {}


def test_entropy_prefers_sure_and_even_choices():
    sure_and_even = 10.0 * (1 - jnp.eye(4))
    sure_but_alike = jnp.tile(jnp.array([[0.0, 10.0, 10.0, 10.0]]), (4, 1))
    unsure = jnp.ones((4, 4))
    value = lambda d: float(losses.code_entropy_loss(d, temperature=0.1))
    np.testing.assert_allclose(value(sure_and_even), -np.log(4), atol=1e-5)
    np.testing.assert_allclose([value(sure_but_alike), value(unsure)], 0, atol=1e-5)


def test_unused_codes_are_drawn_to_the_latents():
    latents = jnp.array([[1.0, 0.0], [0.9, 0.0]])
    table = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    distances = jnp.sum(jnp.square(latents[:, None] - table[None]), axis=-1)
    shares = jnp.array([1.0, 0.0])
    grads = jax.grad(lambda t: losses.unused_code_loss(latents, distances, t, shares))(table)
    assert abs(float(grads[0, 0])) < 1e-6  # in use: left alone
    np.testing.assert_allclose(grads[1], [-0.95, 0.0], rtol=1e-5)  # moves towards 0.9, its nearest


@pytest.mark.parametrize(
    "options, sentence",
    [
        (dict(l1_weight=-1.0), "l1_weight must not be negative"),
        (dict(l1_weight=0.0, perceptual_weight=0.0), "nothing asks for a faithful image"),
        (dict(entropy_temperature=0.0), "entropy_temperature must be positive"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TokenizerTaskConfig(**options)


def test_frames_without_time_are_refused(video):
    with pytest.raises(ShapeError, match="batch, time, height, width, channel"):
        tokenizer.flat_frames(video[0])
