"""Checkpoints that are whole or absent: Orbax, asynchronous, arrays by name, data position and a card.

A step's folder holds the items `model`, `optimizer`, `ema` (if any), `data` (JSON: the data iterator of each
process) and `card` (JSON: configuration, versions). Arrays are stored under dotted leaf names, so that nothing
of a checkpoint is ever code, and the model can be loaded without the optimiser.
"""

import base64
import dataclasses
import errno
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from slotzoo.errors import CheckpointError
from slotzoo.files import write_text
from slotzoo.train.distributed import gather
from slotzoo.train.names import from_named, is_array, named_arrays, targets
from slotzoo.train.protocols import DataIterator
from slotzoo.train.state import TrainState


log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
    """What `Checkpointer.restore_latest` found."""

    state: TrainState
    step: int
    card: dict[str, Any]


class _OrbaxErrors(logging.Filter):
    """Orbax prints the traceback of a failed write from each of its threads, and then raises it for us to tell."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.levelno >= logging.ERROR and "orbax" in record.pathname)


_QUIET = _OrbaxErrors()


class Checkpointer:
    """Writes and reads the checkpoints of one run, in `folder`.

    The `keep` newest stay, each `keep_every`-th step for good, and the best by `monitor` (a name among the
    metrics given to `save`; `minus` in front, `-psnr`, means that larger is better).
    """

    def __init__(
        self, folder: str | Path, *, keep: int = 3, keep_every: int | None = None, monitor: str | None = None
    ):
        self.folder = Path(folder).absolute()
        self._monitor = monitor
        logging.getLogger("absl").addFilter(_QUIET)
        rules: list[Any] = [policies.LatestN(n=max(keep, 1))]
        if keep_every:
            rules.append(policies.EveryNSteps(interval_steps=keep_every))
        if monitor is not None:
            rules.append(
                policies.BestN(
                    get_metric_fn=self._badness,
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(rules),
            # Orbax writes the numbers down only with this: without, a run that goes on would forget the best.
            best_fn=None if monitor is None else self._badness,
            enable_async_checkpointing=True,
        )
        try:
            self._clean("*")
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(f"The checkpoint folder {self.folder} cannot be used: {error}.") from error
        self._pending: int | None = None

    def steps(self) -> list[int]:
        """The steps with a finished checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step of the best checkpoint by `monitor`; None if there is none that was measured."""
        found = {step: self._badness(self._manager.metrics(step)) for step in self.steps()}
        best = min(found, key=lambda step: found[step], default=None)
        return None if best is None or math.isinf(found[best]) else best

    def _badness(self, metrics: Mapping[str, float] | None) -> float:
        """The number by which a checkpoint is monitored; infinite where it was not measured, or by another one."""
        return (metrics or {}).get(self._monitor or "", math.inf)

    def save(
        self,
        step: int,
        state: TrainState,
        data_iterator: DataIterator,
        card: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Start writing step `step`; returns once the arrays are copied, so that training can go on.

        Call it before the next batch is drawn: then the state and the data position agree. Raises
        CheckpointError if this or the previous save failed; what was saved before stays.
        """
        self._finish()
        if step in self._manager.all_steps():
            return
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(named_arrays(tree)) for name, tree in _items(state).items()
        }
        states = gather(_to_json(data_iterator.get_state()))
        items["data"] = ocp.args.JsonSave({"processes": len(states), "states": states})
        items["card"] = ocp.args.JsonSave(dict(card))
        numbers = None if self._monitor is None else {self._monitor: _monitored(metrics or {}, self._monitor)}
        self._pending = step
        try:
            self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(state, eqx.is_array))))
            self._manager.save(
                step,
                args=ocp.args.Composite(**items),
                metrics=numbers,
            )
        except Exception as error:
            raise self._failed(error) from error

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Give the checkpoint of `step`, saved before it was measured, the number of `metrics` it is monitored by.

        Only the small file with that number is replaced, at once: a process killed meanwhile leaves the old one
        or the new one, and the arrays as they are. Raises CheckpointError if it cannot be written.
        """
        self._finish()
        if self._monitor is None or step not in self._manager.all_steps():
            return
        number, problem = _monitored(metrics, self._monitor), None
        if jax.process_index() == 0 and self._badness(self._manager.metrics(step)) != number:
            try:  # where Orbax keeps the numbers given to a save; it has no call that changes them
                place = self.folder / str(step) / "metrics" / "metrics"
                write_text(place, json.dumps({self._monitor: number}), durable=True)
            except OSError as error:
                problem = _reason(error)
        problem = gather(problem)[0]
        if problem is not None:
            raise CheckpointError(
                f"The number {self._monitor} of step {step} could not be written to its checkpoint in "
                f"{self.folder}: {problem}. The checkpoint itself is whole; make room and run the same command again."
            )
        self._manager.reload()

    def wait(self) -> None:
        """Block until the last save is on disk; raise CheckpointError if it failed."""
        self._finish()

    def close(self) -> None:
        """Wait, then let the threads go."""
        try:
            self._finish()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()

    def restore_latest(self, state: TrainState, data_iterator: DataIterator | None = None) -> Restored | None:
        """Restore the newest checkpoint that can be read, and set `data_iterator` to its position.

        `state` says the shapes and shardings (`slotzoo.train.sharding.abstract`), which may be those of another
        mesh or strategy than at saving. None if there is no checkpoint at all. A checkpoint that cannot be read
        is set aside with a warning; if none can be read, CheckpointError: a run never silently starts anew.
        """
        self._finish()
        problems: list[tuple[int, str]] = []
        for step in reversed(self.steps()):
            found, problem = None, ""
            try:
                found = self._restore(step, state)
            except Exception as error:  # Orbax raises many kinds; each is reported, none is swallowed
                problem = _difference(self.folder / str(step), state.model) or _reason(error)
            if all(gather(found is not None)) and found is not None:
                for broken, why in problems:
                    log.warning(
                        "The checkpoint of step %d cannot be read (%s); going on from step %d.",
                        broken,
                        why,
                        step,
                    )
                    self._set_aside(broken)
                restored, position = found
                if data_iterator is not None:
                    data_iterator.set_state(_from_json(_own_position(position, step)))
                return restored
            problems.append((step, problem or "another process could not read it"))
        if problems:
            reasons = "; ".join(f"step {step}: {why}" for step, why in problems)
            raise CheckpointError(
                f"There are checkpoints in {self.folder}, but none can be read ({reasons}). Repair or move the "
                "folder away; training does not start over by itself."
            )
        return None

    def _restore(self, step: int, state: TrainState) -> tuple[Restored, Any]:
        wanted = {name: ocp.args.StandardRestore(targets(tree)) for name, tree in _items(state).items()}
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(**wanted, data=ocp.args.JsonRestore(), card=ocp.args.JsonRestore()),
        )
        parts = {name: from_named(tree, found[name]) for name, tree in _items(state).items()}
        full = TrainState(
            eqx.combine(parts["model"]["model"], eqx.filter(state.model, is_array, inverse=True)),
            eqx.combine(parts["optimizer"]["opt_state"], eqx.filter(state.opt_state, is_array, inverse=True)),
            parts["ema"] if "ema" in parts else None,
            parts["optimizer"]["step"],
        )
        return Restored(full, step, found["card"]), found["data"]

    def _finish(self) -> None:
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        self._pending = None

    def _check_space(self, needed: int) -> None:
        """Refuse at once where there is no room: a write that fails half-way takes the rest of the disk first."""
        free = shutil.disk_usage(self.folder).free
        if not all(gather(free > needed)):
            raise OSError(errno.ENOSPC, f"No space left on device: {needed} bytes are needed, {free} are free")

    def _failed(self, error: Exception) -> CheckpointError:
        step, self._pending = self._pending, None
        if step is not None:
            self._clean(str(step))  # a half-written folder would only keep a full disk full
        good = saved_steps(self.folder)
        last = f"The last good checkpoint is step {good[-1]}" if good else "There is no earlier checkpoint"
        return CheckpointError(
            f"The checkpoint of step {step} could not be written to {self.folder}: {_reason(error)}. {last}; "
            "make room and run the same command again."
        )

    def _clean(self, step: str) -> None:
        """Remove what an unfinished save left behind."""
        if jax.process_index() == 0:
            for rest in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                shutil.rmtree(rest, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        """Move a broken checkpoint away, so that the step can be saved again."""
        if jax.process_index() == 0:
            target = self.folder.parent / "broken" / f"{self.folder.name}_{step}"
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self.folder / str(step)).rename(target)
        gather(True)
        self._manager.reload()


def load_model(
    folder: str | Path, model: PyTree, *, step: int | None = None, prefer_ema: bool = True
) -> tuple[PyTree, int]:
    """Load only the model of a run's newest readable checkpoint (or of `step`); return it with its step.

    `model` is the module with arrays or `jax.ShapeDtypeStruct`s, as `eqx.filter_eval_shape` makes it; arrays
    come back with the shardings it names, else on the first device. The averaged parameters are taken where
    the run kept them. Nothing in `folder` is changed, so that a run may go on meanwhile.
    """
    folder = Path(folder).absolute()
    steps = saved_steps(folder) if step is None else [step]
    if not steps:
        raise CheckpointError(f"There is no checkpoint in {folder}.")
    problems = []
    for candidate in reversed(steps):
        place = folder / str(candidate)
        try:
            loaded = _read(place / "model", {"model": model})["model"]
            if prefer_ema and (place / "ema").is_dir():
                loaded = eqx.combine(_read(place / "ema", eqx.filter(model, _is_inexact)), loaded)
            if problems:
                log.warning("%s; took step %d.", "; ".join(problems), candidate)
            return loaded, candidate
        except Exception as error:  # as in restore_latest
            why = _difference(place, model) or _reason(error)
            problems.append(f"step {candidate} cannot be read ({why})")
    raise CheckpointError(f"No checkpoint in {folder} can be read: {'; '.join(problems)}.")


def read_card(folder: str | Path, step: int | None = None) -> dict[str, Any]:
    """Return the card saved with the newest checkpoint (or with `step`): plain data, nothing is run from it."""
    folder = Path(folder).absolute()
    steps = saved_steps(folder) if step is None else [step]
    if not steps:
        raise CheckpointError(f"There is no checkpoint in {folder}.")
    path = folder / str(steps[-1]) / "card" / "metadata"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The card {path} cannot be read: {error}.") from error


def _items(state: TrainState) -> dict[str, PyTree]:
    items: dict[str, PyTree] = {
        "model": {"model": state.model},
        "optimizer": {"opt_state": state.opt_state, "step": state.step},
    }
    if state.ema is not None:
        items["ema"] = state.ema
    return items


def _read(path: Path, tree: PyTree) -> PyTree:
    with ocp.StandardCheckpointer() as reader:
        return from_named(tree, reader.restore(path, targets(tree)))


def _difference(place: Path, model: PyTree) -> str:
    """Say how a readable checkpoint differs from what was asked for; an empty string if it cannot be told."""
    try:
        with ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(place / "model")
        stored = getattr(stored, "item_metadata", stored)
        shapes = {name: tuple(leaf.shape) for name, leaf in dict(stored).items()}
    except Exception as error:  # the caller has the first error, which is the one to report
        log.debug("no metadata in %s: %s", place, error)
        return ""
    wanted = {name: tuple(leaf.shape) for name, leaf in named_arrays({"model": model}).items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(name) != shapes.get(name):
            has = f"has shape {shapes[name]}" if name in shapes else "is absent"
            asked = f"shape {wanted[name]}" if name in wanted else "none"
            return f"it was made by another model: {name} {has} there, and {asked} is wanted"
    return ""


def _reason(error: BaseException) -> str:
    """The sentence of an error, with the disk named where it is the disk."""
    chain, seen = error, []
    while chain is not None and chain not in seen:
        seen.append(chain)
        chain = chain.__cause__ or chain.__context__
    text = " ".join(str(e) for e in seen)
    if re.search(r"No space left|ENOSPC|Errno 28|RESOURCE_EXHAUSTED", text):
        sizes = re.search(r"\d+ bytes are needed, \d+ are free", text)
        return f"the disk is full ({sizes[0] if sizes else 'no space left on device'})"
    if re.search(r"Disk quota|EDQUOT|File too large|EFBIG", text):
        return "the disk quota or file size limit is reached"
    lines = [line for line in str(error).strip().splitlines() if line]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def saved_steps(folder: str | Path) -> list[int]:
    """Finished checkpoints: Orbax renames a folder to its bare number once everything in it is written."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def _monitored(metrics: Mapping[str, Any], monitor: str) -> float:
    name = monitor.removeprefix("-")
    value = metrics.get(name)
    if value is None or not np.isfinite(value):
        return math.inf
    return -float(value) if monitor.startswith("-") else float(value)


def _own_position(data: Any, step: int) -> Any:
    states = data["states"]
    if len(states) == jax.process_count():
        return states[jax.process_index()]
    # Each process met corrupted records of its own: all go on with those of all.
    places = [
        {name: x for name, x in state.items() if name != "skipped"} if isinstance(state, dict) else state
        for state in states
    ]
    if all(place == places[0] for place in places):
        log.warning(
            "The checkpoint of step %d was made by %d processes, now there are %d: the data goes on at the "
            "same position, but clips are shared out differently.",
            step,
            len(states),
            jax.process_count(),
        )
        met = [state["skipped"] for state in states if isinstance(state, dict) and "skipped" in state]
        return {**states[0], "skipped": {k: x for each in met for k, x in each.items()}} if met else states[0]
    raise CheckpointError(
        f"The checkpoint of step {step} holds the data positions of {len(states)} processes, which differ; it "
        f"cannot be continued with {jax.process_count()}."
    )


def _to_json(state: Any) -> Any:
    return {"base64": base64.b64encode(state).decode()} if isinstance(state, bytes) else state


def _from_json(state: Any) -> Any:
    if isinstance(state, dict) and set(state) == {"base64"}:
        return base64.b64decode(state["base64"])
    return state


def _is_inexact(leaf: Any) -> bool:
    return is_array(leaf) and jax.numpy.issubdtype(leaf.dtype, np.inexact)
