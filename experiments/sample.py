"""`python -m experiments.sample run=runs/NAME/seed0`: write rollouts as npz (real, fake) and videos."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments import cli


def sample(config: DictConfig) -> int:
    """Write rollouts of a run's newest checkpoint.

    `samples/step_<n>_seed<s>/samples[_action]_<context>[_to_<length>]/data_<i>.npz` holds `real` and `fake`, uint8
    (clip, time, height, width, channel) as the authors' code writes them; with `samples=k`, k > 1, `fake` has an
    axis of samples after the first. `real` has as many frames as `fake`, fewer where the clips end before. Files
    that are there already are kept, so that a stopped command goes on; another command gets a folder of its own.
    """
    import jax

    from experiments import build, validate
    from experiments.folder import RunFolder
    from experiments.run import open_run
    from experiments.schema import RolloutSettings, SampleSettings
    from slotzoo.errors import ConfigError
    from slotzoo.files import write_npz
    from slotzoo.prng import stream
    from slotzoo.tasks.video_prediction import VideoPredictionTask, draw_clip
    from slotzoo.train.mesh import shard_batch
    from slotzoo.train.signals import STOPPED_EXIT_CODE, Signals

    asked = validate.settings(config, SampleSettings)
    build.plugins(asked.plugins)
    folder = RunFolder(Path(asked.run).expanduser())
    settings = folder.read_settings()
    if settings.task != "video_prediction":
        other = {
            "object_images": ("predict", "takes pictures of your own apart with images=FOLDER"),
            "object_videos": ("predict", "follows objects in a video of your own with video=FILE"),
            "slot_prediction": ("evaluate", "measures and draws its rollouts"),
        }
        instead = "give the run of a model that predicts videos"
        if settings.task in other:
            command, does = other[settings.task]
            instead = f"python -m experiments.{command} run={asked.run} {does}"
        raise ConfigError(f"run={asked.run}: nothing to sample from a run of {settings.task}; {instead}.")
    if asked.root is not None:
        settings.data.root = asked.root
    settings.eval.rollouts = settings.eval.protocol or settings.eval.rollouts
    settings.eval.samples, settings.eval.temperature = asked.samples, asked.temperature
    settings.eval.clips = asked.clips
    settings.eval.batch_size = min(asked.batch_size or settings.eval.batch_size, asked.clips)
    # Of whole clips: they are read no further than the rollouts that are measured need.
    if asked.context is not None:
        settings.eval.rollouts = [RolloutSettings(asked.context, asked.actions)]
    elif asked.length is not None:
        settings.eval.rollouts = [dataclasses.replace(r, length=None) for r in settings.eval.rollouts]
    opened = open_run(
        folder, build.on_split(settings, asked.split), split=asked.split, step=asked.step, spread=True
    )
    task, mesh = opened.task, opened.mesh
    assert isinstance(task, VideoPredictionTask)
    rollouts = task.config.rollouts
    if asked.context is None and asked.length is not None:
        # Rollouts that differed in their length only are one.
        rollouts = tuple(dict.fromkeys(dataclasses.replace(r, length=asked.length) for r in rollouts))
    whole = opened.settings.data.test_length or opened.settings.data.length
    for rollout in rollouts:
        length = asked.length or rollout.length or whole
        if not 1 <= rollout.context < min(length, whole + 1):
            raise ConfigError(
                f"context={rollout.context}: a rollout of length={length} needs 1 to {length - 1} given frames, no "
                f"more than the clips have ({whole})."
            )
    source = build.source(opened.settings.data, asked.split)
    top = _place(folder.path / "samples" / f"step_{opened.step}_seed{asked.seed}", asked)
    with Signals() as signals, jax.set_mesh(mesh):
        for number, batch in enumerate(build.eval_batches(opened.settings, source)):
            valid = batch.pop("valid")
            for rollout in rollouts:
                if signals.stop_requested:
                    return STOPPED_EXIT_CODE
                out = top / f"samples_{rollout.name}"
                path = out / f"data_{number}.npz"
                if path.is_file():
                    continue
                key = stream(stream(jax.random.key(asked.seed), "sample"), rollout.name, number)
                placed = shard_batch(mesh, batch)
                made = task.rollout(
                    opened.module, opened.frozen, placed, rollout, key=key, length=asked.length
                )[valid]
                real = task.truth(opened.frozen, placed)[valid][:, : made.shape[2]]
                for clip in range(min(len(real), 4) if number == 0 else 0):
                    shared = min(real.shape[1], made.shape[2])
                    draw_clip(out, rollout, clip, real[clip, :shared], made[clip, 0, :shared])
                write_npz(path, real=real, fake=made[:, 0] if asked.samples == 1 else made)
                print(
                    f"{path}: {len(real)} clips, {rollout.title}, {made.shape[2]} frames ({source.provenance})"
                )
    print(f"All of them: {top}")
    return 0


def _place(path: Path, asked: Any) -> Path:
    """`path`, `path_2`, ...: the first that is new or was made by the same command, which `asked.json` in it says."""
    from slotzoo.files import write_text

    values = {
        name: value
        for name, value in dataclasses.asdict(asked).items()
        if name not in ("run", "step", "plugins")
    }
    content = json.dumps(values, indent=1) + "\n"
    candidate, number = path, 1
    while candidate.exists():
        card = candidate / "asked.json"
        if card.is_file() and card.read_text() == content:
            return candidate
        number += 1
        candidate = path.with_name(f"{path.name}_{number}")
    write_text(candidate / "asked.json", content)
    return candidate


main = cli.command("sample", sample)


if __name__ == "__main__":
    main()
