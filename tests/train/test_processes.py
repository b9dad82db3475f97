"""Real processes: killed in mid-save, out of disk, and several of them over loopback."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import equinox as eqx
import jax
import numpy as np
import pytest

from slotzoo.train import load_model, saved_steps
from slotzoo.train.signals import STOPPED_EXIT_CODE
from tests.tolerance import assert_close
from tests.train.small import Linear, run_linear


ROOT = pathlib.Path(__file__).parents[2]
WIDE = 512  # enough parameters for a save to take a while


def start(folder, *options):
    command = [sys.executable, "-m", "tests.train.worker", str(folder), *map(str, options)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(folder, width):
    shapes = eqx.filter_eval_shape(lambda k: Linear(2 * width, width, key=k), jax.random.key(0))
    return load_model(folder / "checkpoints", shapes)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    run_linear(folder, width=WIDE)
    return weights(folder, WIDE)[0]


@pytest.mark.slow
def test_killed_in_mid_save_and_resumed_is_bit_exact(tmp_path, wide):
    worker = start(tmp_path, "--width", WIDE)
    checkpoints = tmp_path / "checkpoints"
    # Step 8's temporary folder: step 4 is there, and the save of 8 has begun but not ended.
    while not (unfinished := list(checkpoints.glob("8.orbax-checkpoint-tmp*"))) and worker.poll() is None:
        time.sleep(0.002)
    os.kill(worker.pid, signal.SIGKILL)
    output = worker.communicate()[0]
    assert worker.returncode == -signal.SIGKILL and unfinished, output
    assert saved_steps(checkpoints) == [4], "the save of step 8 was over before the kill"

    result = run_linear(tmp_path, width=WIDE)
    assert result.status == "finished" and not list(checkpoints.glob("*tmp*"))
    np.testing.assert_array_equal(result.state.model.weight, wide.weight)
    assert "Going on from the checkpoint of step 4" in (tmp_path / "train.log").read_text()


@pytest.mark.slow
def test_full_disk_stops_with_a_sentence_and_resumes(tmp_path, wide):
    worker = start(tmp_path, "--width", WIDE, "--limit-at", 6)
    output = worker.communicate(timeout=120)[0]
    assert worker.returncode == 1
    # Not always the last line: asyncio may report a write that nobody waited for when the interpreter ends.
    said = [line for line in output.splitlines() if line.startswith("CheckpointError: ")]
    assert len(said) == 1, output
    assert said[0].startswith("CheckpointError: The checkpoint of step 8 could not be written to"), output
    assert "quota or file size limit is reached. The last good checkpoint is step 4; make room" in said[0]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]
    result = run_linear(tmp_path, width=WIDE)
    np.testing.assert_array_equal(result.state.model.weight, wide.weight)


def pair(folder, *options, second=()):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ("--devices", 2, "--processes", 2, "--coordinator", f"127.0.0.1:{port}", *options)
    workers = [start(folder, *common, "--process", 0), start(folder, *common, "--process", 1, *second)]
    outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    return [worker.returncode for worker in workers], outputs


@pytest.mark.slow
def test_two_processes_stop_together_resume_and_equal_one(tmp_path):
    # Only the second process gets the signal; both must stop, at the same step.
    codes, outputs = pair(tmp_path / "two", second=("--terminate-at", 5))
    assert codes == [STOPPED_EXIT_CODE] * 2, outputs
    stopped = saved_steps(tmp_path / "two" / "checkpoints")
    assert 4 in stopped and stopped[-1] < 12
    codes, outputs = pair(tmp_path / "two", "--strategy", "fsdp")
    assert codes == [0, 0], outputs
    assert f"Going on from the checkpoint of step {stopped[-1]}" in outputs[0]

    one = run_linear(tmp_path / "one")
    model, step = weights(tmp_path / "two", 4)
    assert step == 12
    assert_close(model.weight, one.state.model.weight, rtol=1e-5, what="two processes against one")
    assert (tmp_path / "two" / "evaluation" / "step_12" / "picture.txt").exists()
