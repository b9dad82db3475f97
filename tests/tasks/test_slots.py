"""The tasks of SlotSSM, on models that only look like one: their answers are known."""

import dataclasses
import json
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.data.synthetic.balls import PALETTE as BALL_COLOURS, BlinkingColorBalls, BouncingBalls
from slotzoo.errors import ConfigError, DataError
from slotzoo.models import create_model, model_config
from slotzoo.models.registry import tiny
from slotzoo.tasks.localisation import LocalisationTask
from slotzoo.tasks.slot_batches import cut, examples
from slotzoo.tasks.slot_pictures import PALETTE, SlotPicturesConfig, SlotPicturesTask
from slotzoo.tasks.slot_prediction import SlotPredictionConfig, SlotPredictionTask
from slotzoo.tasks.video_prediction import Rollout
from slotzoo.train.step import cast_parameters


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@dataclasses.dataclass(frozen=True)
class Config:
    target: str
    low: float = 0.0
    high: float = 1.0
    patch_grid: int = 1


class Decoded(NamedTuple):
    reconstruction: Any = None
    masks: Any = None
    logits: Any = None


class Output(NamedTuple):
    outputs: Decoded
    attention: tuple[Any, ...] = ()


class Known(eqx.Module):
    """Paints what it is given times `gain`; for a label, it holds the cell that the first pixels name for right."""

    gain: jax.Array
    config: Config = eqx.field(static=True)
    answer: jax.Array | None = None  # what it paints after the last frame
    shares: jax.Array | None = None
    masks: jax.Array | None = None

    def __call__(self, video, *, key=None):
        del key
        if self.config.target == "label":
            cell = jnp.round(video[0, 0, 0, 0] * 255).astype(jnp.int32)
            return Output(Decoded(logits=self.gain * jax.nn.one_hot(cell, 36)))
        painted = video[..., :1] if self.config.target == "depth" else video
        painted = self.gain * (painted if self.answer is None else self.answer)
        return Output(Decoded(painted, self.masks), () if self.shares is None else (None, self.shares))

    def loss(self, example, *, key=None, step=None):
        del step
        made = self(example["video"], key=key).outputs
        if self.config.target == "label":
            value = -jax.nn.log_softmax(made.logits)[example["label"]]
        else:
            name = self.config.target
            wanted = example["video"] if name in ("video", "next") else example[name]
            value = jnp.mean(jnp.square(made.reconstruction - wanted))
        return value, {"mse": value}

    def generate(self, context, length):
        return jnp.broadcast_to(self.gain * context[-1], (length, *context.shape[1:]))


def evaluate(task, model, batches, folder, should_stop=lambda: False):
    return task.evaluate(
        model, None, batches, key=jax.random.key(0), step=1, folder=folder, should_stop=should_stop
    )


def tables(folder):
    return json.loads((folder / "table.json").read_text())["tables"]


def test_patches_come_row_by_row():
    video = jnp.arange(2 * 4 * 4).reshape(1, 2, 4, 4, 1)
    squares = cut(video.astype(jnp.float32), 2)
    assert squares.shape == (1, 8, 2, 2, 1)
    assert squares[0, 1, ..., 0].tolist() == [[2, 3], [6, 7]]
    assert squares[0, 6, ..., 0].tolist() == [[24, 25], [28, 29]]
    with pytest.raises(ConfigError, match="4 x 4 pixels cannot be cut into patch_grid=3"):
        cut(video.astype(jnp.float32), 3)


def test_missing_fields_are_named():
    batch = {"video": np.zeros((1, 2, 4, 4, 3), np.uint8)}
    for target, hint in (("image", "blinking_color_balls"), ("depth", "depth=true"), ("label", "data=cater")):
        with pytest.raises(ConfigError, match=f"target='{target}', but the data set has no .*{hint}"):
            examples(batch, Config(target))
    ranged = examples({"video": np.full((1, 2, 4, 4, 3), 255, np.uint8)}, Config("video", -1.0, 1.0))
    assert ranged["video"].max() == 1


@pytest.fixture(scope="module")
def balls():
    source = BlinkingColorBalls("test", size=24, length=3, clips=4)
    records = [source[i] for i in range(3)]
    return {name: np.stack([r[name] for r in records]) for name in records[0]}


def test_the_palette_is_that_of_the_data():
    assert np.array_equal(np.asarray(PALETTE[:-1]), BALL_COLOURS)


def test_right_answers_about_balls_score_one(balls, tmp_path):
    one = {name: x[:1] for name, x in balls.items()}
    answer = jnp.asarray(one["target"][0], jnp.float32) / 255
    model = Known(jnp.asarray(1.0), Config("image", patch_grid=2), answer)
    task = SlotPicturesTask(SlotPicturesConfig(pictures=1))
    assert task.loss(model, None, one, key=jax.random.key(0), step=jnp.asarray(0))[0] == pytest.approx(
        0, abs=1e-9
    )
    numbers = evaluate(task, model, [one | {"valid": np.asarray([True])}], tmp_path)
    assert numbers["color_accuracy"] == numbers["place_iou"] == 1 and numbers["error"] < 1e-9
    (table,) = tables(tmp_path)
    errors = {row["name"]: row.get("error") for row in table["rows"]}
    assert errors["black"] > errors["right places, mean colour"] > errors["model"]
    assert (tmp_path / "clips.png").is_file()
    # Another clip's answer: other places.
    wrong = evaluate(task, model, [{name: x[1:2] for name, x in balls.items()}], tmp_path)
    assert wrong["color_accuracy"] < 1 and wrong["place_iou"] < 0.5 and wrong["error"] > 1e-3


def test_segments_are_scored_over_the_whole_clip(tmp_path):
    source = BouncingBalls("test", size=16, length=3, clips=2, balls=2)
    batch = {name: np.stack([source[0][name], source[1][name]]) for name in source.spec}
    masks = jax.nn.one_hot(jnp.asarray(batch["mask"][0], jnp.int32), 3, axis=1)
    shares = jnp.stack([jnp.ones((3, 1, 64)), jnp.zeros((3, 1, 64))], axis=2)  # all tokens to the first slot
    model = Known(jnp.asarray(0.5), Config("video"), None, shares, masks)
    numbers = evaluate(SlotPicturesTask(), model, [batch | {"valid": np.asarray([True, False])}], tmp_path)
    assert numbers["fg_ari"] == numbers["miou"] == pytest.approx(1) and numbers["attention_fg_ari"] == 0
    assert numbers["error"] == pytest.approx(0.25 * np.square(batch["video"][0] / 255).mean(), rel=1e-4)
    assert [row["name"] for row in tables(tmp_path)[1]["rows"]] == [
        "masks of the decoder",
        "attention to the frame",
    ]


def test_depth_stands_beside_its_mean(tmp_path):
    batch = {"video": np.zeros((2, 3, 8, 8, 3), np.uint8), "depth": np.ones((2, 3, 8, 8, 1), np.float32)}
    batch["depth"][:, :, :4] = 3.0
    numbers = evaluate(SlotPicturesTask(), Known(jnp.asarray(1.0), Config("depth")), [batch], tmp_path)
    assert numbers["error"] == pytest.approx(5.0)
    errors = {row["name"]: row["error"] for row in tables(tmp_path)[0]["rows"]}
    assert errors["mean of each frame"] == errors["mean of the clip"] == pytest.approx(1.0)


def test_cells_are_ranked(tmp_path):
    video = np.zeros((3, 2, 12, 12, 3), np.uint8)
    video[:, 0, 0, 0, 0] = (7, 7, 20)
    batch = {"video": video, "label": np.asarray([7, 8, 35], np.int32)}
    task = LocalisationTask()
    numbers = evaluate(task, Known(jnp.asarray(9.0), Config("label")), [batch], tmp_path)
    # Of cells that are held equally likely the true one counts as the last.
    assert numbers["top_1"] == numbers["top_5"] == pytest.approx(1 / 3)
    assert numbers["distance"] == pytest.approx((0 + 1 + 5) / 3)
    rows = {row["name"]: row for row in tables(tmp_path)[0]["rows"]}
    assert rows["without a look"]["top 1"] == pytest.approx(1 / 3) and rows["without a look"]["top 5"] == 1
    assert rows["by chance"]["top 5"] == pytest.approx(5 / 36)
    assert (tmp_path / "cells.png").is_file()


def test_rollouts_are_measured_frame_by_frame(tmp_path):
    source = BouncingBalls("test", size=12, length=6, clips=2, balls=1)
    batch = {"video": np.stack([source[i]["video"] for i in range(2)]), "valid": np.asarray([True, True])}
    task = SlotPredictionTask(SlotPredictionConfig((Rollout(3, False, 6),), pictures=1))
    # It says that the next frame is the one before, which is what the baseline says.
    numbers = evaluate(task, Known(jnp.asarray(1.0), Config("next")), [batch], tmp_path)
    first, second = tables(tmp_path)
    (curve,) = first["curves"]
    assert curve["x"] == [1, 2, 3, 4, 5]
    assert curve["series"]["model"] == pytest.approx(curve["series"]["repeat last frame"], abs=1e-6)
    clips = batch["video"].astype(np.float64) / 255
    expected = [np.square(clips[:, t] - clips[:, min(t - 1, 2)]).mean() for t in range(1, 6)]
    assert curve["series"]["model"] == pytest.approx(expected, rel=1e-4)
    assert numbers["3_to_6/mse"] == pytest.approx(np.mean(expected[2:]), rel=1e-4)
    assert numbers["3_to_6/mse_next"] == pytest.approx(np.mean(expected[:3]), rel=1e-4)
    assert (tmp_path / "rollout_3_to_6_0.png").is_file() and "PSNR" in second["columns"]
    with pytest.raises(ConfigError, match="trained on target='video', not on the next frame"):
        evaluate(task, Known(jnp.asarray(1.0), Config("video")), [batch], tmp_path)


ONE = SlotPredictionTask(SlotPredictionConfig((Rollout(1),)))


@pytest.mark.parametrize("task", [SlotPicturesTask(), ONE, LocalisationTask()])
def test_nothing_to_measure_is_said(task, tmp_path):
    model = Known(jnp.asarray(1.0), Config("video"))
    with pytest.raises(DataError, match=r"raise eval\.clips"):
        evaluate(task, model, [], tmp_path)
    assert evaluate(task, model, [{}], tmp_path, should_stop=lambda: True) == {}


@pytest.mark.parametrize("name", ["slotssm_bcb", "slotssm_video_prediction"])
def test_bfloat16_models_compute_in_bfloat16(name):
    fields = tiny(name) | dict(blocks=1, decoder_layers=1)
    c = model_config(name, **fields)
    side = c.resolution * c.patch_grid

    def run(video, target):
        model = cast_parameters(create_model(name, key=jax.random.key(0), **fields), "bfloat16")
        batch = {"video": video, "target": target}
        loss, _ = SlotPicturesTask().loss(model, None, batch, key=jax.random.key(0), step=jnp.asarray(0))
        clip = cut(jnp.zeros((1, 2, side, side, 3)), c.patch_grid)[0]
        out = model(clip)
        rolled = model.generate(clip, 2) if c.target == "next" else out.slots
        return loss, (out.slots, out.outputs.reconstruction, rolled)

    shapes = (1, 2, side, side, 3), (1, c.out_resolution, c.out_resolution, 3)
    loss, made = jax.eval_shape(run, *(jax.ShapeDtypeStruct(shape, jnp.uint8) for shape in shapes))
    assert loss.dtype == jnp.float32 and {x.dtype for x in made} == {jnp.dtype(jnp.bfloat16)}


def test_a_rollout_has_to_be_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"no rollout to measure; give eval\.rollouts"):
        evaluate(SlotPredictionTask(), Known(jnp.asarray(1.0), Config("next")), [], tmp_path)
