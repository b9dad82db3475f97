"""Runs of SlotSSM: what is made of the data set's sizes, what is said when they do not fit; the suite of lengths."""

import json

import jax
import pytest

from experiments import build
from experiments.benchmarks import slotssm_length
from experiments.schema import BenchmarkSettings, RunSettings
from slotzoo.errors import ConfigError, DataError
from slotzoo.models.registry import tiny
from tests.arrays import random_module
from tests.experiments.small import settings, spec


def completed(run: RunSettings) -> RunSettings:
    return build.complete(run, None, spec(run))


def test_a_frame_is_cut_into_as_many_squares_as_asked():
    for grid in (2, 4, 8):
        config = build.config_of_model(
            completed(settings("slotssm_bcb_earliest", f"++model.patch_grid={grid}"))
        )
        assert (config.resolution * grid, config.out_resolution) == (32, 32)
    with pytest.raises(ConfigError, match=r"frames of 32 x 32 pixels; .* model\.patch_grid=5 divides"):
        completed(settings("slotssm_bcb_earliest", "++model.patch_grid=5"))
    with pytest.raises(ConfigError, match=r"model\.resolution=10 does not fit the data set, which has 32"):
        completed(settings("slotssm_bcb_earliest", "++model.resolution=10"))


def test_wrong_options_are_named():
    with pytest.raises(ConfigError, match="no rule=first"):
        completed(settings("slotssm_bcb_earliest", "data.options.rule=first"))
    with pytest.raises(ConfigError, match="no option 'frame'.*Did you mean 'frames'"):
        build.task(settings("slotssm_cater", "+options.frame=3"))
    with pytest.raises(ConfigError, match=r"'lstm' is none of .*'gru'"):
        build.config_of_model(settings("slotssm_cater", "++model.mixer=lstm"))


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="clips are generated, there is nothing published to read"):
        completed(settings("slotssm_bcb_earliest", f"data.root={tmp_path}"))
    with pytest.raises(DataError, match="holds no CATER: it is empty"):
        completed(settings("slotssm_cater", f"data.root={tmp_path}"))


def test_held_out_clips_are_as_long_as_their_rollouts():
    run = settings("slotssm_video_prediction")
    assert build._held_out_length(run) == 30 and run.data.length == 10
    (rollout,) = build.task(run).config.rollouts
    assert (rollout.context, rollout.length, rollout.name) == (10, 30, "10_to_30")


def test_the_suite_of_lengths_measures_every_model_at_every_length(tmp_path, monkeypatch, traced_only):
    traced_only |= {"slotssm": 1.0, "slot_transformer": 3.0}
    built = slotssm_length._built
    monkeypatch.setattr(slotssm_length, "_built", lambda *of: random_module(lambda: built(*of)))
    monkeypatch.setattr(slotssm_length, "tiny", lambda name: tiny(name) | {"blocks": 1})
    models = {name: slotssm_length.MODELS[name] for name in ("slotssm", "slot_transformer")}
    monkeypatch.setattr(slotssm_length, "MODELS", models)
    monkeypatch.setattr(slotssm_length, "LENGTHS", ((2, 4), (1, 2)))
    asked = BenchmarkSettings(suite="slotssm_length", scale="tiny", repeats=1, output=str(tmp_path))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counters with floats
        rows, columns = slotssm_length.run(asked)
    assert [row["steps"] for row in rows] == [4] * 6 + [32] * 6 and set(columns) <= set(rows[0])
    json.dumps(rows)
    by_name = {(r["what"], r["model"], r["steps"]): r for r in rows}
    assert by_name["forward", "slot_transformer", 32]["slower"] == 3
    # The same time for eight times as many steps.
    assert by_name["train step", "slotssm", 32]["growth"] == pytest.approx(1 / 8)
    assert by_name["stream", "slot_transformer", 32]["us_per_step"] == 3e6
    assert len(list(tmp_path.glob("slotssm_length_*.png"))) == 2
