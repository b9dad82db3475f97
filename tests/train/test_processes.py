"""A real process that is killed in the middle of a save; tests/system has real commands, and several processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from slotzoo.train import saved_steps
from tests.train.small import run_linear


ROOT = pathlib.Path(__file__).parents[2]
WIDE = 512  # enough parameters for a save to take a while
WORKER = "import sys; from tests.train.small import run_linear; run_linear(sys.argv[1], width=int(sys.argv[2]))"


@pytest.mark.slow
def test_killed_in_mid_save_and_resumed_is_bit_exact(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(killed), str(WIDE)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    checkpoints = killed / "checkpoints"
    # Step 8's temporary folder: step 4 is there, and the save of 8 has begun but not ended.
    while not (unfinished := list(checkpoints.glob("8.orbax-checkpoint-tmp*"))) and worker.poll() is None:
        time.sleep(0.002)
    os.kill(worker.pid, signal.SIGKILL)
    output = worker.communicate()[0]
    assert worker.returncode == -signal.SIGKILL and unfinished, output
    assert saved_steps(checkpoints) == [4], "the save of step 8 was over before the kill"

    result = run_linear(killed, width=WIDE)
    assert result.status == "finished" and not list(checkpoints.glob("*tmp*"))
    expected = run_linear(straight, width=WIDE).state.model
    np.testing.assert_array_equal(result.state.model.weight, expected.weight)
    assert "Going on from the checkpoint of step 4" in (killed / "train.log").read_text()
