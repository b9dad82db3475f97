"""The suite of SlotSSM's steps, at sizes that take no time."""

import functools

import jax
import numpy as np
import pytest

from experiments.benchmarks import image_torch, slotssm_step
from experiments.schema import BenchmarkSettings
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture
def small(monkeypatch):
    sizes = dict(resolution=8, out_resolution=8, encoder_dim=8, token_dim=8, dim=8, decoder_dim=8, num_slots=2)
    sizes |= dict(
        blocks=1, encoder_layers=1, decoder_layers=1, ssm_head_dim=8, encoder_heads=1, decoder_heads=1
    )
    monkeypatch.setitem(slotssm_step.SIZES, "tiny", {**sizes, "slot_heads": 1})
    monkeypatch.setattr(slotssm_step, "MIXERS", {"mamba2": {"mixer": "mamba2", "ssm_state": 4}})
    monkeypatch.setattr(slotssm_step, "FRAMES", 3)
    monkeypatch.setattr(image_torch, "installed", lambda: False)
    monkeypatch.setattr(slotssm_step, "built", functools.cache(slotssm_step.built))


def test_measures_training_and_every_part_of_a_stream(small, monkeypatch):
    def traced(calls, repeats):
        for call in calls.values():
            jax.eval_shape(call)
        return {name: [1.0] for name in calls}

    monkeypatch.setattr(slotssm_step, "in_turns", traced)
    monkeypatch.setattr(jax, "block_until_ready", lambda x: x)  # of a tracer it would only write a long message
    with jax.numpy_dtype_promotion("standard"):  # optax mixes integer counters with floats
        rows, columns = slotssm_step.run(BenchmarkSettings(suite="slotssm_step", scale="tiny", repeats=1))
    assert [(row["what"], row["part"], row.get("streams")) for row in rows] == [
        ("train step", "model", None),
        *(("stream", part, streams) for part in slotssm_step.PARTS for streams in slotssm_step.STREAMS),
    ]
    assert set().union(*rows) - {"batch", "frames"} == set(columns) - {"torch_s", "over_torch"}
    assert all(row["frame_share"] > 0 and row["scan_share"] > 0 for row in rows[1:])


def test_what_is_carried_goes_on():
    seen = []
    call = slotssm_step.carried(lambda x, y: (x + y, seen.append(float(x))), (np.float32(1.0),), 2.0, calls=2)
    call()
    call()
    assert_close(np.asarray(seen), np.asarray([1.0, 3.0, 5.0, 7.0]), rtol=0.0, what="states")
