"""The flow of a training run, and how a run is opened again for measuring and sampling."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh
from omegaconf import DictConfig

from experiments import build, first_stage, initial, validate
from experiments.encode import check_codes
from experiments.folder import MAY_CHANGE, Lock, RunFolder, flat_settings, meet
from experiments.schema import RunSettings
from slotzoo.data import Source
from slotzoo.errors import CheckpointError, ConfigError
from slotzoo.train.checkpoint import load_model, read_card, saved_steps
from slotzoo.train.distributed import initialize
from slotzoo.train.logging import RunLogger
from slotzoo.train.loop import FitResult, fit
from slotzoo.train.mesh import local_mesh, make_mesh
from slotzoo.train.optimizer import learning_rate, make_optimizer
from slotzoo.train.resume import check_resume
from slotzoo.train.sharding import place, whole
from slotzoo.train.signals import STOPPED_EXIT_CODE, Signals
from slotzoo.viz.report import write_report
from slotzoo.viz.tables import text_tables
from slotzoo.weights.files import save_weights


def train(config: DictConfig, overrides: Sequence[str]) -> int:
    """Train what the composed `config` describes, from where it stopped; return the exit code."""
    mesh = config.mesh
    initialize(
        mesh.distributed, coordinator=mesh.coordinator, processes=mesh.processes, process_id=mesh.process_id
    )
    run = resolve(config, overrides)
    with Signals() as signals:
        finished = train_run(run, signals)
    return 0 if finished else STOPPED_EXIT_CODE


def resolve(config: DictConfig, overrides: Sequence[str]) -> RunSettings:
    """Composed configuration to checked settings, its scale chosen by the devices that are there."""
    asked = config.scale
    accelerator = jax.default_backend() != "cpu"
    run = validate.settings(validate.with_scale(config, overrides, accelerator), RunSettings)
    if asked == "auto" and jax.process_index() == 0:
        why = f"{jax.device_count()} {jax.devices()[0].device_kind}"
        print(f"scale={run.scale} ({why}); scale=paper or scale=tiny forces one.", flush=True)
    return run


def train_run(run: RunSettings, signals: Signals) -> bool:
    """Train one run in its folder, its first stage before it if that is missing; return whether it was finished."""
    folder = RunFolder.of(run)
    build.plugins(run.plugins)
    # Mistakes in the options of the model and the task are said before anything is made.
    build.config_of_model(run)
    build.check_weights(build.task(run))
    with Lock(folder):
        changed = check_settings(run, folder)
        done = folder.read_card().get("finished")
        if (
            done is not None
            and done["step"] >= run.train.steps
            and (folder.path / first_stage.WEIGHTS).is_file()
        ):
            if jax.process_index() == 0:
                table = folder.evaluation(done["step"]) / "table.json"
                print(text_tables(table) if table.is_file() else "", flush=True)
                print(f"Finished already: {done['step']} steps, in {folder.path}. More of them: train.steps=N.")
            return True
        stage = first_stage.prepare(run, folder, lambda settings: train_run(settings, signals))
        if stage is None:
            return False
        logger = RunLogger(
            folder.path, name=run.name, config=dataclasses.asdict(run), **dataclasses.asdict(run.logger)
        )
        with logger:
            result = _fit(run, folder, stage, logger, signals, changed)
    return result.status == "finished"


def check_settings(run: RunSettings, folder: RunFolder) -> list[str]:
    """Refuse to go on with a run under other settings; return the harmless ones that changed.

    Before the first checkpoint nothing is lost, and a mistake that was just mended must not be held against anyone.
    """
    if not folder.has_checkpoint():
        return []
    if not folder.config.is_file():
        raise ConfigError(
            f"{folder.path} holds checkpoints but no config.yaml, so it is unknown whether they belong to this run; "
            "move the folder away, or give another name or seed."
        )
    changed = check_resume(flat_settings(folder.read_settings()), flat_settings(run), MAY_CHANGE)
    meet("the settings are compared")  # before process 0 writes them anew
    return changed


def _fit(
    run: RunSettings,
    folder: RunFolder,
    stage: first_stage.Stage,
    logger: RunLogger,
    signals: Signals,
    changed: Sequence[str],
) -> FitResult:
    source, test = build.source(run.data, "train"), build.source(run.data, "test")
    full = build.complete(run, stage.tokenizer, source.spec)
    for line in introduction(full, folder, source, stage, changed):
        logger.say(line)
    check_data(folder, source)
    if jax.process_index() == 0:  # nothing is refused any more
        folder.write_settings(run)
        folder.update_card(start=True, **card(full, source, stage))
    source = first_stage.encoded(full, source, stage, folder)
    task, mesh, optimizer = build.task(full), build.mesh(full), build.optimizer_config(full)
    begin = initial.leaves(full, folder, task)
    if begin:
        logger.say(initial.sentence(full, begin))
    held_out = build.eval_batches(full, test)
    result = fit(
        build.fit_config(full),
        task=task,
        model=build.module(full, task),
        initial=begin,
        optimizer=make_optimizer(optimizer),
        learning_rate=learning_rate(optimizer),
        train=build.train_batches(full, source, mesh),
        evaluation=lambda: iter(held_out),
        frozen=build.frozen(task, stage.tokenizer),
        folder=folder.path,
        logger=logger,
        mesh=mesh,
        signals=signals,
        card={"settings": flat_settings(full), "run": folder.read_card()},
    )
    if result.status == "finished":
        # Gathered by all processes, written by one.
        model = task.export(whole(result.state.averaged(), mesh, local_mesh(mesh)))
        export(full, folder, model, result.step)
        if jax.process_index() == 0:
            logger.say(text_tables(folder.evaluation(result.step) / "table.json"))
            folder.update_card(finished={"step": result.step, "metrics": result.metrics})
            logger.say(f"Report: {write_report(folder.path)}")
        meet("the run is finished")
    return result


def check_data(folder: RunFolder, source: Source) -> None:
    """Refuse to go on with a run on other clips than it was started with."""
    before = folder.read_card().get("data") if folder.has_checkpoint() else None
    meet("the data is compared")  # before process 0 writes the card anew
    now = {"provenance": source.provenance, "fingerprint": source.fingerprint}
    if before is not None and {key: before.get(key) for key in now} != now:
        raise ConfigError(
            f"This run was started on other clips ({before.get('provenance')}, {before.get('clips')}) than it is "
            f"asked to go on with ({source.provenance}, {len(source)}); give the old data, or another name or seed."
        )


def introduction(
    run: RunSettings, folder: RunFolder, source: Source, stage: first_stage.Stage, changed: Sequence[str]
) -> list[str]:
    """What a reader of the log should know before the first step."""
    lines = [f"{run.name}: {run.model['name']} at scale={run.scale}, seed {run.seed}, in {folder.path}"]
    about = getattr(source, "about", "")
    if source.provenance == "real":
        origin = about or f"from {run.data.root}"
        lines.append(f"Data: {run.data.name} {origin}, {len(source)} training {_records(source)}.")
    else:
        lines.append(
            f"Data: the EMBEDDED DOUBLE of {run.data.name}, {len(source)} generated training {_records(source)}; "
            f"numbers do not compare with published ones{f' (it is {about})' if about else ''}. data.root=FOLDER "
            "reads the real set."
        )
    lines += build.advice(run, source.spec)
    if stage.tokenizer is not None:
        config = stage.tokenizer.config
        about = f"{stage.card.source} ({stage.card.notes})" if stage.card else ""
        lines.append(f"Tokenizer: {about}, {config.latent} x {config.latent} tokens of {config.n_embed} codes.")
    if changed:
        lines.append(f"Going on under changed settings: {', '.join(changed)}.")
    return lines


def _records(source: Source) -> str:
    return "images" if "image" in source.spec else "clips"


def card(run: RunSettings, source: Source, stage: first_stage.Stage) -> dict[str, Any]:
    """What a run is made of, for run.json, the checkpoints and the report."""
    devices = jax.devices()
    return {
        "name": run.name,
        "model": run.model["name"],
        "scale": run.scale,
        "data": {
            "name": run.data.name,
            "provenance": source.provenance,
            "about": getattr(source, "about", ""),
            "fingerprint": source.fingerprint,
            "clips": len(source),
        },
        "tokenizer": None if stage.card is None else dataclasses.asdict(stage.card),
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
    }


def export(run: RunSettings, folder: RunFolder, model: eqx.Module, step: int) -> None:
    """Write the weights of a finished run as a file of their own, with its card."""
    double = folder.read_card().get("data", {}).get("provenance") == "embedded double"
    trained_on = f"the embedded double of {run.data.name}" if double else run.data.name
    if jax.process_index() == 0:
        save_weights(
            folder.path / first_stage.WEIGHTS,
            model,
            name=run.model["name"],
            config=build.config_of_model(run),
            source=f"{run.name}, seed {run.seed}, step {step}",
            notes=f"trained on {trained_on}, scale {run.scale}",
        )


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run with the parameters of one of its checkpoints, ready to be measured and sampled."""

    settings: RunSettings
    folder: RunFolder
    task: Any
    module: Any  # what the training state held
    frozen: Any
    step: int
    mesh: Mesh  # all devices, for batches; `module` and `frozen` are on each of them where that was asked for


def open_run(
    folder: RunFolder,
    run: RunSettings | None = None,
    *,
    split: str | None = "test",
    step: int | None = None,
    spread: bool = False,
) -> OpenedRun:
    """Load a run from its newest readable checkpoint (or that of `step`), the averaged parameters where it kept them.

    What of the model's sizes follows from the data set is read off `split` of it; with None it is what training found,
    and no data set has to be there. The parameters lie on the first device; with `spread` on each of the mesh, for
    batches that are spread over it.

    **Raises** `ConfigError` where `folder` is no run, `CheckpointError` where it has no checkpoint that can be read.
    """
    run = folder.read_settings() if run is None else run
    build.check_plugins(run)
    kept = saved_steps(folder.checkpoints)
    if step is not None and kept and step not in kept:
        raise ConfigError(
            f"step={step}: {folder.path} has no such checkpoint; it has those of {', '.join(map(str, kept))}."
        )
    stage = first_stage.read(run, folder)
    trained = None if split is not None else _as_trained(run, folder)
    if trained is not None:
        run = trained
    else:
        source = build.source(run.data, split or "test")
        if stage.tokenizer is not None:
            check_codes(source, stage.tokenizer)
        run = build.complete(run, stage.tokenizer, source.spec)
    task = build.task(run)
    shapes = eqx.filter_eval_shape(build.module(run, task), jax.random.key(0))
    module, step = load_model(folder.checkpoints, shapes, step=step)
    frozen, mesh = build.frozen(task, stage.tokenizer), make_mesh()
    if spread:
        module, frozen = (place(tree, mesh, "replicated") for tree in (module, frozen))
    return OpenedRun(run, folder, task, module, frozen, step, mesh)


def _as_trained(run: RunSettings, folder: RunFolder) -> RunSettings | None:
    """`run` with the model's fields as the newest checkpoint's card has them; None where that cannot be read."""
    try:
        settings = read_card(folder.checkpoints).get("settings", {})
    except CheckpointError:  # load_model takes an older one, or says so
        return None
    fields = {key.removeprefix("model."): value for key, value in settings.items() if key.startswith("model.")}
    return dataclasses.replace(run, model=fields) if fields else None
