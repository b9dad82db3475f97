"""`python -m experiments.predict run=runs/NAME/seed0 images=folder/`: take pictures of your own apart into objects.

With a run of SAVi or STATM: `video=clip.mp4 boxes=first_frame.json` follows the objects of a video of your own; one
of OC-SlotSSM needs no boxes.
"""

from omegaconf import DictConfig

from experiments import cli


def predict(config: DictConfig) -> int:
    """Take every picture of a folder apart with a run's newest checkpoint.

    `predictions/step_<n>/<name>/` holds `image.png` (as the model sees it), `reconstruction.png`, `segments.png`
    (the slot with the largest mask, in the fixed colours), `sure.png` (where that mask reaches `threshold`),
    `objects.png` (background removed), `overlay.png`, `slot_<k>.png`, with SLATE `dvae.png`, with GNM `boxes.png`, and
    `slots.npz` with `slots` (slot, dim), `masks` (slot, height, width), the label maps `segments` and `objects` (0:
    background) and what else the model says; `overview.png` shows everything in a row and is part of the report.

    Videos: see `follow_video`.
    """
    from pathlib import Path

    import jax
    import numpy as np

    from experiments import build, validate
    from experiments.folder import RunFolder, free
    from experiments.run import open_run
    from experiments.schema import PredictSettings
    from slotzoo.errors import ConfigError
    from slotzoo.files import write_npz
    from slotzoo.prng import stream
    from slotzoo.tasks.object_images import ObjectImagesTask
    from slotzoo.train.signals import STOPPED_EXIT_CODE, Signals
    from slotzoo.viz.images import write_png
    from slotzoo.viz.objects import object_grid, write_apart
    from slotzoo.viz.photos import find_pictures, read_picture
    from slotzoo.viz.report import write_report
    from slotzoo.viz.segments import without_background

    asked = validate.settings(config, PredictSettings)
    build.plugins(asked.plugins)
    folder = RunFolder(Path(asked.run).expanduser())
    settings = folder.read_settings()
    if settings.task not in ("object_images", "object_videos"):
        raise ConfigError(
            f"run={asked.run}: a {settings.task} run takes neither images nor videos apart; give one of Slot "
            "Attention, SLATE, GNM, SAVi, STATM or OC-SlotSSM."
        )
    if settings.task == "object_videos":
        if asked.video is None:
            raise ConfigError(
                f"video is missing: {settings.name} follows objects in videos; add video=clip.mp4."
            )
        return follow_video(asked, folder, open_run(folder, split=None, step=asked.step))
    if asked.images is None:
        raise ConfigError(f"images is missing: {settings.name} takes pictures; add images=FOLDER.")
    top = Path(asked.images).expanduser()
    paths = find_pictures(top)
    opened = open_run(folder, split=None, step=asked.step)
    task = opened.task
    assert isinstance(task, ObjectImagesTask)
    places = folders(paths, top)
    size, channels = image_size(opened.module.config)
    default = folder.path / "predictions" / f"step_{opened.step}"
    out = free(default) if asked.out is None else Path(asked.out).expanduser()
    overview, resized = [], 0
    with Signals() as signals:
        for start in range(0, len(paths), asked.batch_size):
            if signals.stop_requested:
                return STOPPED_EXIT_CODE
            some = paths[start : start + asked.batch_size]
            read = [read_picture(path, size, channels) for path in some]
            resized += sum(changed for _, changed in read)
            keys = jax.random.split(stream(jax.random.key(asked.seed), "predict", start), len(some))
            images = np.stack([image for image, _ in read])
            made = task.explain(opened.module, images, keys, slots=asked.slots, iterations=asked.iterations)
            rows = task.apart(opened.module, images, made)
            for i, (path, row) in enumerate(zip(some, rows, strict=True)):
                objects = without_background(
                    row.masks,
                    asked.background_detection,
                    asked.background_metric,
                    threshold=asked.threshold,
                )
                place = out / places[path]
                segments = write_apart(place, row, objects, threshold=asked.threshold)
                extra = {name: np.asarray(value[i]) for name, value in made.extra.items()}
                arrays = {"slots": np.asarray(made.slots[i]), "masks": row.masks, **extra}
                write_npz(place / "slots.npz", **arrays, segments=segments, objects=objects)
                if len(overview) < SHOWN:
                    overview.append(row)
            print(f"{start + len(some)}/{len(paths)} pictures", flush=True)
    write_png(out / OVERVIEW, object_grid(overview, threshold=asked.threshold))
    if resized:
        print(
            f"{resized} of {len(paths)} pictures were cropped to a square and scaled to {size} x {size} pixels."
        )
    print(f"Written to {out}; report: {write_report(folder.path)}")
    return 0


def follow_video(asked, folder, opened) -> int:
    """Follow the objects of a video: `predictions/step_<n>/<name>/` gets the files of `slotzoo.viz.tracks.write_track`.

    They are `tracks` and `slots` as videos, `overlay`, `masks/<frame>.png` in the fixed colours, and `slots.npz` with
    `slots` (time, slot, dim), `masks` (time, slot, height, width), `labels` and `boxes` of what was found.
    """
    from pathlib import Path

    import jax

    from experiments.folder import free
    from slotzoo.errors import ConfigError
    from slotzoo.files import write_npz
    from slotzoo.prng import stream
    from slotzoo.tasks.follow import tracker
    from slotzoo.viz.clips import cropped_boxes, read_boxes, read_clip, read_segments
    from slotzoo.viz.images import write_png
    from slotzoo.viz.report import write_report
    from slotzoo.viz.tracks import track_arrays, track_strip, write_track

    config = tracker(opened.module).config
    path = Path(asked.video).expanduser()
    clip = read_clip(path, config.height, frames=asked.frames)
    hints = {}
    for name, wanted in (("boxes", ("boxes", "centers")), ("segments", ("segmentation",))):
        given = getattr(asked, name)
        if (given is not None) != (config.conditioning in wanted):
            told = (
                f"is told the {config.conditioning} of the first frame"
                if config.conditioning
                else "is told nothing"
            )
            raise ConfigError(
                f"{name} {'is missing' if given is None else 'is not wanted'}: {opened.settings.name} {told}."
            )
    if asked.boxes is not None:
        hints["boxes"] = cropped_boxes(read_boxes(asked.boxes), clip.height, clip.width)
    if asked.segments is not None:
        hints["mask"] = read_segments(
            Path(asked.segments).expanduser(),
            config.height,
            height=clip.height,
            width=clip.width,
            num_slots=config.num_slots,
        )
    key = stream(jax.random.key(asked.seed), "predict", 0)
    track = opened.task.track(opened.module, clip.video, hints, key=key)
    default = folder.path / "predictions" / f"step_{opened.step}"
    out = free(default) if asked.out is None else Path(asked.out).expanduser()
    write_track(out / path.stem, track)
    write_npz(out / path.stem / "slots.npz", **track_arrays(track))
    write_png(out / OVERVIEW, track_strip([track]))
    if clip.video.shape[1:3] != (clip.height, clip.width):
        print(f"The frames were cropped to a square and scaled to {config.height} x {config.height} pixels.")
    print(f"{len(clip.video)} frames, {track.masks.shape[1]} slots.")
    print(f"Written to {out}; report: {write_report(folder.path)}")
    return 0


# Rows of the overview, and its name.
SHOWN = 16
OVERVIEW = "overview.png"


def folders(paths, top):
    """Where each picture's files go, relative to the output: its name, with its ending where two share one.

    No two pictures share a place, and none is in the way of `overview.png`: such a place has a `_` more at its end.
    """
    from collections import Counter
    from pathlib import Path

    names = {path: path.relative_to(top) if top.is_dir() else Path(path.name) for path in paths}
    count = Counter(name.with_suffix("") for name in names.values())
    places, taken = {}, set()
    for path, name in names.items():
        short = name.with_suffix("")
        place = short if count[short] == 1 else name
        if place.parts[0].lower() == OVERVIEW:  # there are file systems to which the case is nothing
            place = Path(place.parts[0] + "_", *place.parts[1:])
        while place in taken:
            place = place.with_name(place.name + "_")
        taken.add(place)
        places[path] = place
    return places


def image_size(config) -> tuple[int, int]:
    """Side in pixels and channels of the images that a model takes."""
    return config.resolution, getattr(config, "channels", None) or config.in_channels


main = cli.command("predict", predict)


if __name__ == "__main__":
    main()
