"""The first stage of a two-stage system: find the tokenizer, or train it as a run of its own.

A run keeps a copy of its tokenizer, so that it stays whole whatever becomes of the run or file it came from.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from experiments import build, validate
from experiments.compose import experiment
from experiments.encode import check_codes, digest, encode_once
from experiments.folder import RunFolder, meet
from experiments.schema import DataSettings, RunSettings
from slotzoo.data import Source, open_source
from slotzoo.errors import ConfigError
from slotzoo.models import model_config
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights.files import WeightsCard, load_model, save_weights


# Written into the folder of a finished run, and (the tokenizer's) into that of a run that builds on it.
WEIGHTS = "weights.safetensors"
TOKENIZER = "tokenizer.safetensors"

# What a first stage takes over from the run that asks for it, so that both see the same clips.
SHARED_DATA = (
    "name",
    "root",
    "length",
    "size",
    "clips",
    "test_clips",
    "seed",
    "options",
    "cache",
    "on_error",
    "max_skips",
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """The tokenizer of a run (None: it works on pixels), and where it came from."""

    tokenizer: VQGAN | None = None
    card: WeightsCard | None = None


def prepare(run: RunSettings, folder: RunFolder, train: Callable[[RunSettings], bool]) -> Stage | None:
    """The tokenizer that `run` needs, trained by `train` if there is none yet; None if that was stopped.

    `train(settings)` returns whether training was finished.
    """
    if not build.wants_tokens(run):
        return Stage()
    own, named = folder.path / TOKENIZER, _named(run)
    found, started = own.is_file(), folder.has_checkpoint()
    meet("the tokenizer is looked for")  # before process 0 writes it
    if found and (started or (named is None and other_clips(run.data, folder) is None)):
        stage = Stage(*_load(own))
        if named is not None and named.is_file() and digest(_load(named)[0]) != digest(stage.tokenizer):
            raise ConfigError(
                f"This run was started with another tokenizer (a copy is {own}) than the one given now ({named}); "
                "leave tokenizer.run and tokenizer.weights out, or give another name or seed for a new run."
            )
        _check_codes(run.data, stage)
        return stage
    if named is not None and run.tokenizer.run is not None and not named.is_file():
        raise ConfigError(
            f"tokenizer.run={run.tokenizer.run}: holds no {WEIGHTS}, so that run is not finished (or is no run); "
            "finish it with the command that started it."
        )
    path = named or _trained(run, train)
    if path is None:
        return None
    stage = Stage(*_load(path))
    _check_codes(run.data, stage)  # before it is copied
    if jax.process_index() == 0 and stage.card is not None:
        c = stage.card
        save_weights(
            own,
            stage.tokenizer,
            name=c.model,
            config=model_config(c.model, **c.config),
            source=c.source or str(path),
            licence=c.licence,
            notes=c.notes,
        )
    meet("the tokenizer is copied")
    return stage


def read(run: RunSettings, folder: RunFolder) -> Stage:
    """The tokenizer that a run keeps, if it works on tokens."""
    if not build.wants_tokens(run):
        return Stage()
    own = folder.path / TOKENIZER
    if not own.is_file():
        raise ConfigError(f"{own} is missing, so this run cannot be opened; was it started at all?")
    return Stage(*_load(own))


def encoded(run: RunSettings, source: Source, stage: Stage, folder: RunFolder) -> Source:
    """With `tokenizer.encode=once`: the training clips as tokens, written to the run's folder. Else `source`."""
    if stage.tokenizer is None or run.tokenizer.encode == "step" or "tokens" in source.spec:
        return source
    where = folder.path / "tokens"
    if jax.process_index() == 0:
        data = run.data
        encode_once(
            source,
            stage.tokenizer,
            where,
            "train",
            on_error=data.on_error,  # type: ignore[arg-type]
            max_skips=data.max_skips,
        )
    meet("the clips are encoded")
    return open_source(f"{source.name}_encoded", "train", root=where)


def _check_codes(data: DataSettings, stage: Stage) -> None:
    """Refuse a tokenizer other than the one that made the tokens of `data`, of either split."""
    if "encoded" in data.name and stage.tokenizer is not None:
        for split in ("train", "test"):
            check_codes(build.source(data, split), stage.tokenizer)


def _named(run: RunSettings) -> Path | None:
    """The weights file that the settings name, whether or not it is there."""
    if run.tokenizer.weights is not None:
        return Path(run.tokenizer.weights).expanduser()
    return None if run.tokenizer.run is None else Path(run.tokenizer.run).expanduser() / WEIGHTS


def _trained(run: RunSettings, train: Callable[[RunSettings], bool]) -> Path | None:
    if run.tokenizer.exp is None:
        raise ConfigError(
            f"The model '{run.model['name']}' works on tokens: give tokenizer.exp (an experiment that trains the "
            "tokenizer), tokenizer.run (a finished run) or tokenizer.weights (a file)."
        )
    settings = _settings(run)
    folder = RunFolder.of(settings)
    path = folder.path / WEIGHTS
    if path.is_file() or folder.has_checkpoint():
        if other := other_clips(run.data, folder):
            raise ConfigError(
                f"The tokenizer {folder.path} is of {other[0]}, this run of {other[1]}: train one on the same clips "
                f"(+exp={run.tokenizer.exp} with this run's data, seed and a name= of its own) and give its folder as "
                f"tokenizer.run=FOLDER; tokenizer.run={folder.path} takes that one all the same."
            )
    if path.is_file():
        return path
    if "encoded" in run.data.name:
        raise ConfigError(
            f"data={run.data.name} holds tokens, from which no tokenizer can be trained; give the one that made them "
            "as tokenizer.weights=FILE or tokenizer.run=FOLDER."
        )
    return path if train(settings) else None


def _settings(run: RunSettings) -> RunSettings:
    """The settings of the run that trains the tokenizer."""
    assert run.tokenizer.exp is not None
    config = experiment(run.tokenizer.exp)
    config.scale = run.scale
    config = validate.with_scale(config, (), accelerator=run.scale == "paper")
    config.seed, config.runs_dir, config.plugins = run.seed, run.runs_dir, run.plugins
    for key in SHARED_DATA:
        if key != "name" or "encoded" not in run.data.name:
            config.data[key] = getattr(run.data, key)
    for group in ("mesh", "logger"):
        for key, value in dataclasses.asdict(getattr(run, group)).items():
            config[group][key] = value
    return validate.settings(config, RunSettings)


def other_clips(data: DataSettings, folder: RunFolder) -> tuple[str, str] | None:
    """What the run in `folder` was trained on and what `data` is, in words; None where both are the same set.

    The clips of a set may be stored in several ways: its name and its provenance are compared, no more.
    """
    before = folder.read_card().get("data")
    if before is None:  # not begun yet
        return None
    was = _words(before["name"], before["provenance"])
    now = _words(data.name, build.source(data, "train").provenance)
    return None if was == now else (was, now)


def _words(name: str, provenance: str) -> str:
    name = name.removesuffix("_encoded")
    return f"the embedded double of {name}" if provenance == "embedded double" else f"the {provenance} {name}"


def load_tokenizer(path: str | Path) -> VQGAN:
    """The tokenizer of a weights file, or of the folder of a finished run."""
    path = Path(path).expanduser()
    return _load(path / WEIGHTS if path.is_dir() else path)[0]


def _load(path: Path) -> tuple[VQGAN, WeightsCard]:
    model, card = load_model(path)
    if not isinstance(model, VQGAN):
        raise ConfigError(
            f"{path}: holds a {type(model).__name__}, which makes no tokens; give a VQ-GAN, e.g. +exp=vqgan_dmlab."
        )
    return model, card
