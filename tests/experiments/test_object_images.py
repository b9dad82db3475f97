"""Runs of image models: what is said before training, and pictures of a user's own taken apart."""

import json

import jax
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from experiments import build, evaluate, predict, schema
from experiments.folder import RunFolder
from experiments.run import train_run
from slotzoo.data.spec import FieldSpec
from slotzoo.errors import ConfigError, DataError
from slotzoo.train.signals import Signals
from tests.experiments.small import asked, settings, spec


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_fewer_slots_than_objects_is_said_before_training():
    run = settings("slot_attention_clevr6", "+model.num_slots=3")
    (line,) = build.advice(run, spec(run))
    assert "up to 6 objects and a background, the model has 3 slots" in line and "model.num_slots=7" in line
    assert build.advice(settings("slot_attention_clevr6"), spec(run)) == []


def test_missing_masks_are_said_before_training():
    run = settings("slot_attention_sketchy")
    assert "sketchy has no masks" in build.advice(run, spec(run))[0]


def test_wrong_image_size_is_refused():
    run = settings("slot_attention_clevr6", "+model.resolution=64")
    with pytest.raises(ConfigError, match="model.resolution=64 does not fit the data set, which has 32"):
        build.complete(run, None, spec(run))
    run = settings("slot_attention_clevr6", "data.size=40")
    full = build.complete(run, None, spec(run))
    with pytest.raises(ConfigError, match="resolution=40; set decoder_grid"):
        build.module(full, build.task(full))(jax.random.key(0))
    wide = {"image": FieldSpec((32, 48, 3), "uint8", 0, 255, "an image", time=False)}
    with pytest.raises(ConfigError, match="images of 32 x 48 pixels"):
        build.complete(run, None, wide)


def test_options_of_tasks_and_data_are_checked():
    with pytest.raises(ConfigError, match="no option 'treshold'.*Did you mean 'threshold'"):
        build.task(settings("slot_attention_clevr6", "+options.treshold=0.2"))
    run = settings("slot_attention_clevr6", "+data.options.max_object=3")
    with pytest.raises(ConfigError, match="no option 'max_object'"):
        spec(run)


def test_no_picture_is_in_the_way_of_another_or_of_the_overview(tmp_path):
    names = (
        "overview.png",
        "overview.jpg",
        "overview.png_.gif",
        "a.png",
        "a.jpg",
        "a.png.png",
        "b.png",
        "b/c.png",
    )
    places = predict.folders([tmp_path / name for name in names], tmp_path)
    expected = ("overview.png_", "overview.jpg", "overview.png__", "a.png", "a.jpg", "a.png_", "b", "b/c")
    assert [places[tmp_path / name].as_posix() for name in names] == list(expected)
    inside = tmp_path / "Overview.png" / "a.png"
    assert predict.folders([inside], tmp_path)[inside].as_posix() == "Overview.png_/a"


@pytest.mark.slow
def test_pictures_of_a_user_are_taken_apart(tmp_path, capsys, monkeypatch):
    run = settings(
        "slot_attention_tetrominoes",
        *("train.steps=1", "train.batch_size=4", "data.clips=4", "data.test_clips=4", "eval.clips=4"),
        *("eval.batch_size=4", "eval.pictures=1", "data.cache=null", f"runs_dir={tmp_path / 'runs'}"),
    )
    with Signals() as signals:
        assert train_run(run, signals)
    folder = RunFolder.of(run)
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.bmp", "more/b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 35, 3), dtype=np.uint8)).save(pictures / name)
    options = dict(slots=11, iterations=5, background_detection="both", background_metric="distance")
    assert predict.predict(asked(schema.PredictSettings, run=folder.path, images=pictures, **options)) == 0
    assert "3 of 3 pictures were cropped to a square" in capsys.readouterr().out
    out = folder.path / "predictions" / "step_1"
    assert (out / "overview.png").is_file() and (out / "a.png" / "slot_11.png").is_file()
    assert b"Pictures of your own" in (folder.path / "report.html").read_bytes()
    with np.load(out / "more" / "b" / "slots.npz") as file:
        assert file["slots"].shape[0] == 11 and file["masks"].shape == (11, 35, 35)
        assert file["objects"].max() <= 11 and file["segments"].min() == 1
        np.testing.assert_allclose(file["masks"].sum(0), 1, rtol=1e-5)

    with monkeypatch.context() as patch:  # no data set has to be there any more: the run knows its sizes
        patch.delattr(build, "source")
        assert (
            predict.predict(
                asked(schema.PredictSettings, run=folder.path, images=pictures / "a.png", out=tmp_path / "out")
            )
            == 0
        )
    assert (tmp_path / "out" / "a" / "slot_4.png").is_file()
    with pytest.raises(DataError, match="no such folder"):
        predict.predict(asked(schema.PredictSettings, run=folder.path, images=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="slots=0: must be positive"):
        predict.predict(asked(schema.PredictSettings, run=folder.path, images=pictures, slots=0))

    # Batches are spread over all devices, and the parameters with them.
    assert jax.device_count() > 1
    again = OmegaConf.structured(schema.EvaluateSettings(run=str(folder.path)))
    assert evaluate.evaluate(again) == 0
    numbers = json.loads((folder.path / "evaluation" / "step_1_test" / "numbers.json").read_text())["numbers"]
    measured = folder.read_card()["finished"]["metrics"]
    assert numbers.keys() == measured.keys() and numbers["ari"] == pytest.approx(measured["ari"], abs=1e-4)
