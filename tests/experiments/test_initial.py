"""Runs that begin with the parameters of another one: which are taken, and what is said where they do not fit."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

from experiments import build, initial
from experiments.folder import RunFolder
from experiments.schema import RunSettings
from slotzoo.errors import ConfigError, WeightsError
from slotzoo.weights import named_leaves, save_weights
from tests.experiments.small import settings


def model_of(run: RunSettings) -> Any:
    """Its model, filled with numbers that tell the leaves apart."""
    shapes = eqx.filter_eval_shape(build.module(run, build.task(run)), jax.random.key(0))
    number = {name: i for i, name in enumerate(named_leaves(shapes))}
    fill = lambda path, x: np.full(
        x.shape, number[jax.tree_util.keystr(path, simple=True, separator=".")], x.dtype
    )
    dynamic, static = eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return eqx.combine(jax.tree_util.tree_map_with_path(fill, dynamic), static)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "seed0"
    folder.mkdir()
    run = settings("slotssm_cater_pretraining")
    model = model_of(run)
    save_weights(
        folder / "weights.safetensors", model, name=run.model["name"], config=build.config_of_model(run)
    )
    return folder, model


def begun(run: RunSettings, where: Any, **changed: Any) -> dict[str, Any]:
    run = dataclasses.replace(run, **changed)
    return initial.leaves(run, RunFolder(where), build.task(run))


def test_localisation_begins_with_the_encoder_and_the_slots_of_reconstruction(pretrained, tmp_path):
    folder, model = pretrained
    run = settings("slotssm_cater", f"init_from={folder}")
    found = begun(run, tmp_path)
    theirs = named_leaves(model)
    assert {name.split(".")[0] for name in found} == {"encoder", "stack"}
    assert set(found) == {name for name in theirs if not name.startswith("decoder.")}
    for name, value in found.items():
        np.testing.assert_array_equal(value, theirs[name])
    said = initial.sentence(run, found)
    assert said.startswith(f"Begins with encoder, stack of {folder}, ") and "drawn by the seed" in said
    # A file serves as well, and a part of a part.
    file = str(folder / "weights.safetensors")
    assert set(begun(run, tmp_path, init_from=file, init_parts=["stack.start"])) == {"stack.start"}
    assert begun(run, tmp_path, init_from=None) == {}


def test_what_goes_on_already_begins_with_nothing(tmp_path):
    run = settings("slotssm_cater", "init_from=gone")
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert RunFolder(tmp_path).has_checkpoint() and begun(run, tmp_path) == {}


def test_what_does_not_fit_is_said(pretrained, tmp_path):
    folder, _ = pretrained
    run = settings("slotssm_cater", f"init_from={folder}")
    for changed, error, sentence in (
        ({"init_from": "runs/gone"}, ConfigError, "init_from=runs/gone: no such folder or file"),
        (
            {"init_from": str(tmp_path)},
            ConfigError,
            "holds no weights.safetensors, so that run is not finished",
        ),
        (
            {"init_parts": ["encodr"]},
            ConfigError,
            "no part 'encodr'. Did you mean 'encoder'.*: encoder, stack, decoder",
        ),
        (
            {"init_parts": []},
            WeightsError,
            r"leaves do not match .*init_parts=\[encoder,stack\] takes over what fits",
        ),
        (
            {"init_parts": ["decoder"]},
            WeightsError,
            r"9 missing .*35 unexpected .*init_parts=\[encoder,stack\]",
        ),
        (
            {"model": {**run.model, "dim": 64}},
            WeightsError,
            r"leaf 'stack.* has shape \(128,\), the model wants \(256,\).*init_parts=\[encoder\] takes over what fits",
        ),
        ({"model": {**run.model, "blocks": 1}}, WeightsError, "unexpected .*'stack.blocks.1"),
    ):
        with pytest.raises(error, match=sentence):
            begun(run, tmp_path, **changed)
    tokenizer = settings("vqgan_dmlab", f"init_from={folder}")
    with pytest.raises(ConfigError, match="a tokenizer trains more than a model"):
        begun(tokenizer, tmp_path)
