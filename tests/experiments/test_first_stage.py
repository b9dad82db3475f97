"""The tokenizer of a two-stage system: which finished run is taken for it."""

from types import SimpleNamespace

import pytest

from experiments import build, first_stage
from experiments.folder import RunFolder
from experiments.prepare import _own_tokenizer
from slotzoo.errors import ConfigError
from tests.experiments.small import settings


class Trained(Exception):
    """Raised in place of training."""


def train(settings):
    raise Trained(settings.name)


def run_and_tokenizer(path, monkeypatch, provenance):
    """The settings of a run on tokens, the folder of its tokenizer's run, and a data set of this provenance."""
    run = settings("convs5_dmlab", f"runs_dir={path}")
    monkeypatch.setattr(build, "source", lambda data, split: SimpleNamespace(provenance=provenance))
    return run, RunFolder(path / "vqgan_dmlab_tiny" / "seed0")


@pytest.mark.parametrize("finished", [True, False])
def test_a_tokenizer_of_the_double_is_not_taken_for_real_clips(finished, tmp_path, monkeypatch):
    run, folder = run_and_tokenizer(tmp_path, monkeypatch, "real")
    with pytest.raises(Trained, match="vqgan_dmlab_tiny"):
        first_stage.prepare(run, RunFolder.of(run), train)
    (folder.checkpoints / "2").mkdir(parents=True)
    if finished:
        (folder.path / first_stage.WEIGHTS).touch()
    folder.update_card(data={"name": "dmlab", "provenance": "embedded double"})
    with pytest.raises(
        ConfigError,
        match=r"seed0 is of the embedded double of dmlab, this run of the real dmlab: .*"
        r"tokenizer\.run=FOLDER",
    ):
        first_stage.prepare(run, RunFolder.of(run), train)
    with pytest.raises(
        ConfigError, match="encode=vqgan: .*seed0 is of the embedded double|there is no finished run"
    ):
        _own_tokenizer(run.data, tmp_path)
    # Clips of the set itself, however they are stored: found, or gone on with.
    folder.update_card(data={"name": "dmlab_encoded", "provenance": "real"})
    if finished:
        assert first_stage._trained(run, train) == folder.path / first_stage.WEIGHTS
        assert _own_tokenizer(run.data, tmp_path) == str(folder.path)
    else:
        with pytest.raises(Trained, match="vqgan_dmlab_tiny"):
            first_stage._trained(run, train)


def test_a_tokenizer_that_was_copied_before_the_data_changed_is_looked_for_again(tmp_path, monkeypatch):
    run, _ = run_and_tokenizer(tmp_path, monkeypatch, "real")
    folder = RunFolder.of(run)
    folder.update_card(data={"name": "dmlab", "provenance": "embedded double"})
    (folder.path / first_stage.TOKENIZER).touch()
    with pytest.raises(Trained, match="vqgan_dmlab_tiny"):
        first_stage.prepare(run, folder, train)
    monkeypatch.setattr(first_stage, "_load", lambda path: (path.name, None))
    (folder.checkpoints / "2").mkdir(parents=True)  # what has begun keeps its own
    stage = first_stage.prepare(run, folder, train)
    assert stage is not None and stage.tokenizer == first_stage.TOKENIZER
