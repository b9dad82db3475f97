"""The suite `videos`: the authors' formulation computes the same as ours, and memory is flat in the clip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import videos
from experiments.benchmarks.videos_published import prediction
from slotzoo.models.registry import tiny
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture
def small(monkeypatch):
    fields = {name: value for name, value in tiny("savi_small").items() if name != "num_slots"}
    fields |= dict(height=16, width=16, decoder_grid=4, encoder_widths=(8, 8), encoder_strides=(1, 2))
    monkeypatch.setattr(videos, "SMALLER", fields)


@pytest.mark.parametrize("name", videos.MODELS)
def test_the_authors_formulation_computes_the_same(name, small):
    model = videos._model(name)
    clip = jax.tree.map(lambda x: x[0], videos._batch(model, 1, 2, 2))
    forms = [
        lambda clip: model(clip["video"], clip["boxes"][0]).predictions,
        lambda clip: prediction(model, clip["video"], clip["boxes"][0]),
        lambda clip: prediction(model, clip["video"], clip["boxes"][0], unrolled=True),
    ]
    ours, *theirs = jax.jit(lambda clip: [form(clip)["flow"] for form in forms])(clip)
    for flow in theirs:
        assert_close(ours, flow, rtol=1e-5, what=name)
        assert np.isfinite(np.asarray(flow)).all() and jnp.std(flow) > 0


def test_memory_does_not_grow_with_the_clip(small):
    """Twice the frames: the same scratch where they are followed frame by frame, twice as much all at once."""
    model = videos._model("savi_small")
    scratch = {}
    for frames in (8, 16):
        clip = jax.tree.map(lambda x: x[0], videos._batch(model, 1, frames, 2))
        for chunk in (1, frames):
            program = videos._followed(model, clip, chunk)
            scratch[frames, "step" if chunk == 1 else "whole"] = videos._compiled(program)[1]
    assert scratch[16, "step"] < 1.2 * scratch[8, "step"]
    assert scratch[16, "whole"] > 1.6 * scratch[8, "whole"]


def test_compile_times_are_the_best_of_the_rounds_and_ratios_those_of_a_core(small, monkeypatch):
    seconds = iter([(3.0, 4.0), (5.0, 9.0), (7.0, 8.0), (2.0, 5.0), (6.0, 6.0), (9.0, 10.0)])
    monkeypatch.setattr(videos, "_compiling", lambda program: next(seconds))
    row = videos._step_compile_row("savi_small", "tiny")
    assert row["compile_s"] == 2 and row["authors_compile_s"] == 5 and row["unrolled_compile_s"] == 7
    assert row["ratio"] == 6 / 4 and row["unrolled"] == 8 / 4
