"""The convert command: a run's folder in, a weights file out."""

import os
import subprocess
import sys

import numpy as np
import pytest

from slotzoo.models.vqgan import VQGAN
from slotzoo.weights import load_model
from tests.weights.test_convert import ARGS, random_arrays, write_run


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
def test_mistakes_are_sentences(tmp_path):
    result = command(f"source={tmp_path}", f"out={tmp_path}/x.safetensors")
    assert result.returncode == 3 and "holds no checkpoint_<step>" in result.stderr
    assert "Traceback" not in result.stderr
