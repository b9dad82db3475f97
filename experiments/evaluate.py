"""`python -m experiments.evaluate run=runs/NAME/seed0`: measure a run again, on held-out clips.

`run=runs/NAME` measures all its seeds, and adds their mean and standard error.
"""

from omegaconf import DictConfig

from experiments import cli


# What only rollouts of the video models are measured with.
OF_ROLLOUTS = ("samples", "lpips", "fvd")


def evaluate(config: DictConfig) -> int:
    """Measure a run's newest checkpoint, or those of all seeds in a folder."""
    import dataclasses
    import json
    from pathlib import Path

    from experiments import build, validate
    from experiments.folder import RunFolder, free
    from experiments.schema import EvaluateSettings
    from slotzoo.files import write_text
    from slotzoo.train.signals import STOPPED_EXIT_CODE
    from slotzoo.viz.tables import text_tables

    asked = validate.settings(config, EvaluateSettings)
    build.plugins(asked.plugins)
    top = Path(asked.run).expanduser()
    folders = [RunFolder(top)]
    if not folders[0].config.is_file():
        seeds = sorted(path.parent for path in top.glob("seed*/config.yaml"))
        folders = [RunFolder(path) for path in seeds] or folders
    measured, steps = [], {}
    for folder in folders:
        out = evaluate_run(asked, folder)
        if out is None:
            return STOPPED_EXIT_CODE
        measured.append(json.loads((out / "table.json").read_text()))
        steps[folder.path.name] = json.loads((out / "numbers.json").read_text())["step"]
    if len(measured) > 1:
        tables = over_seeds(measured)
        if len(set(steps.values())) > 1:
            at = ", ".join(f"{seed} at {step}" for seed, step in steps.items())
            for table in tables:
                table["notes"].append(f"The seeds were measured after different numbers of steps: {at}.")
        tables = {"tables": tables}
        card = {"seeds": list(steps), "steps": list(steps.values()), "asked": dataclasses.asdict(asked)}
        out = free(top / f"seeds_{asked.split}") / "table.json"
        write_text(out, json.dumps({**tables, **card}, indent=1) + "\n")
        print(f"\n{text_tables(tables)}\n\nWritten to {out}")
    return 0


def evaluate_run(asked, folder):
    """Measure one run; its table and pictures get a folder of their own beside those of training, which is returned.

    None if a signal came before the end.
    """
    import dataclasses
    import json

    import jax

    from experiments import build
    from experiments.folder import free
    from experiments.run import open_run
    from slotzoo.errors import ConfigError
    from slotzoo.files import write_text
    from slotzoo.prng import stream
    from slotzoo.train.mesh import shard_batch
    from slotzoo.train.signals import Signals
    from slotzoo.viz.report import write_report
    from slotzoo.viz.tables import text_tables

    settings = folder.read_settings()
    if asked.root is not None:
        settings.data.root = asked.root
    for name in ("clips", "batch_size", *OF_ROLLOUTS):
        value = getattr(asked, name)
        if value is None:
            continue
        if name in OF_ROLLOUTS and settings.task != "video_prediction":
            raise ConfigError(
                f"{name}={str(value).lower()} is for runs that predict videos; that in '{folder.path}' is one of "
                f"{settings.task}: leave it out."
            )
        setattr(settings.eval, name, value)
    settings.eval.rollouts = settings.eval.protocol or settings.eval.rollouts
    opened = open_run(
        folder, build.on_split(settings, asked.split), split=asked.split, step=asked.step, spread=True
    )
    run, mesh = opened.settings, opened.mesh
    source = build.source(run.data, asked.split)
    out = free(folder.path / "evaluation" / f"step_{opened.step}_{asked.split}")
    out.mkdir(parents=True)
    with Signals() as signals, jax.set_mesh(mesh):
        numbers = opened.task.evaluate(
            opened.module,
            opened.frozen,
            (shard_batch(mesh, batch) for batch in build.eval_batches(run, source)),
            key=stream(jax.random.key(asked.seed), "evaluate"),
            step=opened.step,
            folder=out,
            should_stop=lambda: signals.stop_requested,
        )
        if signals.stop_requested:
            return None
    card = {"step": opened.step, "provenance": source.provenance, "asked": dataclasses.asdict(asked)}
    card["eval"] = dataclasses.asdict(run.eval)  # what became of it, for experiments.compare
    write_text(out / "numbers.json", json.dumps({**card, "numbers": numbers}, indent=1) + "\n")
    what = "images" if "image" in source.spec else "clips"
    print(f"{run.name}, step {opened.step}, {asked.split} {what} of {run.data.name} ({source.provenance})\n")
    print(text_tables(out / "table.json"))
    print(f"\nWritten to {out}; report: {write_report(folder.path)}")
    return out


def over_seeds(measured):
    """The tables of several runs as one: of every number its mean and, beside it, the standard error of that mean.

    Tables and rows are matched by what they are called. A number that not every run has is left out.
    """
    import statistics

    from experiments.compare import kind

    joined = []
    runs = [numbered(tables_of(run), kind) for run in measured]
    for which, first in runs[0].items():
        same = [numbered(run[which]["rows"], lambda row: row.get("name", "")) for run in runs if which in run]
        columns = [column for column in first["columns"] if column != "name"]
        rows = []
        for name in same[0]:
            found = {"name": name[0]}
            for column in columns:
                values = [each[name].get(column) for each in same if name in each]
                values = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
                if len(values) == len(measured):
                    found[column] = statistics.fmean(values)
                    found[f"{column} s.e."] = statistics.stdev(values) / len(values) ** 0.5
            rows.append(found)
        both = [name for column in columns for name in (column, f"{column} s.e.")]
        title = f"{first['title']}, mean and standard error of {len(measured)} seeds"
        notes = [*first.get("notes", ())]
        joined.append(
            {"title": title, "columns": both, "better": first.get("better", {}), "rows": rows, "notes": notes}
        )
    return joined


def numbered(entries, name):
    """Entries by (name, how many of that name stand before)."""
    found = {}
    for entry in entries:
        own = name(entry)
        found[own, sum(other == own for other, _ in found)] = entry
    return found


def tables_of(content):
    """The tables of a `table.json`, which holds one or several."""
    return content.get("tables", [content])


main = cli.command("evaluate", evaluate)


if __name__ == "__main__":
    main()
