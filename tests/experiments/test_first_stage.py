"""The tokenizer of a two-stage system: which finished run is taken for it."""

from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest

from experiments import build, encode, first_stage
from experiments.folder import RunFolder
from experiments.prepare import _own_tokenizer
from slotzoo.data import FieldSpec, open_source
from slotzoo.errors import ConfigError, DataError
from slotzoo.models import create_model, model_config
from slotzoo.weights.files import save_weights
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


def tokenizer(seed, path=None):
    """A tokenizer with all parameters equal to `seed`, kept at `path` as that of a finished run."""
    name, fields = "vqgan_dmlab", {"ch": 32, "num_res_blocks": 1, "n_embed": 16, "embed_dim": 4}
    shapes = eqx.filter_eval_shape(lambda key: create_model(name, key=key, **fields), jax.random.key(0))
    made = jax.tree.map(lambda x: np.full(x.shape, seed, x.dtype), shapes)
    if path is not None:
        folder = RunFolder(path / "vqgan_dmlab_tiny" / f"seed{seed}")
        folder.path.mkdir(parents=True)
        save_weights(
            folder.path / first_stage.WEIGHTS,
            made,
            name=name,
            config=model_config(name, **fields),
            source="test",
        )
        folder.update_card(data={"name": "dmlab", "provenance": "embedded double"})
    return made


@pytest.mark.parametrize("skipped", [False, True])
def test_tokens_are_not_taken_with_another_tokenizer_than_made_them(skipped, tmp_path, monkeypatch):
    maker, _ = tokenizer(0, tmp_path), tokenizer(1, tmp_path)
    side, corrupted = maker.config.latent, []

    def codes(made, video):
        if corrupted:
            corrupted.clear()
            raise DataError("a clip that cannot be read")
        return np.zeros((len(video), side, side), np.int32)

    monkeypatch.setattr(encode, "_encode", codes)
    for split in ("train", "test"):
        corrupted.extend([True] if skipped else [])
        clips = open_source("dmlab", split, length=2, size=64, clips=2)
        encode.encode_once(clips, maker, tmp_path / "tokens", split, on_error="skip")
    on_tokens = (f"runs_dir={tmp_path}", "data=dmlab_encoded", f"data.root={tmp_path / 'tokens'}")
    right = settings("convs5_dmlab", *on_tokens)
    stage = first_stage.prepare(right, RunFolder.of(right), train)
    assert stage is not None and encode.digest(stage.tokenizer) == encode.digest(maker)
    named = f"tokenizer.run={tmp_path / 'vqgan_dmlab_tiny' / 'seed1'}"
    weights = f"tokenizer.weights={tmp_path / 'vqgan_dmlab_tiny' / 'seed1' / first_stage.WEIGHTS}"
    for overrides in (["seed=1"], ["seed=2", named], ["seed=2", weights]):
        wrong = settings("convs5_dmlab", *on_tokens, *overrides)
        with pytest.raises(
            ConfigError, match=r"tokens.train were made by another tokenizer .*tokenizer\.run=FOLDER"
        ):
            first_stage.prepare(wrong, RunFolder.of(wrong), train)
        assert not (RunFolder.of(wrong).path / first_stage.TOKENIZER).exists()
    # One that has begun goes on.
    (RunFolder.of(right).checkpoints / "2").mkdir(parents=True)
    assert first_stage.prepare(right, RunFolder.of(right), train) is not None
    # Tokens that do not say who made them, as the published ones.
    encode.check_codes(open_source("dmlab_encoded", "train", length=2, clips=2), maker)


def test_tokens_that_do_not_fit_the_tokenizer_are_refused():
    run, made = settings("convs5_dmlab"), tokenizer(0)
    side = made.config.latent

    def spec(*shape, high: int | None = 15):
        return {"tokens": FieldSpec((None, *shape), "int32", 0, high, "codes")}

    for fits in (spec(side, side), spec(None, None), spec(side, side, high=None), spec(side, side, high=7)):
        full = build.complete(run, made, fits)
        assert (full.model["height"], full.model["num_codes"]) == (side, 16)
    for wrong in (spec(side, side, high=16), spec(2 * side, 2 * side), spec(side, 2 * side)):
        with pytest.raises(
            ConfigError, match=r"tokens with codes up to .* do not fit the tokenizer, .* of 16 codes"
        ):
            build.complete(run, made, wrong)
