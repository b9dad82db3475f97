"""The convert command: a run's folder in, a weights file out."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import schema
from experiments.convert import convert
from experiments.validate import CONF
from slotzoo.errors import ConfigError
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights import load_model
from slotzoo.weights.convert.convssm import read_run
from slotzoo.weights.convert.slotssm import export_folder
from tests.arrays import random_module, same_record
from tests.weights.test_convert import ARGS, random_arrays, write_run
from tests.weights.test_convert_slotssm import SMALL


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.convert", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


@pytest.mark.slow
def test_convert(tmp_path):
    arrays = random_arrays()
    run = write_run(tmp_path / "vqgan", ARGS, arrays)
    out = tmp_path / "vqgan.safetensors"
    result = command(f"source={run}", f"out={out}", "origin=https://example.org/vqgan")
    assert result.returncode == 0, result.stderr
    model, card = load_model(out)
    assert isinstance(model, VQGAN) and card.source == "https://example.org/vqgan"
    np.testing.assert_array_equal(model.codebook, arrays["stats/quantize/embeddings"])
    assert "parameters of step 0" in result.stdout


@pytest.mark.slow
def test_slotssm_there_and_back(tmp_path):
    theirs = export_folder(random_module(lambda: SlotSSM(SMALL, key=jax.random.key(0))), tmp_path / "step_7")
    weights, back = tmp_path / "slotssm.safetensors", tmp_path / "back"
    result = command(f"source={theirs}", f"out={weights}")
    assert result.returncode == 0 and "of step 7" in result.stdout, result.stderr
    result = command(f"source={weights}", f"out={back}")
    assert result.returncode == 0, result.stderr
    for part in ("vitencoder", "slotssm", "vitdecoder"):
        for name in ("config.json", "model.safetensors"):
            assert (back / part / name).read_bytes() == (theirs / part / name).read_bytes()


def test_vqgan_there_and_back(tmp_path):
    run = write_run(tmp_path / "vqgan", ARGS, random_arrays())
    schema.register()
    for source, out in ((run, tmp_path / "x.safetensors"), (tmp_path / "x.safetensors", tmp_path / "back")):
        with initialize_config_dir(str(CONF.absolute()), version_base="1.3"):
            assert convert(compose("convert", [f"source={source}", f"out={out}"])) == 0
    assert same_record(read_run(tmp_path / "back").arrays, read_run(run).arrays)


@pytest.mark.slow
def test_mistakes_are_sentences(tmp_path):
    result = command(f"source={tmp_path}", f"out={tmp_path}/x.safetensors")
    assert result.returncode == 3 and "holds no checkpoint_<step>" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_of_ours_is_no_published_checkpoint(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    asked = schema.ConvertSettings(source=str(tmp_path), out=str(tmp_path / "x.safetensors"))
    with pytest.raises(ConfigError, match=r"slotzoo's own, whose weights\.safetensors loads as it is"):
        convert(OmegaConf.structured(asked))
