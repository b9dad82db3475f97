"""Every experiment of conf/exp composes, fits its schema and builds at the published size.

Which of them train at the tiny one, and which are traced, stands in small.py.
"""

import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import pytest
from omegaconf import OmegaConf

from experiments import build, validate
from experiments.compose import experiment, experiments
from experiments.folder import MAY_CHANGE, RunFolder, flat_settings
from experiments.run import check_settings, export, train_run
from experiments.schema import RunSettings
from slotzoo.errors import ConfigError, DataError
from slotzoo.models import model_card, model_config
from slotzoo.train.signals import Signals
from tests.experiments.small import settings


# Parameters of what reads the first frame, on 64 x 64 pixels and with 24 slots: two layers on the coordinates of an
# object (4 x 256 + 256 + 256 x 128 + 128 for boxes), convolutions before them, or a vector for every slot.
TOLD = {"boxes": 34_176, "centers": 33_664, "segmentation": 576_480, None: 24 * 128}
# Parameters by model: some twenty experiments share one.
COUNTED: dict[str, int] = {}


def parameters(run: RunSettings) -> int:
    """How many parameters the run's model has, without making it."""
    model = json.dumps(run.model)
    if model not in COUNTED:
        task = build.task(run)
        module = eqx.filter_eval_shape(build.module(run, task), jax.random.key(0))
        leaves = jax.tree.leaves(task.export(module))
        COUNTED[model] = sum(leaf.size for leaf in leaves if hasattr(leaf, "size"))
    return COUNTED[model]


@pytest.mark.parametrize("name", experiments())
def test_builds_at_the_published_size(name):
    run = settings(name, scale="paper")
    # The cards count what was published, which is told boxes.
    published = model_card(run.model["name"]).parameters
    told = run.model.get("conditioning", "boxes")
    assert parameters(run) == published - TOLD["boxes"] + TOLD[told]
    assert build.fit_config(run).steps == build.optimizer_config(run).steps == run.train.steps
    assert run.name == name


def test_typed_values_win_over_the_tiny_section():
    run = settings("convs5_dmlab", "train.steps=7", "data.length=20", "+model.layers=3")
    assert (run.train.steps, run.data.length, run.model["layers"]) == (7, 20, 3)
    assert run.name == "convs5_dmlab_tiny" and run.scale == "tiny"


@pytest.mark.parametrize("model", ["slot_transformer", "slot_rnn", "single_state_ssm", "rim"])
def test_the_baselines_of_slotssm_are_one_word(model):
    word = f"model={model}"
    for name in ("slotssm_bcb_earliest", "slotssm_clevrer"):
        run, plain = settings(name, word), settings(name)
        assert run.name == f"{name}_{model}_tiny" and run.model["name"] == plain.model["name"]
        config, usual = build.config_of_model(run), build.config_of_model(plain)
        mixer = {"slot_transformer": "attention", "slot_rnn": "gru", "rim": "rim"}.get(model, usual.mixer)
        assert config.mixer == mixer and (config.num_slots == 1) == (model == "single_state_ssm")
    # Of Blinking Color Balls the registry has them by name too.
    run = settings("slotssm_bcb_earliest", word, "name=mine", scale="paper")
    assert run.name == "mine" and build.config_of_model(run) == model_config(model)


def test_scale_follows_the_accelerator():
    config = experiment("convs5_dmlab")
    assert validate.with_scale(config, (), accelerator=True).scale == "paper"
    assert validate.with_scale(config, (), accelerator=False).scale == "tiny"


def test_rollouts_may_be_longer_than_training_clips_but_not_than_held_out_ones():
    run = settings("convs5_mnist300", scale="paper")
    assert build._held_out_length(run) == 1000
    run.eval.rollouts = run.eval.protocol
    assert build._held_out_length(run) == 1300
    assert [r.name for r in build.task(run).config.rollouts] == ["100_to_500", "100_to_900", "100_to_1300"]
    assert build.source(run.data, "test").frames(0) == 1300
    with pytest.raises(
        ConfigError, match="length=1300 .* clips of data.test_length=1200 .* data.test_length=1300"
    ):
        settings("convs5_mnist300", "data.test_length=1200", scale="paper")
    with pytest.raises(
        ConfigError, match="context of 500 frames .* rollouts of length=500 frames; choose 1 to 499"
    ):
        settings("convs5_mnist300", "eval.rollouts=[{context:500,length:500}]", scale="paper")


def test_what_may_change_exists():
    known = set(flat_settings(settings("convs5_dmlab", scale="paper")))
    groups = {key.split(".")[0] for key in known}
    for pattern in MAY_CHANGE:
        assert pattern in known or (pattern.endswith(".*") and pattern[:-2] in groups), pattern


def test_saved_settings_are_only_read(tmp_path):
    run = settings("vqgan_dmlab")
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


def test_a_run_can_be_read_when_its_data_have_moved(tmp_path):
    """Other commands and a resumed run may be given the new place, and a report needs no data at all."""
    before, now = tmp_path / "before", tmp_path / "now"
    before.mkdir()
    run = settings("vqgan_dmlab", f"data.root={before}", f"runs_dir={tmp_path}")
    folder = RunFolder.of(run)
    folder.write_settings(run)
    (folder.checkpoints / "2").mkdir(parents=True)
    before.rename(now)
    assert folder.read_settings() == run
    moved = settings("vqgan_dmlab", f"data.root={now}", f"runs_dir={tmp_path}")
    assert check_settings(moved, folder) == ["data.root"]
    with pytest.raises(ConfigError, match="data.root=.*before: no such folder"):
        settings("vqgan_dmlab", f"data.root={before}")
    with pytest.raises(DataError, match="before"):
        build.source(run.data, "test")


def tetrominoes(folder: Path) -> tuple[RunSettings, RunFolder]:
    """A run that was begun on other clips than it would see now."""
    typed = ("data.clips=4", "data.test_clips=4", "data.cache=null", f"runs_dir={folder}")
    run = settings("slot_attention_tetrominoes", *typed)
    begun = RunFolder.of(run)
    begun.write_settings(run)
    (begun.checkpoints / "2").mkdir(parents=True)
    begun.update_card(data={"provenance": "embedded double", "fingerprint": "another"})
    return run, begun


def test_a_run_that_is_refused_keeps_its_settings(tmp_path):
    run, folder = tetrominoes(tmp_path)
    other = dataclasses.replace(run, eval=dataclasses.replace(run.eval, clips=3))
    with Signals() as signals, pytest.raises(ConfigError, match="started on other clips"):
        train_run(other, signals)
    assert folder.read_settings() == run


def test_weights_say_that_they_come_from_a_double(tmp_path, monkeypatch):
    run, folder = tetrominoes(tmp_path)
    said = []
    monkeypatch.setattr("experiments.run.save_weights", lambda *_, notes, **__: said.append(notes))
    export(run, folder, eqx.nn.Identity(), 1)
    folder.update_card(data={"provenance": "real"})
    export(run, folder, eqx.nn.Identity(), 1)
    assert said == [
        "trained on the embedded double of tetrominoes, scale tiny",
        "trained on tetrominoes, scale tiny",
    ]


def test_derived_model_fields_must_agree():
    run = settings("vqgan_dmlab", "+model.resolution=32")
    with pytest.raises(ConfigError, match="model.resolution=32 does not fit the data set, which has 64"):
        build.complete(run, None, build.source(dataclasses.replace(run.data, cache=None), "test").spec)


def test_every_yaml_is_reachable():
    for path in sorted((validate.CONF).glob("*/*.yaml")):
        if path.parent.name != "exp":
            overrides = [f"{path.parent.name}={path.stem}"]
            assert OmegaConf.is_config(experiment("convs5_dmlab", overrides))
