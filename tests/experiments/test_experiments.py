"""Every experiment of conf/exp composes, fits its schema, builds at the published size and trains at the tiny one."""

import dataclasses

import equinox as eqx
import jax
import pytest
from omegaconf import OmegaConf

from experiments import build, validate
from experiments.compose import experiment, experiments
from experiments.folder import MAY_CHANGE, RunFolder, flat_settings
from experiments.run import open_run, train_run
from experiments.schema import RunSettings
from slotzoo.errors import ConfigError
from slotzoo.models import model_card
from slotzoo.train.signals import Signals


def settings(name: str, scale: str, *overrides: str) -> RunSettings:
    config = experiment(name, [f"scale={scale}", *overrides])
    return validate.settings(validate.with_scale(config, overrides, accelerator=False), RunSettings)


@pytest.mark.parametrize("name", experiments())
def test_builds_at_the_published_size(name):
    run = settings(name, "paper")
    task = build.task(run)
    module = eqx.filter_eval_shape(build.module(run, task), jax.random.key(0))
    model = task.export(module)
    count = sum(leaf.size for leaf in jax.tree.leaves(model) if hasattr(leaf, "size"))
    assert count == model_card(run.model["name"]).parameters
    assert build.fit_config(run).steps == build.optimizer_config(run).steps == run.train.steps
    assert run.name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", experiments())
def test_trains_two_steps(name, tmp_path):
    small = (
        "train.steps=2",
        "train.batch_size=4",
        "data.clips=8",
        "data.test_clips=4",
        "eval.clips=4",
        "eval.batch_size=4",
        "eval.pictures=1",
        f"data.cache={tmp_path / 'cache'}",
        f"runs_dir={tmp_path / 'runs'}",
    )
    run = settings(name, "tiny", *small)
    first = run.tokenizer.exp if build.wants_tokens(run) else None
    with Signals() as signals:
        for each in (settings(first, "tiny", *small), run) if first else (run,):
            assert train_run(each, signals)
    folder = RunFolder.of(run)
    assert (folder.path / "report.html").is_file()
    assert (folder.evaluation(2) / "table.json").is_file()
    assert open_run(folder).step == 2
    assert flat_settings(folder.read_settings()) == flat_settings(run)


def test_typed_values_win_over_the_tiny_section():
    run = settings("convs5_dmlab", "tiny", "train.steps=7", "data.length=20", "+model.layers=3")
    assert (run.train.steps, run.data.length, run.model["layers"]) == (7, 20, 3)
    assert run.name == "convs5_dmlab_tiny" and run.scale == "tiny"


def test_scale_follows_the_accelerator():
    config = experiment("convs5_dmlab")
    assert validate.with_scale(config, (), accelerator=True).scale == "paper"
    assert validate.with_scale(config, (), accelerator=False).scale == "tiny"


def test_what_may_change_exists():
    known = set(flat_settings(settings("convs5_dmlab", "paper")))
    groups = {key.split(".")[0] for key in known}
    for pattern in MAY_CHANGE:
        assert pattern in known or (pattern.endswith(".*") and pattern[:-2] in groups), pattern


def test_saved_settings_are_only_read(tmp_path):
    run = settings("vqgan_dmlab", "tiny")
    folder = RunFolder(tmp_path)
    folder.write_settings(run)
    assert folder.read_settings() == run
    text = folder.config.read_text()
    folder.config.write_text(text.replace("name: vqgan_dmlab_tiny", "name: ${oc.env:HOME}"))
    with pytest.raises(ConfigError, match="interpolation"):
        folder.read_settings()
    folder.config.write_text(text + "surprise: 1\n")
    with pytest.raises(ConfigError, match="surprise"):
        folder.read_settings()


def test_derived_model_fields_must_agree():
    run = settings("vqgan_dmlab", "tiny", "+model.resolution=32")
    with pytest.raises(ConfigError, match="model.resolution=32 does not fit the data set, which has 64"):
        build.complete(run, None, build.source(dataclasses.replace(run.data, cache=None), "test").spec)


def test_every_yaml_is_reachable():
    for path in sorted((validate.CONF).glob("*/*.yaml")):
        if path.parent.name != "exp":
            overrides = [f"{path.parent.name}={path.stem}"]
            assert OmegaConf.is_config(experiment("convs5_dmlab", overrides))
