"""From typed settings to objects: explicit functions and the registries, nothing found by a path in a string."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from experiments.schema import DataSettings, RunSettings
from slotzoo.data import FieldSpec, Source, open_source
from slotzoo.data.pipeline import BatchDataset, make_pipeline
from slotzoo.data.registry import source_options
from slotzoo.errors import ConfigError
from slotzoo.models import create_model, list_models, model_config
from slotzoo.models.registry import replaced, tiny
from slotzoo.models.vqgan import VQGAN
from slotzoo.tasks.first_stage import FirstStage
from slotzoo.tasks.localisation import LocalisationConfig, LocalisationTask
from slotzoo.tasks.object_images import ObjectImagesConfig, ObjectImagesTask
from slotzoo.tasks.object_videos import ObjectVideosConfig, ObjectVideosTask
from slotzoo.tasks.set_prediction import SetPredictionConfig, SetPredictionTask
from slotzoo.tasks.slot_pictures import SlotPicturesConfig, SlotPicturesTask
from slotzoo.tasks.slot_prediction import SlotPredictionConfig, SlotPredictionTask
from slotzoo.tasks.tokenizer import TokenizerTask, TokenizerTaskConfig
from slotzoo.tasks.video_prediction import Rollout, VideoPredictionConfig, VideoPredictionTask
from slotzoo.train.loop import FitConfig
from slotzoo.train.mesh import check_batch_size, make_mesh
from slotzoo.train.optimizer import OptimizerConfig


AnyTask = (
    TokenizerTask
    | VideoPredictionTask
    | ObjectImagesTask
    | ObjectVideosTask
    | SetPredictionTask
    | SlotPicturesTask
    | SlotPredictionTask
    | LocalisationTask
)


def plugins(names: Sequence[str]) -> None:
    """Import the modules that the user named, so that they register their models.

    Only a command line or an experiment names them: what a saved configuration names is never imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"plugins: cannot import '{name}' ({error}); is it installed, or on PYTHONPATH?"
            ) from error


def check_plugins(run: RunSettings) -> None:
    """Refuse a saved run whose model is of plugins that nobody named now, saying which they were."""
    if run.plugins and run.model["name"] not in list_models():
        named = ",".join(run.plugins)
        raise ConfigError(
            f"{run.name}: its model '{run.model['name']}' is not of this zoo; give plugins=[{named}], as it was "
            "trained with."
        )


def mesh(run: RunSettings) -> Mesh:
    """All devices as a mesh."""
    return make_mesh(model=run.mesh.model)


def source(data: DataSettings, split: str) -> Source:
    """Open one split of the data set: the published one under `data.root`, else the embedded double."""
    clips = data.clips if split == "train" else data.test_clips
    length = data.test_length if split == "test" and data.test_length else data.length
    given = {"length": length, "size": data.size, "clips": clips, "seed": data.seed}
    options = {name: value for name, value in given.items() if name in source_options(data.name)}
    options |= data.options
    cache = None if data.cache is None else Path(data.cache).expanduser()
    root = None if data.root is None else Path(data.root).expanduser()
    return open_source(data.name, split, root=root, cache=cache, **options)  # type: ignore[arg-type]


def train_batches(run: RunSettings, opened: Source, where: Mesh) -> BatchDataset:
    """Endless shuffled batches of this process."""
    data = run.data
    return make_pipeline(
        opened,
        batch_size=check_batch_size(run.train.batch_size, where, run.train.accumulate),
        seed=run.seed,
        train=True,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=data.threads,
        num_workers=data.workers,
        prefetch=data.prefetch,
        on_error=data.on_error,  # type: ignore[arg-type]
        max_skips=data.max_skips,
        length=_length(opened, data.frames_per_clip or data.length),
        stride=data.stride,
    )


def eval_batches(run: RunSettings, opened: Source) -> BatchDataset:
    """One pass over `eval.clips` held-out clips, whole ones: this process's part of them."""
    data = run.data
    return make_pipeline(
        opened,
        batch_size=max(1, run.eval.batch_size // jax.process_count()),
        seed=run.seed,
        train=False,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=data.threads,
        prefetch=data.prefetch,
        on_error=data.on_error,  # type: ignore[arg-type]
        max_skips=data.max_skips,
        length=_length(opened, _held_out_length(run)),
        limit=run.eval.clips,
    )


def on_split(run: RunSettings, split: str) -> RunSettings:
    """The settings for measuring on `split`: clips have `data.test_length` frames only in the test split, in the others
    `data.length`, and rollouts go no further than these do.
    """
    if split == "test":
        return run
    whole = run.data.length
    cut = [r if (r.length or 0) <= whole else dataclasses.replace(r, length=whole) for r in run.eval.rollouts]
    rollouts = [r for i, r in enumerate(cut) if r.context < whole and r not in cut[:i]]
    if cut and not rollouts:
        raise ConfigError(
            f"split={split}: its clips have data.length={whole} frames, which leaves nothing to predict after a "
            f"context of {min(r.context for r in cut)}; split=test has longer ones."
        )
    return dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, test_length=None),
        eval=dataclasses.replace(run.eval, rollouts=rollouts),
    )


def _held_out_length(run: RunSettings) -> int:
    """Frames of a held-out clip: no more than the longest rollout needs, all where objects are followed."""
    whole = run.data.test_length or run.data.length
    if run.task == "object_videos":
        return whole
    longest = max((rollout.length or whole for rollout in run.eval.rollouts), default=run.data.length)
    return max(longest, min(run.data.length, whole))


def _length(opened: Source, length: int) -> int | None:
    """How many frames are cut out of a record; None for images, which have no time axis."""
    return length if any(field.time for field in opened.spec.values()) else None


def model_overrides(run: RunSettings) -> dict[str, Any]:
    """What the configuration changes in the registered model: its tiny variant first, then single fields."""
    fields = {name: value for name, value in run.model.items() if name != "name"}
    small = tiny(run.model["name"]) if run.scale == "tiny" else {}
    return {**small, **({"remat": True} if _own_remat(run) else {}), **fields}


def _own_remat(run: RunSettings) -> bool:
    """Whether train.remat is left to the model, which knows its layers: that saves more than the step can."""
    return run.train.remat and hasattr(model_config(run.model["name"]), "remat")


def config_of_model(run: RunSettings) -> Any:
    """The Config of the run's model. Raises `ConfigError` for an unknown model or field."""
    return model_config(run.model["name"], **model_overrides(run))


def wants_tokens(run: RunSettings) -> bool:
    """Whether the model works on the codes of a tokenizer."""
    return hasattr(config_of_model(run), "num_codes")


def task(run: RunSettings) -> AnyTask:
    """What is optimised, measured and drawn."""
    if run.task == "object_images":
        images = ObjectImagesConfig(pictures=run.eval.pictures)
        return ObjectImagesTask(replaced(images, run.options, what="options (of objects in images)"))
    if run.task == "object_videos":
        videos = ObjectVideosConfig(pictures=run.eval.pictures)
        return ObjectVideosTask(replaced(videos, run.options, what="options (of objects in videos)"))
    if run.task == "set_prediction":
        sets = SetPredictionConfig(pictures=run.eval.pictures)
        return SetPredictionTask(replaced(sets, run.options, what="options (of set prediction)"))
    if run.task == "slot_pictures":
        painted = SlotPicturesConfig(pictures=run.eval.pictures)
        return SlotPicturesTask(replaced(painted, run.options, what="options (of pictures from slots)"))
    if run.task == "slot_prediction":
        predicted = SlotPredictionConfig(_rollouts(run), pictures=run.eval.pictures)
        return SlotPredictionTask(replaced(predicted, run.options, what="options (of prediction by slots)"))
    if run.task == "localisation":
        found = LocalisationConfig(pictures=run.eval.pictures)
        return LocalisationTask(replaced(found, run.options, what="options (of localisation)"))
    if run.task == "tokenizer":
        return TokenizerTask(replaced(TokenizerTaskConfig(), run.options, what="options (of the tokenizer)"))
    measured = run.eval
    config = VideoPredictionConfig(
        rollouts=_rollouts(run),
        samples=measured.samples,
        temperature=measured.temperature,
        lpips=measured.lpips,
        fvd=measured.fvd,
        pictures=measured.pictures,
        one_step_frames=run.data.length,
    )
    return VideoPredictionTask(replaced(config, run.options, what="options (of video prediction)"))


def _rollouts(run: RunSettings) -> tuple[Rollout, ...]:
    return tuple(Rollout(r.context, r.actions, r.length) for r in run.eval.rollouts)


def check_weights(of: AnyTask) -> None:
    """Load the networks that the task measures or trains with. Raises `WeightsError` where they are missing."""
    if isinstance(of, TokenizerTask):
        of.frozen()
    elif isinstance(of, VideoPredictionTask):
        _ = of.networks


def module(run: RunSettings, of: AnyTask) -> Callable[[PRNGKeyArray], eqx.Module]:
    """A function from a key to what the training state holds: the model, and what the task trains beside it."""
    overrides = model_overrides(run)

    def make(key: PRNGKeyArray) -> eqx.Module:
        model_key, task_key = jax.random.split(key)
        made: Any = create_model(run.model["name"], key=model_key, **overrides)
        return of.module(made, key=task_key)

    return make


def frozen(of: AnyTask, tokenizer: VQGAN | None) -> Any:
    """What the task uses and does not train; None where there is nothing of the kind."""
    if isinstance(of, TokenizerTask):
        return of.frozen()
    return FirstStage(tokenizer) if isinstance(of, VideoPredictionTask) else None


def complete(run: RunSettings, tokenizer: VQGAN | None, spec: Mapping[str, FieldSpec]) -> RunSettings:
    """Fill in the model's fields that its tokenizer and its data decide; what the user wrote must agree with them."""
    config = config_of_model(run)
    derived: dict[str, Any] = {}
    if tokenizer is not None:
        t = tokenizer.config
        if "tokens" in spec:
            _check_tokens(run, t, spec["tokens"])
        derived = {"height": t.latent, "width": t.latent, "num_codes": t.n_embed, "code_dim": t.embed_dim}
    elif "video" in spec and hasattr(config, "height"):
        height, width, channels = spec["video"].shape[1:]
        derived = {"height": height, "width": width, "channels": channels}
    elif "video" in spec and hasattr(config, "patch_grid"):
        derived = _slot_video_fields(run, config, spec)
    elif "video" in spec and hasattr(config, "resolution"):
        derived = {"resolution": spec["video"].shape[1], "in_channels": spec["video"].shape[3]}
    elif "image" in spec:
        derived = _image_fields(run, spec["image"])
    for target in getattr(config, "targets", ()) if run.task == "object_videos" else ():
        if target not in spec and target != "rgb":
            raise ConfigError(
                f"model.targets={list(config.targets)}: the clips of {run.data.name} have no {target!r}; "
                f"data.options.{target}=true adds it where the set has it."
            )
    if "boxes" in spec and getattr(config, "conditioning", None) is not None:
        derived |= _hinted_slots(run, spec["boxes"], config)
    derived = {name: value for name, value in derived.items() if value is not None and hasattr(config, name)}
    for name, value in derived.items():
        written = run.model.get(name, value)
        if written != value:
            source = "the data set" if tokenizer is None else "its tokenizer"
            raise ConfigError(f"model.{name}={written} does not fit {source}, which has {value}; leave it out.")
    return dataclasses.replace(run, model={**run.model, **derived})


def _check_tokens(run: RunSettings, tokenizer: Any, tokens: FieldSpec) -> None:
    """Refuse tokens that are not of the size of the tokenizer's, or that its codebook has no vectors for."""
    side, high = tokenizer.latent, tokens.high
    fits = all(size in (None, side) for size in tokens.shape[1:])
    if not fits or (high is not None and high >= tokenizer.n_embed):
        height, width = tokens.shape[1:]
        raise ConfigError(
            f"data={run.data.name}: {height} x {width} tokens with codes up to {high} do not fit the tokenizer, which "
            f"makes {side} x {side} of {tokenizer.n_embed} codes; give the one that made them as tokenizer.run=FOLDER "
            "or tokenizer.weights=FILE."
        )


def _hinted_slots(run: RunSettings, boxes: FieldSpec, config: Any) -> dict[str, Any]:
    """A slot for every object that the first frame may show, and one for the background."""
    objects = boxes.shape[1] or 0
    background = config.conditioning == "segmentation" or getattr(config, "background", None) is not None
    wanted = objects + background
    written = run.model.get("num_slots", wanted)
    if written < wanted:
        raise ConfigError(
            f"model.num_slots={written}: the clips name up to {objects} objects, and the background takes "
            f"{'one slot' if background else 'none'}; leave it out (then it is {wanted}), or take fewer objects with "
            f"data.options.max_objects={written - background}."
        )
    # Segments leave surplus slots empty; boxes make as many slots as there are boxes.
    return {"num_slots": max(written, wanted) if config.conditioning == "segmentation" else wanted}


def _slot_video_fields(run: RunSettings, config: Any, spec: Mapping[str, FieldSpec]) -> dict[str, Any]:
    """Of a SlotSSM: frames may be cut into squares, one a step, and what it paints has a size of its own."""
    _, side, width, channels = spec["video"].shape
    grid = run.model.get("patch_grid", config.patch_grid)
    if side != width or side is None or side % grid:
        raise ConfigError(
            f"data={run.data.name}: frames of {side} x {width} pixels; the model takes square ones that "
            f"model.patch_grid={grid} divides, set data.size."
        )
    painted = spec["target"].shape[0] if "target" in spec else side
    return {"resolution": side // grid, "in_channels": channels, "out_resolution": painted}


def _image_fields(run: RunSettings, image: FieldSpec) -> dict[str, Any]:
    height, width, channels = image.shape
    if height != width:
        raise ConfigError(
            f"data={run.data.name}: images of {height} x {width} pixels; the models of images take square ones, set "
            "data.size."
        )
    return {"resolution": height, "channels": channels, "in_channels": channels}


def advice(run: RunSettings, spec: Mapping[str, FieldSpec]) -> list[str]:
    """What a reader should know about how the model fits its data set, before hours of training."""
    lines = []
    slots = getattr(config_of_model(run), "num_slots", None)
    objects = next((spec[name].shape[0] for name in ("visible", "targets") if name in spec), None)
    what = "clips" if "video" in spec else "images"
    if slots is not None and objects is not None:
        background = 1 if "visible" in spec else 0
        if slots < objects + background:
            lines.append(
                f"The {what} hold up to {objects} objects{' and a background' if background else ''}, the model has "
                f"{slots} slots: some will share one. model.num_slots={objects + background} gives each its own."
            )
    if run.task == "object_images" and "image" in spec and "mask" not in spec:
        lines.append(
            f"{run.data.name} has no masks: evaluations measure the reconstruction and draw the segments."
        )
    return lines


def fit_config(run: RunSettings) -> FitConfig:
    """The settings of the loop."""
    fields = {field.name for field in dataclasses.fields(FitConfig)}
    train = {name: value for name, value in dataclasses.asdict(run.train).items() if name in fields}
    return FitConfig(
        **{**train, "remat": run.train.remat and not _own_remat(run)},
        strategy=run.mesh.strategy,
        seed=run.seed,
        prefetch=run.data.prefetch,
    )


def optimizer_config(run: RunSettings) -> OptimizerConfig:
    """The settings of the optimiser."""
    return OptimizerConfig(steps=run.train.steps, **dataclasses.asdict(run.optim))
