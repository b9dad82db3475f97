"""The video prediction task: what it optimises, what it measures, for models over tokens and over pixels."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, DataError
from slotzoo.losses import token_cross_entropy
from slotzoo.models import create_model
from slotzoo.models.vqgan import VQGAN, VQGANConfig
from slotzoo.tasks.first_stage import FirstStage
from slotzoo.tasks.video_prediction import (
    Rollout,
    VideoPredictionConfig,
    VideoPredictionTask,
    to_bytes,
    to_float,
)


pytestmark = pytest.mark.usefixtures("compiled_quickly")

TOKENIZER = VQGANConfig(
    resolution=16, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), z_channels=32, n_embed=8, embed_dim=4,
    patch=4, mid_attention=False, code_scale=1.0,
)  # fmt: skip
SMALL = dict(
    encoder_depths=(32,),
    encoder_blocks=1,
    decoder_depths=(32,),
    decoder_blocks=1,
    layers=1,
    d_model=32,
    ssm_size=4,
)
LENGTH = 18  # not a multiple of the frames that are encoded at once


@pytest.fixture(scope="module")
def stage():
    return FirstStage(VQGAN(TOKENIZER, key=jax.random.key(1)))


@pytest.fixture(scope="module")
def model():
    sizes = dict(
        height=4, width=4, num_codes=8, code_dim=4, open_loop_context=3, scan_layers=False, remat=False
    )
    return create_model("convs5_dmlab", key=jax.random.key(2), **SMALL, **sizes)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (3, LENGTH, 16, 16, 3), dtype=np.uint8)
    return {"video": video, "actions": rng.integers(0, 3, (3, LENGTH)).astype(np.int32)}


@pytest.fixture(scope="module")
def task():
    rollouts = (Rollout(5, True), Rollout(2, False))
    return VideoPredictionTask(VideoPredictionConfig(rollouts, samples=2, lpips=False, pictures=1))


def evaluate(task, model, stage, batches, folder, should_stop=lambda: False):
    folder.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(3)
    return task.evaluate(model, stage, batches, key=key, step=1, folder=folder, should_stop=should_stop)


def test_tokens_are_those_of_each_frame(stage, batch):
    tokens = eqx.filter_jit(lambda s, b: s.tokens(b))(stage, batch)
    frame = stage.tokenizer.encode(to_float(jnp.asarray(batch["video"][1, 17]))).codes
    np.testing.assert_array_equal(tokens[1, 17], frame)
    assert tokens.shape == (3, LENGTH, 4, 4)
    assert stage.tokens({"tokens": tokens}) is tokens


def test_bytes_and_floats_are_inverse():
    every = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(to_bytes(to_float(every)), every)


def test_loss_is_the_mean_over_clips(task, model, stage, batch):
    key = jax.random.key(4)
    loss, terms = eqx.filter_jit(task.loss)(model, stage, batch, key=key, step=jnp.asarray(0))
    tokens = eqx.filter_jit(lambda s, b: s.tokens(b))(stage, batch)
    expected = []
    for i, clip_key in enumerate(jax.random.split(key, 3)):
        draws = model.draw(LENGTH, key=jax.random.split(clip_key)[0])
        out = model(tokens[i], jnp.asarray(batch["actions"][i]), stage.tokenizer.codebook, draws=draws)
        each = token_cross_entropy(out.prediction, tokens[i][out.frames], smoothing=0.01).sum((1, 2))
        expected.append(jnp.sum(out.weights * each))
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    assert 0 < terms["token_ce"] < 2 * np.log(8)


def test_reading_tokens_equals_encoding_frames(task, model, stage, batch):
    tokens = eqx.filter_jit(lambda s, b: s.tokens(b))(stage, batch)
    key, step = jax.random.key(4), jnp.asarray(0)
    loss = eqx.filter_jit(task.loss)
    read = loss(model, stage, {"tokens": tokens, "actions": batch["actions"]}, key=key, step=step)[0]
    np.testing.assert_allclose(read, loss(model, stage, batch, key=key, step=step)[0], rtol=1e-6)


def test_rollout_keeps_what_was_given(task, model, stage, batch):
    made = task.rollout(model, stage, batch, Rollout(5, True), key=jax.random.key(0))
    assert made.shape == (3, 2, LENGTH, 16, 16, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(made[:, :, :5], np.stack([batch["video"][:, :5]] * 2, 1))
    assert (made[:, 0, 5:] != made[:, 1, 5:]).any(), "two samples are the same"
    longer = task.rollout(model, stage, batch, Rollout(2, False), key=jax.random.key(0), length=LENGTH + 4)
    assert longer.shape[2] == LENGTH + 4
    with pytest.raises(ConfigError, match=f"the clips have {LENGTH}"):
        task.rollout(model, stage, batch, Rollout(5, True), key=jax.random.key(0), length=LENGTH + 1)


def test_evaluation(task, model, stage, batch, tmp_path):
    valid = np.asarray([True, True, False])
    numbers = evaluate(task, model, stage, [batch | {"valid": valid}], tmp_path / "a")
    tables = json.loads((tmp_path / "a" / "table.json").read_text())["tables"]
    assert [len(t["rows"]) for t in tables] == [3, 5, 5]
    assert {"model", "repeat last frame", "true frames as tokens"} <= {row["name"] for row in tables[1]["rows"]}
    assert tables[1]["rows"][0]["clips"] == 2
    assert (tmp_path / "a" / "rollout_action_5_0.png").is_file() and (
        tmp_path / "a" / "rollout_2_0.png"
    ).is_file()

    tokens = np.asarray(eqx.filter_jit(lambda s, b: s.tokens(b))(stage, batch))[:2]
    share = np.bincount(tokens.reshape(-1), minlength=8) / tokens.size
    entropy = -np.sum(share[share > 0] * np.log(share[share > 0]))
    np.testing.assert_allclose(numbers["unigram_entropy"], entropy, rtol=1e-6)
    np.testing.assert_allclose(numbers["below_unigram"], 1 - numbers["token_ce"] / entropy, rtol=1e-6)

    # What fills up a batch does not count, nor does how clips are dealt out to batches (but for the samples drawn).
    filled = batch["video"].copy()
    filled[2] = 0
    other = evaluate(task, model, stage, [batch | {"video": filled, "valid": valid}], tmp_path / "b")
    assert other == numbers


def test_evaluation_stops_and_refuses_nothing(task, model, stage, batch, tmp_path):
    assert evaluate(task, model, stage, [batch], tmp_path, should_stop=lambda: True) == {}
    with pytest.raises(DataError, match=r"raise eval\.clips"):
        evaluate(task, model, stage, [], tmp_path)


def test_pixels(batch, tmp_path):
    model = create_model("convs5_mnist600", key=jax.random.key(2), height=16, width=16, channels=3, **SMALL)
    task = VideoPredictionTask(VideoPredictionConfig((Rollout(4, False),), lpips=False, pictures=0))
    stage = FirstStage(None)
    key, step = jax.random.key(0), jnp.asarray(0)
    loss, grads = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda m: task.loss(m, stage, batch, key=key, step=step)[0])
    )(model)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    numbers = evaluate(task, model, stage, [batch], tmp_path)
    assert {"mse", "4/psnr", "4/ssim"} <= set(numbers)


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="samples"):
        VideoPredictionConfig(samples=0)
