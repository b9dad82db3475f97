"""Whatever is wrong, a command says it in one sentence: what, where, and what to do."""

import contextlib
import importlib
import io
import subprocess
import sys

import numpy as np
import pytest

from tests.system.commands import DATA, MODEL, Place


@pytest.fixture
def bare(tmp_path):
    """A folder without a tokenizer: for what fails before anything is trained."""
    return Place(tmp_path, tmp_path)


def sentence(output: str) -> str:
    """The one error line of a command that failed as it should: no traceback."""
    assert "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


CONFIGURATION = {
    "unknown key": (["train.batchsize=3"], ["'train.batchsize'", "Did you mean 'batch_size'?"]),
    "unknown group of keys": (["trian.steps=3"], ["'trian.steps'", "Did you mean 'train'?"]),
    "unknown model field": (["model.layer=3"], ["'layer'", "Did you mean 'layers'?"]),
    "unknown model": (["model.name=convs6_dmlab"], ["'convs6_dmlab'", "Did you mean 'convs5_dmlab'?"]),
    "unknown option": (["options.sample=3"], ["'sample'", "Did you mean 'samples'?"]),
    "unknown choice": (["train.precision=float16"], ["train.precision=float16", "float32, bfloat16"]),
    "not positive": (["train.steps=0"], ["train.steps=0", "positive"]),
    "wrong type of a model field": (["model.layers=two"], ["'layers'", "int", "'two'"]),
    "uneven batch": (
        ["train.batch_size=6", "train.accumulate=4"],
        ["train.batch_size=6", "train.accumulate=4"],
    ),
    "context as long as the clip": (["eval.rollouts=[{context: 6}]"], ["context of 6", "1 to 5"]),
    "no such folder": (["data.root=/nonexistent"], ["data.root=/nonexistent", "no such folder"]),
    "unknown plugin": (["plugins=[no_such_module]"], ["'no_such_module'"]),
    "no such tokenizer run": (["tokenizer.run=nowhere"], ["tokenizer.run=nowhere", "not finished"]),
    "tokens without a root": (["data=dmlab_encoded"], ["data=dmlab_encoded", "give data.root"]),
    "sizes that do not fit": (["model.ssm_size=7"], ["ssm_size", "7"]),
}


def refused(command: str, *arguments: str) -> str:
    """What a command says to a wrong configuration. Its own `main`, in this process: starting one takes seconds, and
    other tests run each of them as `python -m` does.
    """
    output = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        patch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as left:
            importlib.import_module(f"experiments.{command}").main()
    assert left.value.code == 2, output.getvalue()
    return sentence(output.getvalue())


@pytest.mark.parametrize("name", CONFIGURATION)
def test_configuration(monkeypatch, tmp_path, name):
    arguments, parts = CONFIGURATION[name]
    monkeypatch.chdir(tmp_path)
    line = refused("train", *MODEL, *arguments)
    for part in parts:
        assert part in line
    assert not (tmp_path / "cache").exists(), "something was made before the mistake was said"


def test_missing_experiment(bare):
    line = sentence(bare.call("train", code=2))
    assert "+exp=NAME" in line and "convs5_dmlab" in line


def test_wrong_type(bare):
    line = sentence(bare.call("train", *MODEL, "train.steps=many", code=2))
    assert "train.steps=many" in line and "Integer" in line


@pytest.mark.parametrize("command", ["evaluate", "sample", "report"])
def test_not_a_run(monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in refused(command, "run=nowhere")
    assert "Missing value" in refused(command)


@pytest.mark.slow
def test_changed_configuration_is_refused(begun):
    line_and_rest = begun.train("train.steps=4", "optim.learning_rate=0.5", code=2)
    assert "another configuration" in line_and_rest
    assert "optim.learning_rate: 0.002 -> 0.5" in line_and_rest


@pytest.mark.slow
def test_wrong_shape(place):
    # The tokenizer was trained on frames of 64 pixels.
    assert "model.height=16 does not fit its tokenizer" in sentence(place.train("model.height=16", code=2))
    line = sentence(place.train("data.size=32", code=3))
    assert "(64, 64, 3)" in line and "(32, 32, 3)" in line


@pytest.mark.slow
def test_not_finite(place):
    line = sentence(
        place.train("optim.learning_rate=1e30", "optim.warmup_steps=0", "train.save_every=1", code=4)
    )
    assert "not finite at step" in line and "learning rate" in line and "gradient norm" in line
    assert "The checkpoint of step" in line


@pytest.mark.slow
def test_two_commands_on_one_run(begun):
    first = begun.start("train", *MODEL, begun.tokenizer, "train.steps=100000", "train.evaluate_every=100000")
    try:
        for line in first.stdout:
            if line.startswith("step "):
                break
        assert "Another process is working on" in sentence(begun.train("train.steps=4", code=2))
    finally:
        first.terminate()
        first.communicate()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The double in the layout of the published set."""
    place = Place(*[tmp_path_factory.mktemp("published")] * 2)
    place.call("prepare", "data=dmlab", *DATA, "out=root", "format=teco")
    return place.folder / "root"


@pytest.mark.slow
def test_corrupted_record(place, published, tmp_path):
    root = tmp_path / "root"
    subprocess.run(["cp", "-r", str(published), str(root)], check=True)
    files = sorted((root / "train").rglob("*.npz"))
    files[2].write_bytes(files[2].read_bytes()[:100])
    with np.load(files[5]) as record:
        arrays = dict(record)
    np.savez(files[5], video=arrays["video"][:, :, :7], actions=arrays["actions"])
    line = sentence(place.train(f"data.root={root}", code=3))
    assert "000002.npz" in line or "000005.npz" in line
    output = place.train(f"data.root={root}", "data.on_error=skip", "name=skips")
    assert "000002.npz" in output and "000005.npz" in output and "skipped" in output
    line = sentence(
        place.train(f"data.root={root}", "data.on_error=skip", "data.max_skips=1", "name=few", code=3)
    )
    assert "max_skips=1" in line
