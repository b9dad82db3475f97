"""However a run is stopped, the same command goes on, and ends where an uninterrupted run ends, bit for bit."""

import json
import signal
import socket

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


def test_signal_saves_and_resumes(place, straight):
    process = place.start("train", *MODEL, place.tokenizer)
    interrupt(process, lambda: logged(place.run, 1), signal.SIGTERM)
    output = finish(process, code=75)
    assert "Received SIGTERM" in output
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


def test_longer_training_continues(begun):
    # Within the warm-up the learning rate is the same, however long the run is to be.
    output = begun.train("train.steps=4")
    assert "Going on under changed settings: train.steps" in output
    assert "Going on from the checkpoint of step 2" in output
    assert sorted(losses(begun.run)) == [1, 2, 3, 4]


def test_finished_run_is_left_alone(begun):
    before = (begun.run / "weights.safetensors").read_bytes()
    assert "Finished already" in begun.train("train.steps=2")
    assert (begun.run / "weights.safetensors").read_bytes() == before


def test_four_devices_and_then_one_equal_one(place, straight):
    """Trained and saved on four devices with the state split over them, and gone on with on one that holds it all."""
    assert "on 4 cpu devices, fsdp" in place.train("train.steps=4", "mesh=fsdp", devices=4)
    saved = json.loads((place.run / "checkpoints" / "4" / "model" / "_sharding").read_text())
    assert any("data" in json.loads(sharding)["partition_spec"] for sharding in saved.values())
    output = place.train(devices=1)
    assert "Going on from the checkpoint of step 4" in output and "on 1 cpu device, replicated" in output
    assert_close_runs(place.run, straight, rtol=1e-5)


def start_two(place, *overrides):
    """Start two processes of one run over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    joined = ("mesh.processes=2", f"mesh.coordinator=127.0.0.1:{port}", *overrides)
    command = ("train", *MODEL, place.tokenizer, *joined)
    return [place.start(*command, f"mesh.process_id={number}") for number in range(2)]


def test_two_processes_stop_together_resume_and_equal_one(place, straight):
    # Only the second process gets the signal; both must stop, at the same step.
    first, second = start_two(place)
    interrupt(second, lambda: logged(place.run, 1), signal.SIGTERM)
    outputs = [finish(process, code=75) for process in (first, second)]
    assert "Received SIGTERM" in outputs[1] and "by a signal to another process" in outputs[0]
    done = max(losses(place.run))
    assert 1 <= done < 6
    outputs = [finish(process) for process in start_two(place, "mesh=fsdp")]
    assert f"Going on from the checkpoint of step {done}" in outputs[0]
    assert_close_runs(place.run, straight, rtol=1e-5)
