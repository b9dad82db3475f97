"""Runs that follow objects: what is refused before training, seeds measured together, and videos of a user's own."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments import build, evaluate, predict, schema
from experiments.folder import RunFolder
from slotzoo.errors import ConfigError, DataError
from slotzoo.tasks.object_videos import ObjectVideosConfig, ObjectVideosTask
from slotzoo.train.signals import STOPPED_EXIT_CODE
from slotzoo.viz import write_gif
from tests.experiments.small import asked, settings, spec
from tests.tasks.tracks import Follower, FollowerConfig


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_slots_follow_the_boxes():
    run = settings("savi_small_movi_a", "data.options.max_objects=3")
    assert build.complete(run, None, spec(run)).model["num_slots"] == 4
    few = settings("savi_small_movi_a", "data.options.max_objects=3", "+model.num_slots=3")
    with pytest.raises(
        ConfigError, match=r"model.num_slots=3: .* up to 3 objects.*\(then it is 4\).*max_objects=2"
    ):
        build.complete(few, None, spec(few))
    alone = settings("savi_small_movi_a_unconditional", "data.options.max_objects=5", "++model.num_slots=3")
    assert "up to 5 objects and a background, the model has 3 slots" in build.advice(alone, spec(alone))[0]


def test_wrong_resolution_and_missing_depth_are_refused():
    run = settings("savi_small_movi_a", "+model.height=64")
    with pytest.raises(ConfigError, match="model.height=64 does not fit the data set, which has 32"):
        build.complete(run, None, spec(run))
    run = settings("savi_small_movi_a", "++model.targets=[flow,depth]")
    assert "depth" not in spec(run) and "depth" in spec(settings("savi_pp_movi_a"))
    with pytest.raises(ConfigError, match="data.options.depth=true"):
        build.complete(run, None, spec(run))


def test_options_of_the_task_are_checked():
    with pytest.raises(ConfigError, match="no option 'chunks'.*Did you mean 'chunk'"):
        build.task(settings("savi_small_movi_a", "+options.chunks=2"))
    task = build.task(settings("statm_savi_small_movi_a"))
    assert isinstance(task, ObjectVideosTask) and task.config.chunk == 24
    assert build._held_out_length(settings("savi_small_movi_a")) == 24
    assert settings("savi_small_movi_a").data.frames_per_clip == 3


def table(score: float) -> dict:
    row = {"name": "model", "FG-ARI": score, "ARI": None}
    return {"title": "Tracks", "columns": ["FG-ARI", "ARI"], "better": {"FG-ARI": "higher"}, "rows": [row]}


def test_seeds_are_measured_together(tmp_path, monkeypatch, capsys):
    scores = {"seed0": 0.5, "seed1": 0.7, "seed10": 0.9}
    for seed in scores:
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "config.yaml").touch()

    steps = dict.fromkeys(scores, 7)

    def measured(asked, folder):
        (folder.path / "table.json").write_text(json.dumps(table(scores[folder.path.name])))
        (folder.path / "numbers.json").write_text(json.dumps({"step": steps[folder.path.name]}))
        return folder.path

    monkeypatch.setattr(evaluate, "evaluate_run", measured)
    assert evaluate.evaluate(asked(schema.EvaluateSettings, run=tmp_path)) == 0
    written = json.loads((tmp_path / "seeds_test" / "table.json").read_text())
    assert written["seeds"] == list(scores)
    (row,) = written["tables"][0]["rows"]
    assert row["FG-ARI"] == pytest.approx(0.7) and row["FG-ARI s.e."] == pytest.approx(0.2 / 3**0.5)
    assert "ARI" not in row and "mean and standard error of 3 seeds" in capsys.readouterr().out
    # Another call leaves that table as it is, and says of its own what was asked and where the seeds stood.
    assert written["steps"] == [7, 7, 7] and not written["tables"][0]["notes"]
    steps["seed1"] = 9
    assert evaluate.evaluate(asked(schema.EvaluateSettings, run=tmp_path, clips=2)) == 0
    assert json.loads((tmp_path / "seeds_test" / "table.json").read_text()) == written
    again = json.loads((tmp_path / "seeds_test_2" / "table.json").read_text())
    assert again["asked"]["clips"] == 2 and again["steps"] == [7, 9, 7]
    (note,) = again["tables"][0]["notes"]
    assert "different numbers of steps: seed0 at 7, seed1 at 9, seed10 at 7." in note
    assert note in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "evaluate_run", lambda asked, folder: None)
    assert evaluate.evaluate(asked(schema.EvaluateSettings, run=tmp_path)) == STOPPED_EXIT_CODE


def test_segments_of_a_user_are_checked_against_the_video_and_the_model(tmp_path):
    opened: Any = SimpleNamespace(
        module=Follower(FollowerConfig(height=10, width=10, conditioning="segmentation")),
        task=None,  # never asked
        settings=SimpleNamespace(name="toy"),
        step=1,
    )
    write_gif(tmp_path / "clip.gif", np.zeros((2, 20, 30, 3), np.uint8))
    for name, labels, sentence in (
        ("white", np.full((20, 30), 255), "has the labels 255; for the 3 slots"),
        ("small", np.zeros((10, 10)), "is of 10 x 10 pixels .* the frames are of 20 x 30"),
    ):
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{name}.png")
        values = dict(run="run", video=tmp_path / "clip.gif", segments=tmp_path / f"{name}.png")
        with pytest.raises(DataError, match=sentence):
            predict.follow_video(asked(schema.PredictSettings, **values), RunFolder(tmp_path), opened)


def test_a_video_of_a_user_is_followed(tmp_path):
    """With a model that knows objects by their brightness: boxes name them, and colours stay."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    opened: Any = SimpleNamespace(
        module=Follower(FollowerConfig(height=20, width=20)),
        task=ObjectVideosTask(ObjectVideosConfig(chunk=3)),
        settings=SimpleNamespace(name="toy"),
        step=1,
    )
    video = np.zeros((7, 20, 30, 3), np.uint8)
    for time in range(7):
        video[time, 4:8, 6 + time : 10 + time] = 128
        video[time, 12:16, 10:14] = 255
    write_gif(tmp_path / "clip.gif", video)
    boxes = [[4, 6, 8, 10], [12, 10, 16, 14]]

    def follow(**values):
        return predict.follow_video(asked(schema.PredictSettings, run="run", **values), folder, opened)

    assert follow(video=tmp_path / "clip.gif", boxes=boxes) == 0
    out = folder.path / "predictions" / "step_1"
    assert (out / "overview.png").is_file() and len(list((out / "clip" / "masks").glob("*.png"))) == 7
    assert {path.stem for path in (out / "clip").iterdir()} == {"tracks", "slots", "overlay", "masks"}
    with np.load(out / "clip" / "slots.npz") as file:
        assert file["masks"].shape == (7, 3, 20, 20)
        np.testing.assert_array_equal(file["boxes"][6, :, :2], [[4, 7], [12, 5]])
        np.testing.assert_array_equal(file["labels"][6, 5, 8], 1)
    for values, sentence in (
        ({}, "boxes is missing: toy is told the boxes"),
        ({"boxes": boxes, "segments": "a.png"}, "segments is not wanted: toy is told the boxes"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            follow(video=tmp_path / "clip.gif", **values)
    run = settings("savi_small_movi_a", f"runs_dir={tmp_path / 'runs'}")
    RunFolder.of(run).write_settings(run)
    with pytest.raises(ConfigError, match="video is missing: savi_small_movi_a_tiny follows objects"):
        predict.predict(asked(schema.PredictSettings, run=RunFolder.of(run).path, boxes=boxes))
    with pytest.raises(DataError, match="no such file"):
        follow(video="none.mp4", boxes=boxes)
