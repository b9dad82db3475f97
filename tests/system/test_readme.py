"""Every command and every Python block of the README, run as it stands, at the smallest size."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slotzoo.viz import write_gif, write_png
from tests.system.commands import DATA, MODEL, TOKENIZER, Interpreter
from tests.weights.test_convert import ARGS, random_arrays, write_run


ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for kind, text in BLOCKS
    if kind == "sh"
    for line in text.splitlines()
    if line.strip()
]
IMAGES = (
    "data.cache=cache",
    "train.steps=2",
    "train.batch_size=2",
    "data.clips=4",
    "data.test_clips=2",
    "eval.clips=2",
    "eval.batch_size=2",
    "eval.pictures=1",
)
# What makes a command small, by what it starts; the order of the README is kept.
SMALL = {
    "experiments.train +exp=convs5_dmlab": MODEL[1:],
    "experiments.train +exp=vqgan_dmlab": TOKENIZER[1:],
    "experiments.train +exp=slot_attention_tetrominoes": IMAGES,
    "experiments.train +exp=slotssm_bcb_earliest": (*IMAGES, "model.blocks=1", "model.decoder_layers=1"),
    "experiments.train +exp=savi_small_movi_a": (*IMAGES, "data.length=6", "data.options.max_objects=2"),
    "experiments.predict": (),
    "experiments.evaluate": ("clips=2",),
    "experiments.sample": (),
    "experiments.report": (),
    "experiments.compare": (),
    "experiments.prepare": DATA[:3],
    "experiments.convert": (),
    # Minutes of compilation at any scale: composed here, run at a small size by tests/experiments/test_benchmark.py.
    "experiments.benchmark": ("--cfg", "job"),
}


def small(command: str) -> list[str]:
    """A command's name and arguments, those that make it small before its own, so that its own win."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"], f"the README has a command that this test cannot run: {command}"
    for start, extra in SMALL.items():
        if " ".join(words[2:]).startswith(start):
            own = {word.split("=")[0] for word in words}
            added = [word for word in extra if word.split("=")[0] not in own]
            return [words[2].removeprefix("experiments."), *added, *words[3:]]
    raise AssertionError(f"the README has a command that this test does not know: {command}")


def look_at_samples(samples: Path, interpreter: Interpreter) -> None:
    """What the README's two commands wrote, and what a third one writes that is given twice: several of each clip."""
    third = ("context=4", "length=5", "samples=2", "clips=2", "batch_size=1")
    again = ("sample", "run=runs/convs5_dmlab_tiny/seed0", *third)
    assert "data_1.npz: 1 clips" in interpreter.run(*again)
    # Three held-out clips, two a batch, of six frames; five of two clips, one a batch.
    for folder, name, context, sizes in (
        ("step_6_seed0", "action_3", 3, [(2, 6), (1, 6)]),
        ("step_6_seed0_2", "3", 3, [(2, 6), (1, 6)]),
        ("step_6_seed0_3", "action_4", 4, [(1, 2, 5), (1, 2, 5)]),
    ):
        asked = json.loads((samples / folder / "asked.json").read_text())
        assert asked["actions"] == name.startswith("action")
        where = samples / folder / f"samples_{name}"
        assert sorted(path.name for path in where.glob("*.npz")) == ["data_0.npz", "data_1.npz"]
        for number, size in enumerate(sizes):
            with np.load(where / f"data_{number}.npz") as file:
                real, fake = file["real"], file["fake"]
            assert real.dtype == fake.dtype == np.uint8 and fake.shape == (*size, 64, 64, 3)
            several = fake if fake.ndim == 6 else fake[:, None]
            assert several[:, 0].shape == real.shape
            np.testing.assert_array_equal(
                several[:, :, :context], real[:, None].repeat(several.shape[1], 1)[:, :, :context]
            )
            assert (several[:, :, context:] != real[:, None, context:]).any(axis=(2, 3, 4, 5)).all()
        assert (where / f"rollout_{name}_0.png").is_file()
        (video,) = (path for path in where.glob(f"rollout_{name}_0.*") if path.suffix != ".png")
        assert video.suffix in (".mp4", ".gif") and video.stat().st_size > 0
    assert (several[:, 0] != several[:, 1]).any(), "the samples of a clip are one and the same"
    written = {path: path.stat().st_mtime_ns for path in samples.rglob("*")}
    assert "data_" not in interpreter.run(*again)
    assert written == {path: path.stat().st_mtime_ns for path in samples.rglob("*")}


@pytest.mark.slow
def test_commands_and_code(place):
    data = place.folder / "data"
    environment = place.environment()
    shutil.copytree(place.shared / "runs", place.folder / "runs")
    place.call("prepare", "data=dmlab", *DATA, f"out={data / 'dmlab'}", "format=teco")
    write_run(data / "vqgan_checkpoint", ARGS, random_arrays())
    write_png(data / "pictures" / "grey.png", np.full((40, 50, 3), 0.5, np.float32))
    write_gif(data / "clip.gif", np.zeros((4, 80, 64, 3), np.uint8))
    run = [command for command in COMMANDS if not command.startswith("make ")]
    assert len(run) >= 15
    started = set()
    with Interpreter(place.folder, environment) as interpreter:
        for command in run:
            name, *arguments = [word.replace("/data/", f"{data}/") for word in small(command)]
            if name in started:
                interpreter.run(name, *arguments)
            else:  # the first of each kind as a process of its own
                place.call(name, *arguments)
                started.add(name)
        for kind, text in BLOCKS:
            if kind == "python":
                interpreter.run("-c", text)
        look_at_samples(place.run / "samples", interpreter)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make(place):
    shutil.copytree(place.shared / "runs", place.folder / "runs")
    assert [c for c in COMMANDS if c.startswith("make ")] == ["make train", "make test"]
    # The environment of this test instead of .venv, which -o takes as it is.
    make = ["make", "-C", str(ROOT), "-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}"]
    overrides = [*MODEL[1:], f"runs_dir={place.folder / 'runs'}", f"data.cache={place.folder / 'cache'}"]
    arguments = shlex.join(word for word in overrides if word != "data.cache=cache")
    # The one command that is compiled as users compile it.
    environment = place.environment() | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    for target, extra in (("train", arguments), ("test", "-q tests/test_imports.py")):
        done = subprocess.run([*make, target, f"ARGS={extra}"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{target}\n{done.stdout}\n{done.stderr}"
    assert (place.run / "report.html").is_file()


def test_table_of_exit_codes():
    from experiments import cli
    from slotzoo.train.signals import STOPPED_EXIT_CODE

    codes = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    named = [0, cli.EXIT_CONFIG, cli.EXIT_FAILED, cli.EXIT_NONFINITE, STOPPED_EXIT_CODE]
    assert [int(code) for code in codes] == named


def test_table_of_suites():
    from experiments.benchmark import suites

    section = (ROOT / "README.md").read_text().partition("## Benchmarks")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `") and "suite=" not in line]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert len(named) >= 10 and named <= set(suites())
