"""Real commands at the smallest size that still goes through everything: seconds each, most of it compilation."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


# The names of the data set, the tokenizer and the sequence model at this size.
DATA = ("data.clips=8", "data.test_clips=3", "data.length=6", "data.cache=cache")
TOKENIZER = (
    "+exp=vqgan_dmlab",
    "scale=tiny",
    *DATA,
    "train.steps=2",
    "train.batch_size=4",
    "model.ch_mult=[1]",
    "model.patch=8",
    "model.mid_attention=false",
    "model.z_channels=32",
    "model.n_embed=32",
    "model.embed_dim=4",
)
MODEL = (
    "+exp=convs5_dmlab",
    "scale=tiny",
    *DATA,
    "train.steps=6",
    "train.batch_size=4",
    "train.log_every=1",
    "train.save_every=2",
    "train.evaluate_every=3",
    "model.encoder_depths=[32]",
    "model.decoder_depths=[32]",
    "model.d_model=32",
    "model.ssm_size=8",
    "model.layers=1",
    "model.open_loop_context=3",
    "eval.clips=3",
    "eval.batch_size=2",
    "eval.lpips=false",
    "eval.pictures=1",
    "eval.rollouts=[{context: 3, actions: true}]",
)


# Becomes the command given after a limit in bytes, to which the system then keeps every file: as on a full disk.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


# What `Interpreter` runs: a command or a block of Python a line, each followed by its exit code.
SERVED = """
import importlib, json, sys, traceback
sys.stderr = sys.stdout
for line in sys.stdin:
    command, *arguments = json.loads(line)
    code = 0
    try:
        if command == "-c":
            exec(arguments[0], {"__name__": "__main__"})
        else:
            sys.argv = [command, *arguments]
            importlib.import_module(f"experiments.{command}").main()
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    print(f"\\nexit code {code}", flush=True)
"""


class Interpreter:
    """One Python process that runs commands by their `main`, and blocks of code, one after the other: a process of
    its own takes each some seconds to start.
    """

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVED],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __enter__(self) -> "Interpreter":
        return self

    def __exit__(self, *_) -> None:
        self._process.communicate()  # the end of its input ends it

    def run(self, command: str, *arguments: str) -> str:
        """The output of `experiments.<command>`, or of Python code after `-c`. Fails unless the exit code is 0."""
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.startswith("exit code "):
                break
            lines.append(line)
        else:
            line = "the interpreter ended"
        output = "".join(lines)
        assert line.strip() == "exit code 0", f"{command} {' '.join(arguments)}: {line}\n{output}"
        return output


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder to run commands in, with what all of them share."""

    folder: Path
    shared: Path  # compiled programs and the tokenizer run, made once per test session

    @property
    def tokenizer(self) -> str:
        """The override that takes the tokenizer that was trained once."""
        return f"tokenizer.run={self.shared / 'runs' / 'vqgan_dmlab_tiny' / 'seed0'}"

    @property
    def run(self) -> Path:
        """The folder of the model's run."""
        return self.folder / "runs" / "convs5_dmlab_tiny" / "seed0"

    def environment(self, devices: int = 1) -> dict[str, str]:
        """The environment of a command: `devices` forced CPU devices, programs compiled once per session, quickly."""
        return os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.shared / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "COLUMNS": "200",
        }

    def start(
        self, command: str, *arguments: str, devices: int = 1, file_limit: int | None = None
    ) -> subprocess.Popen:
        """Start `python -m experiments.<command> <arguments>` here; no file may grow beyond `file_limit` bytes."""
        limited = () if file_limit is None else ("-c", LIMITED, str(file_limit), sys.executable)
        return subprocess.Popen(
            [sys.executable, *limited, "-m", f"experiments.{command}", *arguments],
            cwd=self.folder,
            env=self.environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, command: str, *arguments: str, code: int = 0, **options) -> str:
        """Run a command to its end; its output. Fails unless it exits with `code`."""
        return finish(self.start(command, *arguments, **options), code)

    def train(self, *overrides: str, code: int = 0, **options) -> str:
        """`experiments.train` of the small model."""
        return self.call("train", *MODEL, self.tokenizer, *overrides, code=code, **options)


def finish(process: subprocess.Popen, code: int = 0, timeout: int = 600) -> str:
    """Wait for a command; its output. Fails unless it exits with `code`."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"the command did not end within {timeout} s:\n{output}") from None
    assert process.returncode == code, f"exit code {process.returncode}, expected {code}:\n{output}"
    return output


def interrupt(
    process: subprocess.Popen, when: Callable[[], bool], number: signal.Signals, timeout: int = 300
) -> None:
    """Send a signal as soon as `when()` holds. Fails if the command ends before."""
    end = time.monotonic() + timeout
    while not when():
        if process.poll() is not None:
            output, _ = process.communicate()
            raise AssertionError(f"the command ended before it could be interrupted:\n{output}")
        assert time.monotonic() < end, "what the signal waits for did not happen"
        time.sleep(0.005)
    process.send_signal(number)


def losses(run: Path) -> dict[int, float]:
    """Step -> training loss of a run's metrics.jsonl; fails if a step stands there twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]
    assert len(found) == len(dict(found)), f"a step is logged twice: {found}"
    return dict(found)


def weights(run: Path) -> dict[str, np.ndarray]:
    """The exported weights of a finished run."""
    from slotzoo.weights.files import read_arrays

    return read_arrays(run / "weights.safetensors")


def assert_equal_runs(run: Path, other: Path) -> None:
    """Same losses and same weights, bit for bit."""
    assert losses(run) == losses(other)
    left, right = weights(run), weights(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_close_runs(run: Path, other: Path, rtol: float) -> None:
    """Same losses up to rounding: another order of summation."""
    left, right = losses(run), losses(other)
    assert left.keys() == right.keys()
    np.testing.assert_allclose(list(left.values()), list(right.values()), rtol=rtol)
