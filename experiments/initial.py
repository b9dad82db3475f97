"""What a run begins with besides what its seed draws: the parameters of a finished run, or of a weights file."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from experiments import build
from experiments.first_stage import WEIGHTS
from experiments.folder import RunFolder
from experiments.schema import RunSettings
from slotzoo.errors import ConfigError, WeightsError, nearest
from slotzoo.tasks.tokenizer import TokenizerTask
from slotzoo.weights.files import load_arrays
from slotzoo.weights.leaves import fill, named_leaves


def leaves(run: RunSettings, folder: RunFolder, task: build.AnyTask) -> dict[str, Any]:
    """The arrays of `init_from` that the run's model begins with, by dotted name; none where it goes on already.

    With `init_parts` those of these parts of the model, each of which has to be in the file whole and in the model's
    sizes; without it all. **Raises** ConfigError, WeightsError where they do not fit.
    """
    if run.init_from is None or folder.has_checkpoint():
        return {}
    if isinstance(task, TokenizerTask):
        raise ConfigError(
            f"init_from={run.init_from}: a {run.task} trains more than a model; leave init_from out."
        )
    own = named_leaves(eqx.filter_eval_shape(build.module(run, task), jax.random.key(0)))
    theirs = load_arrays(_file(run.init_from), own)
    wanted, found = own, theirs
    parts = list(dict.fromkeys(name.split(".")[0] for name in wanted))
    for part in run.init_parts:
        if not any(_within(name, [part]) for name in wanted):
            raise ConfigError(
                f"init_parts: {run.model['name']} has no part {part!r}.{nearest(part, parts)} Its parts are: "
                f"{', '.join(parts)}."
            )
    if run.init_parts:
        wanted, found = (
            {name: x for name, x in arrays.items() if _within(name, run.init_parts)}
            for arrays in (wanted, found)
        )
    try:
        return fill(wanted, found, what=f"init_from={run.init_from}")
    except WeightsError as error:
        shapes = lambda leaves, part: {n: tuple(x.shape) for n, x in leaves.items() if _within(n, [part])}
        fit = [part for part in parts if shapes(own, part) == shapes(theirs, part)]
        hint = f" init_parts=[{','.join(fit)}] takes over what fits." if fit else ""
        raise WeightsError(f"{error}{hint}") from error


def sentence(run: RunSettings, begin: dict[str, Any]) -> str:
    """What was taken over, for the log."""
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in begin))
    count = sum(x.size for x in begin.values())
    return f"Begins with {parts} of {run.init_from}, {count:,} numbers; the rest is drawn by the seed."


def _file(given: str) -> Path:
    path = Path(given).expanduser()
    if not path.exists():
        raise ConfigError(f"init_from={given}: no such folder or file; give a finished run or a weights file.")
    if not path.is_dir():
        return path
    if not (path / WEIGHTS).is_file():
        raise ConfigError(
            f"init_from={given}: holds no {WEIGHTS}, so that run is not finished (or is no run); finish it with the "
            "command that started it."
        )
    return path / WEIGHTS


def _within(name: str, parts: list[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)
