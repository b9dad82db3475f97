"""Runs side by side, from what their evaluations wrote."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from experiments import compare
from experiments.evaluate import over_seeds
from experiments.folder import RunFolder
from experiments.schema import CompareSettings
from slotzoo.errors import ConfigError, DataError
from slotzoo.viz import plots
from slotzoo.viz.plots import write_plot
from tests.experiments.small import settings


def table(title, rollout, psnr, frames=4):
    curve = {
        "title": "PSNR by frame",
        "x": list(range(10, 10 + frames)),
        "x_label": "frame",
        "y_label": "PSNR (dB)",
    }
    series = {"model": [psnr] * frames, "repeat last frame": [5.0] * frames}
    rows = [{"name": "model", "PSNR": psnr, "clips": 4}, {"name": "repeat last frame", "PSNR": 5.0, "clips": 4}]
    better = {"PSNR": "higher"}
    whole = {"title": title, "columns": ["PSNR", "clips"], "better": better, "rows": rows, "notes": []}
    return {**whole, "curves": [{**curve, "series": series}], "rollout": rollout, "ms_per_frame": psnr / 10}


def run_folder(path, exp, psnr, *overrides, seed=0, provenance="embedded double", step=7):
    run = settings(exp, f"seed={seed}", f"runs_dir={path}", *overrides)
    folder = RunFolder.of(run)
    folder.write_settings(run)
    folder.update_card(data={"provenance": provenance})
    for number, value in ((step, psnr), (2, 99.0)):
        where = folder.evaluation(number)
        where.mkdir(parents=True)
        tables = [table("Rollout: 100 given", "100_to_900", value)]
        (where / "table.json").write_text(json.dumps({"tables": tables}))
    lines = [{"step": s, "split": "train", "steps_per_second": v} for s, v in ((1, 4.0), (2, 5.0), (3, 5.0))]
    (folder.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "ste')
    return str(folder.path)


def evaluated(run, provenance="embedded double", **protocol):
    """What experiments.evaluate writes beside the newest table."""
    folder = RunFolder(Path(run))
    settings = dataclasses.asdict(folder.read_settings().eval) | protocol
    (folder.evaluation(7) / "numbers.json").write_text(json.dumps({"provenance": provenance, "eval": settings}))


def ask(runs, out):
    return OmegaConf.structured(CompareSettings(runs=runs, out=str(out)))


def test_runs_stand_beside_each_other_and_what_was_published(tmp_path, capsys):
    a = run_folder(tmp_path, "convs5_mnist300", 12.5)
    b = run_folder(tmp_path, "convs5_mnist600", 13.25)
    assert compare.compare(ask([a, b], tmp_path / "out")) == 0
    rollout, elsewhere, cost = json.loads((tmp_path / "out" / "table.json").read_text())["tables"]
    rows = {row["name"]: row.get("PSNR") for row in rollout["rows"]}
    assert rows == {
        "convs5_mnist300_tiny": 12.5,
        "convs5_mnist600_tiny": 13.25,
        "repeat last frame": 5.0,
        "convs5_mnist300, published": 16.5,
        "convs5_mnist600, published": 16.4,
    }
    assert any("embedded double" in note for note in rollout["notes"])
    (curve,) = rollout["curves"]
    assert curve["series"]["convs5_mnist600_tiny"] == [13.25] * 4 and curve["series"]["repeat last frame"]
    published = {row["name"]: row["PSNR"] for row in elsewhere["rows"]}
    assert published == {"convs5_mnist300, 100_to_1300": 14.5, "convs5_mnist600, 100_to_1300": 15.6}
    assert [row["ms per step"] for row in cost["rows"]] == [200.0, 200.0]
    assert cost["rows"][1]["ms per frame (100_to_900)"] == 1.325
    assert "convs5_mnist600, published" in capsys.readouterr().out
    assert "<table>" in (tmp_path / "out" / "comparison.html").read_text()
    with Image.open(tmp_path / "out" / "psnr_by_frame_100_to_900.png") as drawn:
        assert drawn.size[0] > 300


def test_names_and_data_are_kept_apart(tmp_path):
    a = run_folder(tmp_path, "convs5_mnist300", 12.5)
    b = run_folder(tmp_path, "convs5_mnist300", 13.0, seed=1, provenance="real")
    compare.compare(ask([a, b], tmp_path / "out"))
    first = json.loads((tmp_path / "out" / "table.json").read_text())["tables"][0]
    assert [row["name"] for row in first["rows"]][:2] == [
        "convs5_mnist300_tiny, seed0",
        "convs5_mnist300_tiny, seed1",
    ]
    assert any("different data" in note for note in first["notes"])
    assert "repeat last frame" not in {row["name"] for row in first["rows"]}
    # The same name and seed elsewhere, measured on other clips of the same set.
    c = run_folder(tmp_path / "more", "convs5_mnist300", 14.0)
    RunFolder(tmp_path / "more" / "convs5_mnist300_tiny" / "seed0").evaluation(7).rename(
        tmp_path / "more" / "convs5_mnist300_tiny" / "seed0" / "evaluation" / "step_7_train_2"
    )
    compare.compare(ask([a, c, a], tmp_path / "out"))
    first = json.loads((tmp_path / "out" / "table.json").read_text())["tables"][0]
    assert [row["name"] for row in first["rows"]][:2] == [a, c] and first["rows"][1]["PSNR"] == 14.0
    assert any("different data" in note for note in first["notes"])


def test_the_data_of_a_run_are_those_that_it_was_measured_on(tmp_path):
    """Not those it was trained on: a run of the double, measured on the real set, beside one of the real set."""
    a = run_folder(tmp_path, "convs5_mnist300", 12.5)
    b = run_folder(tmp_path, "convs5_mnist600", 13.0, provenance="real")
    for measured_on, alike in (("real", True), ("embedded double", False)):
        evaluated(a, provenance=measured_on)
        compare.compare(ask([a, b], tmp_path / "out"))
        first = json.loads((tmp_path / "out" / "table.json").read_text())["tables"][0]
        assert any("different data" in note for note in first["notes"]) != alike
        assert any("embedded double" in note for note in first["notes"]) != alike


def test_numbers_of_seeds_are_matched_by_name():
    """A seed whose tables or rows stand in another order, or lack some, gives its numbers to the rows of their name."""
    one = {"title": "Segments of 8 held-out images", "columns": ["ARI", "FG-ARI"]}
    two = {"title": "Loss", "columns": ["value"]}
    rows = lambda **found: [{"name": name, **numbers} for name, numbers in found.items()]
    first = [
        one | {"rows": rows(model={"ARI": 1.0, "FG-ARI": 2.0}, stripes={"ARI": 5.0}, best={"ARI": 9.0})},
        two | {"rows": rows(mse={"value": 10.0}, psnr={"value": 20.0})},
    ]
    second = [
        two | {"rows": rows(psnr={"value": 22.0}, kl={"value": 1.0}, mse={"value": 12.0})},
        one
        | {"title": "Segments of 9 held-out images"}
        | {"rows": rows(stripes={"ARI": 7.0}, model={"ARI": 3.0, "FG-ARI": None})},
    ]
    segments, loss = over_seeds([{"tables": first}, {"tables": second}])
    assert segments["rows"] == [
        {"name": "model", "ARI": 2.0, "ARI s.e.": 1.0},
        {"name": "stripes", "ARI": 6.0, "ARI s.e.": 1.0},
        {"name": "best"},
    ]
    assert [(row["name"], row["value"], row["value s.e."]) for row in loss["rows"]] == [
        ("mse", 11.0, 1.0),
        ("psnr", 21.0, 1.0),
    ]


def test_runs_that_were_not_measured_alike_are_marked(tmp_path, capsys):
    """Fewer clips or more samples: every row says so, and the trivial rows of one of them are left out."""
    a = run_folder(tmp_path, "convs5_mnist300", 12.5)
    b = run_folder(tmp_path, "convs5_mnist600", 13.25)
    evaluated(a, clips=16)  # as training measured b
    compare.compare(ask([a, b], tmp_path / "out"))
    assert "not measured in the same way" not in capsys.readouterr().out
    evaluated(b, clips=4, samples=10)
    compare.compare(ask([a, b], tmp_path / "out"))
    said = capsys.readouterr().out
    assert "convs5_mnist300_tiny: clips=16, samples=1; convs5_mnist600_tiny: clips=4, samples=10" in said
    assert "experiments.evaluate run=FOLDER" in said
    tables = json.loads((tmp_path / "out" / "table.json").read_text())["tables"]
    names = [row["name"] for row in tables[0]["rows"]]
    marked = ["convs5_mnist300_tiny (clips=16, samples=1)", "convs5_mnist600_tiny (clips=4, samples=10)"]
    assert names[:2] == marked and "repeat last frame" not in names
    assert list(tables[0]["curves"][0]["series"])[:2] == marked
    assert any("not measured in the same way" in note for note in tables[0]["notes"])
    # More clips than there are make no difference.
    evaluated(a, clips=100)
    evaluated(b, clips=50)
    compare.compare(ask([a, b], tmp_path / "out"))
    assert "not measured in the same way" not in capsys.readouterr().out


def test_options_of_the_data_are_part_of_how_a_run_was_measured(tmp_path, capsys):
    a = run_folder(tmp_path, "savi_small_movi_a", 12.5)
    # What is read beside the frames makes no difference.
    b = run_folder(tmp_path, "savi_small_movi_a", 13.0, "++data.options.depth=true", "name=deep")
    compare.compare(ask([a, b], tmp_path / "out"))
    assert "not measured in the same way" not in capsys.readouterr().out
    c = run_folder(tmp_path, "savi_small_movi_a", 14.0, "data.options.max_objects=3", "name=few")
    compare.compare(ask([a, c], tmp_path / "out"))
    said = capsys.readouterr().out
    assert "savi_small_movi_a_tiny: data.options.max_objects=4; few: data.options.max_objects=3" in said
    d = run_folder(tmp_path, "savi_small_movi_a", 14.0, "++data.options.test_split=validation", "name=other")
    compare.compare(ask([a, d], tmp_path / "out"))
    said = capsys.readouterr().out
    assert "savi_small_movi_a_tiny: data.options.test_split=not given" in said
    assert 'other: data.options.test_split="validation"' in said


def test_tables_of_different_numbers_of_clips_are_one(tmp_path):
    runs = []
    for seed, clips in ((0, 64), (1, 16)):
        run = run_folder(tmp_path, "convs5_mnist300", 12.5, seed=seed)
        one = table(f"Segments of {clips} held-out images", None, 0.5 + seed)
        (RunFolder(Path(run)).evaluation(7) / "table.json").write_text(json.dumps({"tables": [one]}))
        evaluated(run, clips=clips // 8)
        runs.append(run)
    compare.compare(ask(runs, tmp_path / "out"))
    first = json.loads((tmp_path / "out" / "table.json").read_text())["tables"][0]
    assert first["title"] == "Segments of held-out images"
    assert [row["PSNR"] for row in first["rows"][:2]] == [0.5, 1.5]


def test_the_best_of_several_samples_is_named_after_its_run(tmp_path):
    runs = []
    for exp, psnr in (("convs5_mnist300", 12.5), ("convs5_mnist600", 13.0)):
        run = run_folder(tmp_path, exp, psnr)
        one = table("Rollout: 10 given", "10", psnr)
        one["rows"].insert(1, {"name": "model, best of 4", "PSNR": psnr + 1, "clips": 4})
        one["curves"][0]["series"]["model, best of 4"] = [psnr + 1] * 4
        (RunFolder(Path(run)).evaluation(7) / "table.json").write_text(json.dumps({"tables": [one]}))
        runs.append(run)
    compare.compare(ask(runs, tmp_path / "out"))
    first = json.loads((tmp_path / "out" / "table.json").read_text())["tables"][0]
    assert [(row["name"], row["PSNR"]) for row in first["rows"]] == [
        ("convs5_mnist300_tiny", 12.5),
        ("convs5_mnist300_tiny, best of 4", 13.5),
        ("convs5_mnist600_tiny", 13.0),
        ("convs5_mnist600_tiny, best of 4", 14.0),
        ("repeat last frame", 5.0),
    ]
    series = first["curves"][0]["series"]
    assert list(series) == ["convs5_mnist300_tiny", "convs5_mnist600_tiny", "repeat last frame"]


def test_tables_of_a_measure_per_row_keep_all_rows(tmp_path):
    runs = []
    tokens = {"title": "Cross-entropy of held-out tokens", "columns": ["nats per token"]}
    for seed, measures in ((0, {"loss": 123.5, "psnr": 20.0}), (1, {"loss": 99.0, "kl": 3.0, "psnr": 21.0})):
        run = run_folder(tmp_path, "convs5_mnist300", 12.5, seed=seed)
        values = [{"name": name, "value": value} for name, value in measures.items()]
        later = [{"name": "next frame, frames seen", "nats per token": 1.0 + seed}]
        later.append({"name": "later frames, actions only", "nats per token": 4.0 + seed})
        loss = {
            "title": "Reconstruction and loss",
            "columns": ["value"],
            "rows": values,
            "notes": ["PSNR in dB."],
        }
        written = json.dumps({"tables": [loss, {**tokens, "rows": later}]})
        (RunFolder(Path(run)).evaluation(7) / "table.json").write_text(written)
        runs.append(run)
    compare.compare(ask(runs, tmp_path / "out"))
    loss, tokens, *_ = json.loads((tmp_path / "out" / "table.json").read_text())["tables"]
    name = "convs5_mnist300_tiny, seed"
    assert [(row["name"], row["value"]) for row in loss["rows"]] == [
        (f"{name}0, loss", 123.5),
        (f"{name}1, loss", 99.0),
        (f"{name}0, psnr", 20.0),
        (f"{name}1, psnr", 21.0),
        (f"{name}1, kl", 3.0),
    ]
    assert [(row["name"], row["nats per token"]) for row in tokens["rows"]] == [
        (f"{name}0, next frame, frames seen", 1.0),
        (f"{name}1, next frame, frames seen", 2.0),
        (f"{name}0, later frames, actions only", 4.0),
        (f"{name}1, later frames, actions only", 5.0),
    ]


def test_curves_of_several_rollouts_are_pictures_of_their_own(tmp_path, monkeypatch):
    """Also of tables that say in their title only which rollout they are of, as those of prediction by slots."""
    run = run_folder(tmp_path, "convs5_mnist300", 12.5)
    titles = [f"Squared error of 4 held-out clips: {n} frames given, without actions" for n in (2, 6)]
    tables = [{**table(title, "", 1.0), "ms_per_frame": None} for title in (*titles, "Elsewhere")]
    (RunFolder(Path(run)).evaluation(7) / "table.json").write_text(json.dumps({"tables": tables}))
    drawn = {}
    monkeypatch.setattr(
        plots, "write_plot", lambda path, series, title, **labels: drawn.update({path.name: title})
    )
    compare.compare(ask([run], tmp_path / "out"))
    assert drawn == {
        "psnr_by_frame_2_frames_given_without_actions.png": "PSNR by frame, 2 frames given, without actions",
        "psnr_by_frame_6_frames_given_without_actions.png": "PSNR by frame, 6 frames given, without actions",
        "psnr_by_frame.png": "PSNR by frame",
    }


def test_what_cannot_be_compared_is_said(tmp_path):
    run = run_folder(tmp_path, "convs5_mnist300", 12.5)
    with pytest.raises(ConfigError, match=r"runs=\[\]: give the folders"):
        compare.compare(ask([], tmp_path / "out"))
    with pytest.raises(ConfigError, match="no such folder"):
        compare.compare(ask([f"{run}x"], tmp_path / "out"))
    newest = RunFolder(tmp_path / "convs5_mnist300_tiny" / "seed0").evaluation(7) / "table.json"
    newest.with_name("numbers.json").write_text("[")
    with pytest.raises(DataError, match=r"numbers\.json: cannot be read"):
        compare.compare(ask([run], tmp_path / "out"))
    newest.write_text("{}")
    with pytest.raises(DataError, match="is not the table of an evaluation"):
        compare.compare(ask([run], tmp_path / "out"))
    for path in newest.parent.parent.glob("*/table.json"):
        path.unlink()
    with pytest.raises(ConfigError, match="was not evaluated yet"):
        compare.compare(ask([run], tmp_path / "out"))


def test_a_plot_has_its_lines_and_refuses_to_be_empty(tmp_path):
    x = list(range(50))
    path = write_plot(
        tmp_path / "a.png", {"a": (x, [float(v) for v in x]), "b": (x, [None] * 50)}, title="A", x_label="x"
    )
    picture = np.asarray(Image.open(path))
    assert (picture == np.array([0, 0x72, 0xB2])).all(-1).sum() > 200
    with pytest.raises(DataError, match="no finite values"):
        write_plot(tmp_path / "b.png", {"a": (x, [None] * 50)}, title="A", x_label="x")
