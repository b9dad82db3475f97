"""`python -m experiments.evaluate run=runs/NAME/seed0`: measure a run again, on held-out clips."""

import hydra
from omegaconf import DictConfig

from experiments import cli


def evaluate(config: DictConfig) -> int:
    """Measure a run's newest checkpoint; its table and pictures get a folder of their own beside those of training."""
    import dataclasses
    import json
    from pathlib import Path

    import jax

    from experiments import build, validate
    from experiments.folder import RunFolder, free, write_text
    from experiments.run import open_run
    from experiments.schema import EvaluateSettings
    from slotzoo.prng import stream
    from slotzoo.train.mesh import shard_batch
    from slotzoo.train.signals import STOPPED_EXIT_CODE, Signals
    from slotzoo.viz.report import write_report
    from slotzoo.viz.tables import text_tables

    asked = validate.settings(config, EvaluateSettings)
    build.plugins(asked.plugins)
    folder = RunFolder(Path(asked.run).expanduser())
    settings = folder.read_settings()
    if asked.root is not None:
        settings.data.root = asked.root
    for name in ("clips", "batch_size", "samples", "lpips", "fvd"):
        if getattr(asked, name) is not None:
            setattr(settings.eval, name, getattr(asked, name))
    settings.eval.rollouts = settings.eval.protocol or settings.eval.rollouts
    opened = open_run(folder, settings)
    run, mesh = opened.settings, build.mesh(opened.settings)
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
            return STOPPED_EXIT_CODE
    card = {"step": opened.step, "provenance": source.provenance, "asked": dataclasses.asdict(asked)}
    write_text(out / "numbers.json", json.dumps({**card, "numbers": numbers}, indent=1) + "\n")
    what = "images" if "image" in source.spec else "clips"
    print(f"{run.name}, step {opened.step}, {asked.split} {what} of {run.data.name} ({source.provenance})\n")
    print(text_tables(out / "table.json"))
    print(f"\nWritten to {out}; report: {write_report(folder.path)}")
    return 0


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def _main(config: DictConfig) -> None:
    with cli.sentences():
        raise SystemExit(evaluate(config))


def main() -> None:
    cli.prepare("evaluate")
    _main()


if __name__ == "__main__":
    main()
