"""What a run folder holds, read for its report: every piece may be missing, torn or of an older version."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slotzoo.errors import DataError
from slotzoo.files import natural
from slotzoo.viz.tables import Table, read_tables


PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".webm")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One folder `evaluation/step_<n>` of training, or `step_<n>_<split>[_<i>]` of `experiments.evaluate`."""

    step: int
    tables: tuple[Table, ...]
    media: tuple[Path, ...]
    split: str = ""  # empty in training
    again: int = 1  # the i-th of this step and split

    @property
    def title(self) -> str:
        """What was measured: the step and, where training did not choose it, the split."""
        number = f", number {self.again}" if self.again > 1 else ""
        return f"step {self.step:,}{f', split {self.split}' if self.split else ''}{number}"


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """The contents of a run folder. `problems` says in sentences what is missing or cannot be read."""

    folder: Path
    card: Mapping[str, Any]
    config: str
    lines: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Evaluation, ...]  # of training
    measured: tuple[Evaluation, ...]  # of `experiments.evaluate`, by step
    predictions: tuple[Path, ...]  # overviews of `experiments.predict`
    log: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def step(self) -> int | None:
        """The last step that was logged."""
        return max((line["step"] for line in self.lines), default=None)

    def provenance(self) -> list[str]:
        """Every statement of the card about where the data came from."""
        found = [str(value) for key, value in flatten(self.card) if key.split(".")[-1] == "provenance"]
        return list(dict.fromkeys(found))

    def series(self) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
        """Measure -> series name -> (steps, values).

        `metrics.jsonl` names a value "measure" or "group/measure"; measures of all groups and splits share a
        chart, so that the training loss lies beside the one of the evaluation.
        """
        charts: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
        for line in self.lines:
            split = str(line.get("split", "train"))
            for key, value in line.items():
                if key in ("step", "split") or not (value is None or isinstance(value, int | float)):
                    continue
                group, _, measure = key.rpartition("/")
                name = f"{split}, {readable(group)}" if group else split
                steps, values = charts.setdefault(measure, {}).setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(math.nan if value is None else float(value))
        return charts


def read_run(folder: Path) -> RunRecords:
    """Read a run folder. Raises DataError only where there is no folder at all."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: a report is written for a run folder such as runs/NAME/seed0"
        )
    problems: list[str] = []
    card = _card(folder / "run.json", problems)
    config = _text(folder / "config.yaml", problems, "The configuration") or ""
    lines = _lines(folder / "metrics.jsonl", problems)
    found = list(_evaluations(folder, problems))
    evaluations = tuple(each for each in found if not each.split)
    # One that was stopped before its end leaves an empty folder.
    measured = tuple(each for each in found if each.split and (each.tables or each.media))
    if not evaluations and not measured:
        problems.append("There is no evaluation yet, so there are no tables and no pictures.")
    log = folder / "train.log"
    tail = log.read_text(errors="replace").splitlines()[-40:] if log.is_file() else []
    overviews = sorted((folder / "predictions").glob("*/overview.png"), key=lambda p: natural(p.parent.name))
    return RunRecords(
        folder,
        card,
        config,
        tuple(lines),
        evaluations,
        measured,
        tuple(overviews),
        tuple(tail),
        tuple(problems),
    )


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("dotted.key", plain value) for every leaf of JSON-like data; a list of plain values is one leaf."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(child, Mapping | list) for child in value):
        for i, child in enumerate(value):
            yield from flatten(child, f"{prefix}.{i}")
    elif isinstance(value, list):
        yield prefix, " ".join(str(child) for child in value)
    else:
        yield prefix, value


def readable(name: str) -> str:
    """`steps_per_second` -> "steps per second"."""
    return name.replace("_", " ").replace("/", ", ")


def _text(path: Path, problems: list[str], what: str) -> str | None:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        problems.append(f"{what} ({path.name}) is missing.")
    except OSError as error:
        problems.append(f"{what} ({path.name}) cannot be read: {error.strerror}.")
    return None


def _card(path: Path, problems: list[str]) -> Mapping[str, Any]:
    text = _text(path, problems, "The run card, which says where the data came from,")
    if text is None:
        return {}
    try:
        card = json.loads(text)
    except ValueError:
        card = None
    if not isinstance(card, dict):
        problems.append(f"The run card ({path.name}) is not readable JSON.")
        return {}
    return card


def _lines(path: Path, problems: list[str]) -> list[Mapping[str, Any]]:
    text = _text(path, problems, "The log of numbers")
    if text is None:
        return []
    lines, broken = [], 0
    raw = text.split("\n")
    for number, line in enumerate(raw):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        step = entry.get("step") if isinstance(entry, dict) else None
        if isinstance(step, int) and not isinstance(step, bool):
            lines.append(entry)
        # A run that was killed, or still writes, leaves its last line unfinished: that is no damage.
        elif number < len(raw) - 1:
            broken += 1
    if broken:
        problems.append(f"{broken} line(s) of {path.name} cannot be read and are left out.")
    if not lines:
        problems.append("No numbers were logged yet, so there are no curves.")
    return sorted(lines, key=lambda line: line["step"])


def _evaluations(folder: Path, problems: list[str]) -> Iterator[Evaluation]:
    found = []
    for path in (folder / "evaluation").glob("step_*"):
        match = re.fullmatch(r"step_(\d+)(?:_([a-z]\w*?)(?:_(\d+))?)?", path.name)
        if match and path.is_dir():
            found.append((int(match[1]), match[2] or "", int(match[3] or 1), path))
    top = folder.resolve()
    for step, split, again, path in sorted(found):
        # Links that lead out of the run folder are not followed.
        media = [
            p
            for p in sorted(path.iterdir(), key=lambda p: natural(p.name))
            if p.suffix.lower() in (*PICTURES, *VIDEOS)
        ]
        media = tuple(p for p in media if p.is_file() and p.resolve().is_relative_to(top))
        evaluation = Evaluation(step, (), media, split, again)
        if (path / "table.json").is_file():
            try:
                evaluation = dataclasses.replace(evaluation, tables=tuple(read_tables(path / "table.json")))
            except DataError:
                problems.append(f"The table of {evaluation.title} cannot be read.")
        yield evaluation
