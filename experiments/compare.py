"""`python -m experiments.compare runs=[runs/A/seed0,runs/B/seed0]`: runs side by side with what was published."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments import cli


UNLIKE = "The runs were not measured in the same way: their rows do not compare"
MODEL = "model"  # the first row of a table; "model, best of 4" are its samples
MODELS = (MODEL, "tokenizer")  # what that row is called; elsewhere the rows are measures
# Options of data sets that say what is read beside the frames, or how clips are varied in training: what is measured
# is the same. All others decide which clips or images there are, or what is seen of them.
BESIDE = ("attributes", "depth", "flip", "flow", "masks", "random_crop")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What is known of one run: its settings' names, its newest evaluation, and what it cost."""

    name: str
    model: str
    tables: Sequence[Mapping[str, Any]]
    step: int
    double: bool
    data: tuple[Any, ...]
    protocol: Mapping[str, Any]  # what must be equal for two rows of a table to compare
    cost: Mapping[str, Any]


def compare(config: DictConfig) -> int:
    """Print and write a table per kind of evaluation, a row per run, and a picture of every per-frame curve."""
    from experiments import build, validate
    from experiments.folder import RunFolder
    from experiments.schema import CompareSettings
    from slotzoo.errors import ConfigError
    from slotzoo.files import write_text
    from slotzoo.viz.plots import write_plot
    from slotzoo.viz.report import write_tables
    from slotzoo.viz.tables import read_tables, text_tables

    asked = validate.settings(config, CompareSettings)
    build.plugins(asked.plugins)
    if not asked.runs:
        raise ConfigError(
            "runs=[]: give the folders of the runs to compare, e.g. runs=[runs/A/seed0,runs/B/seed0]."
        )
    folders = [RunFolder(Path(run).expanduser()) for run in dict.fromkeys(asked.runs)]
    runs = named([measured(folder) for folder in folders], folders)
    if different := differences(runs):
        print(f"{UNLIKE} ({different}). python -m experiments.evaluate run=FOLDER measures one again.\n")
        runs = marked(runs)
    out = Path(asked.out).expanduser()
    tables = [*joined(runs), costs(runs)]
    write_text(out / "table.json", json.dumps({"tables": tables}, indent=1) + "\n")
    page = write_tables(
        out / "comparison.html", ", ".join(run.name for run in runs), read_tables({"tables": tables})
    )
    for table in tables:
        for curve in table.get("curves", ()):
            series = {name: (curve["x"], values) for name, values in curve["series"].items()}
            if not any(value is not None for _, values in series.values() for value in values):
                continue
            title = ", ".join(filter(None, (curve["title"], about(table))))
            name = "_".join(re.findall(r"\w+", title)).lower()
            labels = {"x_label": curve.get("x_label", ""), "y_label": curve.get("y_label", "")}
            write_plot(out / f"{name}.png", series, title=title, **labels)
    text = text_tables({"tables": tables})
    write_text(out / "table.txt", text + "\n")
    print(text)
    print(f"\nWritten to {out}: table.json, table.txt, {page.name} and a picture of each curve.")
    return 0


def measured(folder: Any) -> Measured:
    """Read the newest evaluation of a run; of several at the same step, the one that was made last."""
    from experiments import build
    from slotzoo.errors import ConfigError, DataError

    run, card = folder.read_settings(), folder.read_card()
    build.check_plugins(run)
    found = []
    for path in (folder.path / "evaluation").glob("step_*/table.json"):
        number = path.parent.name.split("_")[1]
        if number.isdigit():
            found.append((int(number), path.stat().st_mtime, path))
    if not found:
        raise ConfigError(
            f"run={folder.path}: was not evaluated yet; python -m experiments.evaluate run={folder.path}."
        )
    step, _, path = max(found)
    try:
        content = json.loads(path.read_text())
        tables = content.get("tables", [content])
        assert all(isinstance(table["rows"], list) and table["rows"] for table in tables)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise DataError(f"{path}: is not the table of an evaluation; evaluate the run again.") from error
    note = _note(path.parent)
    # What experiments.evaluate measured may be another set than the run was trained on.
    provenance = note.get("provenance", card.get("data", {}).get("provenance"))
    cost = {"parameters": _parameters(folder.path / "weights.safetensors"), "step": step}
    cost |= _speed(folder.path / "metrics.jsonl", step)
    for table in tables:
        if table.get("ms_per_frame") is not None:
            cost[f"ms per frame ({table['rollout']})"] = table["ms_per_frame"]
    # As experiments.evaluate names its folders, step_<n>_<split>; training measures on the test split.
    split = (*path.parent.name.split("_"), "test")[2]
    origin = (run.data.name, split, provenance, run.data.size, run.data.seed)
    double = provenance == "embedded double"
    there = {"train": run.data.clips}.get(split, run.data.test_clips) if double else 0
    protocol = _protocol(run, note.get("eval") or dataclasses.asdict(run.eval), there)
    return Measured(run.name, run.model["name"], tables, step, double, origin, protocol, cost)


def _note(evaluation: Path) -> dict[str, Any]:
    """What `experiments.evaluate` wrote down of how it measured; empty where training did."""
    from slotzoo.errors import DataError

    note = evaluation / "numbers.json"
    try:
        return {**json.loads(note.read_text())} if note.is_file() else {}
    except (ValueError, TypeError) as error:
        raise DataError(f"{note}: cannot be read ({error}); evaluate the run again.") from error


def _protocol(run: Any, found: Mapping[str, Any], there: int) -> dict[str, Any]:
    """On how many of which clips, by how many samples; a double has no more than `there` clips, 0 for any number.

    `found` are the settings of the evaluation.
    """
    protocol = {"clips": min(found["clips"], there or found["clips"])}
    protocol |= {name: found[name] for name in ("samples", "temperature")}
    # What rollouts were given, and how many frames they made, stands in the title of their table.
    if not found["rollouts"] or any(rollout["length"] is None for rollout in found["rollouts"]):
        protocol["frames"] = run.data.test_length or run.data.length
    options = {name: value for name, value in run.data.options.items() if name not in BESIDE}
    return protocol | {f"data.options.{name}": json.dumps(value) for name, value in options.items()}


def differences(runs: Sequence[Measured]) -> str:
    """In what the protocols of the runs differ, in words; empty where they are the same."""
    return "; ".join(f"{run.name}: {_unlike(run, runs)}" for run in runs) if _unlike(runs[0], runs) else ""


def _unlike(run: Measured, runs: Sequence[Measured]) -> str:
    names = dict.fromkeys(name for each in runs for name in each.protocol)
    apart = [name for name in names if len({each.protocol.get(name) for each in runs}) > 1]
    return ", ".join(f"{name}={run.protocol.get(name, 'not given')}" for name in apart)


def marked(runs: Sequence[Measured]) -> list[Measured]:
    """The runs with names that say how each was measured, for runs that were not measured alike."""
    return [dataclasses.replace(run, name=f"{run.name} ({_unlike(run, runs)})") for run in runs]


def named(runs: Sequence[Measured], folders: Sequence[Any]) -> list[Measured]:
    """The runs with names that tell them apart: with the seed where a name occurs twice, with the folder if need be."""
    plain = [run.name for run in runs]
    seeded = [f"{run.name}, {folder.path.name}" for run, folder in zip(runs, folders, strict=True)]
    whole = [str(folder.path) for folder in folders]

    def chosen(i: int) -> str:
        return next((names[i] for names in (plain, seeded) if names.count(names[i]) == 1), whole[i])

    return [dataclasses.replace(run, name=chosen(i)) for i, run in enumerate(runs)]


def joined(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """One table per title that any run has: a row per run, trivial predictions, and what was published."""
    titles = list(dict.fromkeys(kind(table) for run in runs for table in run.tables))
    return [_joined(title, runs) for title in titles] + _published_elsewhere(runs)


def kind(table: Mapping[str, Any]) -> str:
    """The title of a table without the number of clips, which is part of the protocol."""
    return re.sub(r"\b\d+ (?=held-out)", "", table["title"])


def about(table: Mapping[str, Any]) -> str:
    """What tells a table's curves from those of another: its rollout, else what its title says after the colon."""
    return table.get("rollout") or table["title"].partition(": ")[2]


def _joined(title: str, runs: Sequence[Measured]) -> dict[str, Any]:
    mine = {run.name: table for run in runs for table in run.tables if kind(table) == title}
    first = next(iter(mine.values()))
    columns = list(dict.fromkeys(column for table in mine.values() for column in table.get("columns", ())))
    if first["rows"][0]["name"] in MODELS:
        rows = [{**row, "name": own} for name, table in mine.items() for row, own in _own(name, table["rows"])]
    else:
        # No row is the model's: each is another measure of it, as in the table of losses. All stay, run beside run.
        listed = [(row["name"], name, row) for name, table in mine.items() for row in table["rows"]]
        order = list(dict.fromkeys(measure for measure, _, _ in listed))
        listed.sort(key=lambda entry: order.index(entry[0]))
        rows = [{**row, "name": f"{name}, {measure}"} for measure, name, row in listed]
    notes = []
    if len({run.data for run in runs}) > 1:
        notes.append("The runs were measured on different data: their rows do not compare.")
    if differences(runs):
        notes.append(f"{UNLIKE}.")
    if not notes:
        trivial = [row for row in first["rows"][1:] if not _is_model(row["name"])]
        rows += trivial if title.startswith("Rollout") else []
    published = _published(first.get("rollout"), runs)
    rows += published
    if published and any(run.double for run in runs):
        notes.append("Published rows are of the real data set at full size; the runs saw an embedded double.")
    titles = {table["title"] for table in mine.values()}
    return {
        "title": title if len(titles) > 1 else first["title"],
        "columns": columns,
        "better": first.get("better", {}),
        "rows": rows,
        "notes": [*first.get("notes", ()), *notes],
        "curves": _curves(mine),
        "rollout": first.get("rollout", ""),
    }


def _own(name: str, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str]]:
    """The rows of a run's own model, the first one and the best of its samples, with what they are called here."""
    best = [(row, f"{name}{row['name'].removeprefix(MODEL)}") for row in rows[1:] if _is_model(row["name"])]
    return [(rows[0], name), *best]


def _is_model(name: str) -> bool:
    return name.startswith(f"{MODEL},")


def _published(rollout: str | None, runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """Rows of the models' cards: their metrics are named `measure@rollout`."""
    from slotzoo.metrics.protocol import HIGHER_IS_BETTER
    from slotzoo.models import model_card

    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        found = {k: model_card(model).metrics.get(f"{k.lower()}@{rollout}") for k in HIGHER_IS_BETTER}
        if any(value is not None for value in found.values()):
            rows.append({"name": f"{model}, published", **found})
    return rows


def _published_elsewhere(runs: Sequence[Measured]) -> list[dict[str, Any]]:
    """What was published for rollouts that these runs did not make (or for no rollout in particular)."""
    from slotzoo.models import model_card

    made = {table.get("rollout") for run in runs for table in run.tables}
    rows: dict[str, dict[str, Any]] = {}
    for model in dict.fromkeys(run.model for run in runs):
        for name, value in model_card(model).metrics.items():
            measure, _, rollout = name.partition("@")
            if not rollout or rollout not in made:
                row = f"{model}{', ' if rollout else ''}{rollout}"
                rows.setdefault(row, {"name": row})[measure.upper()] = value
    if not rows:
        return []
    columns = list(dict.fromkeys(column for row in rows.values() for column in row if column != "name"))
    note = "action_144: 144 given frames, and actions; 100_to_900: 100 given of 900 frames, no actions."
    table = {"title": "Published, for other rollouts", "columns": columns, "rows": list(rows.values())}
    return [{**table, "better": {}, "notes": [note]}]


def _curves(tables: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs' own curves and, for comparison, the first run's trivial ones."""
    merged: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        for curve in table.get("curves", ()):
            own = next(iter(curve["series"]), None)
            if own is None:
                continue
            entry = merged.setdefault(curve["title"], {**curve, "x": list(curve["x"]), "series": {}})
            if entry["x"] == curve["x"]:
                entry["series"][name] = curve["series"][own]
    for curve in next(iter(tables.values())).get("curves", ()):
        for name, values in list(curve["series"].items())[1:]:
            if not _is_model(name):
                merged[curve["title"]]["series"].setdefault(name, values)
    return list(merged.values())


def costs(runs: Sequence[Measured]) -> dict[str, Any]:
    """What each run cost: parameters, steps, time of a training step and of a generated frame."""
    columns = list(dict.fromkeys(column for run in runs for column in run.cost))
    return {
        "title": "Cost",
        "columns": columns,
        "better": {},
        "rows": [{"name": run.name, **run.cost} for run in runs],
        "notes": [
            "Milliseconds per training step (median) and per frame of a rollout, as these runs were timed."
        ],
    }


def _parameters(path: Path) -> int | None:
    """Numbers in a weights file; None where there is none yet."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    except (OSError, SafetensorError):
        return None


def _speed(path: Path, until: int) -> dict[str, float]:
    """The median time of a training step, from the log."""
    speeds = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            value, step = entry.get("steps_per_second"), entry.get("step", 0)
        except (ValueError, AttributeError):
            continue  # a line that was cut off by a crash
        if isinstance(value, int | float) and value > 0 and step <= until:
            speeds.append(value)
    return {"ms per step": 1000 / sorted(speeds)[len(speeds) // 2]} if speeds else {}


main = cli.command("compare", compare)


if __name__ == "__main__":
    main()
