"""From what Hydra composed to a typed run: every mistake is found here, before anything is built."""

import dataclasses
import os
import pathlib
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.schema import SCHEMAS, RunSettings
from slotzoo.errors import ConfigError, nearest


CONF = pathlib.Path(__file__).parent.parent / "conf"
S = TypeVar("S")

CHOICES = {
    "scale": ("auto", "paper", "tiny"),
    "task": (
        "tokenizer",
        "video_prediction",
        "object_images",
        "object_videos",
        "set_prediction",
        "slot_pictures",
        "slot_prediction",
        "localisation",
    ),
    "background_detection": ("spread_out", "concentrated", "both"),
    "background_metric": ("area", "distance"),
    "data.on_error": ("raise", "skip"),
    "optim.optimizer": ("adamw", "rmsprop"),
    "optim.schedule": ("warmup_cosine", "constant", "linear", "exponential"),
    "optim.clip_kind": ("norm", "largest", "value"),
    "train.precision": ("float32", "bfloat16"),
    "tokenizer.encode": ("step", "once"),
    "mesh.strategy": ("replicated", "fsdp"),
    "logger.progress": ("auto", "bar", "plain"),
    "split": ("train", "val", "test"),
    "format": ("array_record", "published", "teco"),
    "encode": ("vqgan",),
}
POSITIVE = (
    "data.length",
    "data.test_length",
    "data.stride",
    "data.size",
    "data.clips",
    "data.test_clips",
    "train.steps",
    "train.batch_size",
    "train.accumulate",
    "train.log_every",
    "train.evaluate_every",
    "train.save_every",
    "train.keep",
    "eval.clips",
    "eval.batch_size",
    "eval.samples",
    "mesh.model",
    "optim.learning_rate",
    "step",
    "clips",
    "samples",
    "context",
    "length",
    "slots",
    "iterations",
    "frames",
    "batch_size",
)


def check_overrides(command: str, arguments: Sequence[str]) -> list[str]:
    """Refuse a misspelt key or file, or a value of the wrong type, on the command line; return the arguments for Hydra.

    Hydra's own messages advise a leading `+`, which would only hide the mistake. Fields of open mappings
    (`model.layers=4`) get the `++` that Hydra wants for them, `exp=` its `+`.
    """
    checked = []
    for before, argument in zip(("", *arguments), arguments, strict=False):
        key, eq, value = argument.partition("=")
        path = key.lstrip("+~").split("@")[0]
        if (
            not eq and argument[:1] not in "-~" and not before.startswith("-")
        ):  # else it may be an option's value
            raise ConfigError(f"{argument}: is no key=value; {_usage(command)}")
        if argument.startswith("-") or not eq or path.startswith("hydra") or "/" in path:
            checked.append(argument)
        elif path in _groups(command):
            _check_choice(path, value)
            plus = "+" if path == "exp" else ""
            checked.append(argument if key.startswith("~") or "@" in key else f"{plus}{path}={value}")
        else:
            found = _field(SCHEMAS[command], path)
            if found is not None:
                _check_type(argument, *found)
            is_open = found is None or typing.get_origin(typing.get_type_hints(found[0])[found[1]]) is dict
            checked.append(f"++{argument}" if is_open and argument[0] not in "+~" else argument)
    return checked


def _groups(command: str) -> list[str]:
    """The folders of `conf` from which the command takes files."""
    own = (
        ["exp", *typing.get_type_hints(RunSettings)]
        if command == "train"
        else ["data"] * (command == "prepare")
    )
    return [name for name in own if (CONF / name).is_dir()]


def _check_choice(group: str, value: str) -> None:
    """Refuse what is no file of the group; of a sweep any part. What is more than names is left to Hydra."""
    known = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for name in value.split(","):
        if name.replace("_", "a").isalnum() and name not in (*known, "null"):
            raise ConfigError(
                f"{group}={name}: there is no such file in conf/{group}.{nearest(name, known)} There are: "
                f"{', '.join(known)}."
            )


def _usage(command: str) -> str:
    first = {
        "train": "+exp=NAME",
        "prepare": "data=NAME",
        "compare": "runs=[FOLDER,FOLDER]",
        "convert": "source=FILE",
        "benchmark": "suite=NAME",
    }
    return f"write e.g. {first.get(command, 'run=FOLDER')}."


def _field(schema: type, path: str) -> tuple[Any, str] | None:
    """The dataclass and its field that a path leads to; None inside an open mapping. Raises if there is none."""
    owner: Any = schema
    parts = path.split(".")
    for depth, part in enumerate(parts):
        fields = typing.get_type_hints(owner)
        if part not in fields:
            where = f"in '{'.'.join(parts[:depth])}'" if depth else "at the top level"
            known = ", ".join(fields)
            raise ConfigError(
                f"Unknown key '{path}': there is no '{part}' {where}.{nearest(part, fields)} Known: {known}."
            )
        if depth == len(parts) - 1:
            return owner, part
        owner = fields[part]
        if not dataclasses.is_dataclass(owner):
            return None  # model fields, task options: checked by the model's own Config
    return None


def _check_type(argument: str, owner: Any, field: str) -> None:
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise ConfigError(f"{argument}: cannot be read: {_first_line(error)}") from error
    if override.is_sweep_override() or override.is_delete():
        return
    try:
        OmegaConf.update(OmegaConf.structured(owner), field, override.value())
    except OmegaConfBaseException as error:
        if typing.get_origin(typing.get_type_hints(owner)[field]) is list:
            key, _, value = argument.partition("=")
            raise ConfigError(f"{argument}: takes a list; write {key}=[{value}].") from error
        raise ConfigError(f"{argument}: {_first_line(error).removesuffix('.')}.") from error


def with_scale(config: DictConfig, overrides: Iterable[str], accelerator: bool) -> DictConfig:
    """Resolve `scale=auto` and apply the experiment's `tiny` section; what the user typed wins over both."""
    config, overrides = typing.cast(DictConfig, config.copy()), list(overrides)
    named = any(o.startswith("name=") for o in overrides)
    other = [o.removeprefix("model=") for o in overrides if o.startswith("model=")]
    if other and not named and not OmegaConf.is_missing(config, "name"):
        config.name = f"{config.name}_{other[-1]}"  # another model is another run
    if config.scale == "auto":
        config.scale = "paper" if accelerator else "tiny"
    if config.scale == "tiny" and not OmegaConf.is_missing(config, "task"):  # without an experiment: said later
        if not config.tiny:
            raise ConfigError("This experiment has no tiny scale; run it with scale=paper.")
        typed = [o for o in overrides if _is_value(o)]
        try:
            OmegaConf.set_struct(
                config, False
            )  # open mappings take new fields; dataclasses stay as strict as they are
            config = typing.cast(DictConfig, OmegaConf.merge(config, config.tiny))
            for override in OverridesParser.create().parse_overrides(typed):
                OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"The experiment's tiny section does not fit: {_first_line(error)}") from error
        config.scale = "tiny"
        if not named:
            config.name = f"{config.name}_tiny"
    config.tiny = {}
    return config


def _is_value(override: str) -> bool:
    key = override.split("=")[0].lstrip("+")
    return "=" in override and not override.startswith("~") and key != "exp" and not (CONF / key).is_dir()


def settings(config: DictConfig, schema: type[S], *, saved: bool = False) -> S:
    """Turn a composed configuration into its dataclass: nothing missing, choices known, sizes consistent.

    `saved`: it is that of a run, whose data may have moved since; who reads them says so.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        hint = f" Give {missing[0]}=...; --help shows how."
        if schema is RunSettings and not {"name", "task"}.isdisjoint(missing):
            experiments = ", ".join(sorted(p.stem for p in (CONF / "exp").glob("*.yaml")))
            hint = f" Choose an experiment with +exp=NAME, one of: {experiments}."
        raise ConfigError(f"Missing value{'s' if len(missing) > 1 else ''}: {', '.join(missing)}.{hint}")
    try:
        OmegaConf.resolve(config)
        result = typing.cast(S, OmegaConf.to_object(config))
    except OmegaConfBaseException as error:
        raise ConfigError(f"The configuration does not fit its schema: {_first_line(error)}") from error
    except (TypeError, AttributeError) as error:  # a key that the slotted dataclass does not have
        raise ConfigError(f"The configuration has a key that its schema does not know: {error}.") from error
    _check_values(result)
    if isinstance(result, RunSettings):
        _check_run(result)
        if not saved and not result.name.strip():
            raise ConfigError(
                "name=: is empty; it names the folder of the run, give name=NAME or leave it out."
            )
        # Some sets are one file; a source that wants a folder says so itself.
        root = result.data.root
        if not saved and root is not None and not os.path.exists(os.path.expanduser(root)):
            raise ConfigError(
                f"data.root={root}: no such folder; give the folder (or file) of the published data set."
            )
    return result


def _check_values(result: Any) -> None:
    plain = flat(dataclasses.asdict(result))
    for key, allowed in CHOICES.items():
        value = plain.get(key)
        if value is not None and value not in allowed:
            raise ConfigError(
                f"{key}={value}: unknown.{nearest(str(value), allowed)} Choose one of: {', '.join(allowed)}."
            )
    for split in plain.get("splits") or ():
        if split not in CHOICES["split"]:
            raise ConfigError(
                f"splits={','.join(plain['splits'])}: there is no {split!r}.{nearest(split, CHOICES['split'])} Choose "
                f"among: {', '.join(CHOICES['split'])}."
            )
    for key in POSITIVE:
        value = plain.get(key)
        if value is not None and value <= 0:
            raise ConfigError(f"{key}={value}: must be positive.")


def _check_run(run: RunSettings) -> None:
    if "name" not in run.model:
        raise ConfigError(
            "model: has no 'name'; write model.name=... or choose model=... (a file of conf/model)."
        )
    batch, parts = run.train.batch_size, run.train.accumulate
    if batch % parts:
        raise ConfigError(f"train.batch_size={batch} is not a multiple of train.accumulate={parts}.")
    name = "data.length" if run.data.test_length is None else "data.test_length"
    whole = run.data.test_length or run.data.length
    for rollout in (*run.eval.rollouts, *run.eval.protocol):
        length = rollout.length or whole
        if length > whole:
            raise ConfigError(
                f"eval.rollouts: a rollout of length={length} frames cannot be measured on held-out clips of "
                f"{name}={whole} frames; give data.test_length={length}."
            )
        if not 1 <= rollout.context < length:
            frames = f"clips of {name}={whole}" if rollout.length is None else f"rollouts of length={length}"
            raise ConfigError(
                f"eval.rollouts: a context of {rollout.context} frames leaves nothing to predict in {frames} "
                f"frames; choose 1 to {length - 1}."
            )
    if "encoded" in run.data.name and run.data.root is None:
        raise ConfigError(
            f"data={run.data.name} reads published tokens: give data.root. Without a data set choose the one with "
            "frames, whose embedded double is encoded by its own tokenizer (tokenizer.encode=once)."
        )
    given = [name for name in ("run", "weights") if getattr(run.tokenizer, name) is not None]
    if len(given) == 2:
        raise ConfigError("tokenizer.run and tokenizer.weights are both given; give one of them.")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
