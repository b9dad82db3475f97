"""However a run is stopped, the same command goes on, and ends where an uninterrupted run ends, bit for bit."""

import signal

import pytest

from tests.system.commands import (
    MODEL,
    assert_close_runs,
    assert_equal_runs,
    finish,
    interrupt,
    losses,
)


pytestmark = pytest.mark.slow


def saves_begun(run):
    """Whether a checkpoint of step 4 is being written."""
    return any((run / "checkpoints").glob("4.orbax-checkpoint-tmp*"))


def logged(run, step):
    path = run / "metrics.jsonl"
    return path.is_file() and f'"step": {step},' in path.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_signal_saves_and_resumes(place, straight, number):
    process = place.start("train", *MODEL, place.tokenizer)
    interrupt(process, lambda: logged(place.run, 1), number)
    output = finish(process, code=75)
    assert f"Received {number.name}" in output
    assert "the same command goes on" in output
    done = max(losses(place.run))
    assert 1 <= done < 6
    assert "Going on" in place.train()
    assert_equal_runs(place.run, straight)


def test_kill_in_mid_save(place, straight):
    process = place.start("train", *MODEL, place.tokenizer)
    interrupt(process, lambda: saves_begun(place.run), signal.SIGKILL)
    finish(process, code=-signal.SIGKILL)
    place.train()
    assert_equal_runs(place.run, straight)


def test_torn_newest_checkpoint(place, straight):
    process = place.start("train", *MODEL, place.tokenizer)
    interrupt(process, lambda: (place.run / "checkpoints" / "4").is_dir(), signal.SIGKILL)
    finish(process, code=-signal.SIGKILL)
    data = [path for path in (place.run / "checkpoints" / "4" / "model").rglob("d/*") if path.is_file()]
    assert data
    for path in data:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    output = place.train()
    assert "The checkpoint of step 4 cannot be read" in output and "going on from step 2" in output
    assert_equal_runs(place.run, straight)


def test_no_readable_checkpoint_is_no_new_start(begun):
    for path in (begun.run / "checkpoints").glob("*/model/**/d/*"):
        path.write_bytes(b"")
    output = begun.train("train.steps=4", code=3)
    assert "none can be read" in output and "does not start over by itself" in output


def test_disk_full(begun, straight):
    output = begun.train("train.evaluate_every=6", "eval.pictures=0", code=3, file_limit=20_000)
    assert "could not be written" in output and "The last good checkpoint is step 2" in output
    begun.train()
    assert_equal_runs(begun.run, straight)


def test_longer_training_continues(place):
    place.train("train.steps=2", "optim.schedule=constant")
    output = place.train("train.steps=6", "optim.schedule=constant")
    assert "train.steps" in output and "Going on" in output
    assert sorted(losses(place.run)) == [1, 2, 3, 4, 5, 6]


def test_finished_run_is_left_alone(begun):
    before = (begun.run / "weights.safetensors").read_bytes()
    assert "Finished already" in begun.train("train.steps=2")
    assert (begun.run / "weights.safetensors").read_bytes() == before


def test_four_devices_equal_one(place, straight):
    place.train(devices=4)
    assert_close_runs(place.run, straight, rtol=1e-5)
    # Saved on four, resumed on one, with the state split.
    other = place.folder / "runs" / "fsdp" / "seed0"
    place.train("name=fsdp", "train.steps=6", "mesh=fsdp", devices=2)
    assert_close_runs(other, straight, rtol=1e-5)
