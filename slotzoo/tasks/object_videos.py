"""Objects in videos: training a model that follows them, and how well it does.

One task for every model with the face of `slotzoo.models.objects.TrackOutput` (see `slotzoo.tasks.follow`) and

    model.loss(clip, key=..., step=...) -> (loss, terms)

over batches of `video` (uint8) and, where the data set has them, `mask` (label maps, 0 is background), `boxes`,
`flow`, `depth` and `visible`, as `slotzoo.data.object_clips` names them.

Two ways of measuring stand side by side. That of the authors' code: slices of a few frames, in which STATM begins
with an empty memory, and an (FG-)ARI of 1 for a clip without objects. And what these scores mean: the state carried
through the whole clip, clips where a score is not defined left out, and how well objects keep their slot (IoU of
tracks, J&F).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt8

from slotzoo.errors import ConfigError, DataError
from slotzoo.metrics.tracking import TrackScores, track_scores
from slotzoo.models.objects import TrackOutput
from slotzoo.ops import batch_map
from slotzoo.tasks.clip_sums import ClipSums
from slotzoo.tasks.follow import (
    check_length,
    conditions_of,
    emptied,
    fits,
    follow,
    has_background,
    painted_boxes,
    partners,
    targets_of,
    told_objects,
    tracker,
)
from slotzoo.tasks.held_out import held_out, write_table
from slotzoo.tasks.pixels import to_range
from slotzoo.tasks.plain import AbstractPlainTask, mean_loss
from slotzoo.viz import write_png, write_video
from slotzoo.viz.tracks import Track, flow_wheel, slot_video, track_strip, track_video


# A slot is in use if it wins at least this share of the points of a clip.
IN_USE = 1e-3
TITLES = {
    "ari": "ARI",
    "fg_ari": "FG-ARI",
    "miou": "mIoU",
    "hinted_miou": "mIoU of the hinted slot",
    "region": "J",
    "contour": "F",
    "region_and_contour": "J&F",
}
AUTHORS = {"ari": "ARI", "fg_ari": "FG-ARI"}
# Rows of the tables: name, and what the numbers of the row begin with.
ROWS = (
    ("model", ""),
    ("its attention to the frames", "attention/"),
    ("its first frame, held", "first/"),
    ("boxes of the first frame, held", "boxes/"),
    ("true segments of the first frame, held", "copy/"),
)


@dataclasses.dataclass(frozen=True)
class ObjectVideosConfig:
    """What is measured and drawn. `most_objects` bounds the labels of masks that come without `boxes`; `attention`
    scores what the slots look at beside what they paint.
    """

    chunk: int = 6  # frames of a slice: memory at evaluation, and the authors' protocol
    pictures: int = 2  # held-out clips drawn at an evaluation
    most_objects: int = 23
    attention: bool = False

    def __post_init__(self):
        if self.chunk < 1 or self.pictures < 0 or self.most_objects < 1:
            raise ConfigError("object videos: chunk and most_objects are at least 1 and pictures at least 0.")


class ObjectVideosTask(AbstractPlainTask):
    """The task of `slotzoo.train.protocols.Task` over batches of `video`, uint8 `batch time height width 3`."""

    def __init__(self, config: ObjectVideosConfig | None = None):
        self.config = config or ObjectVideosConfig()

    def loss(
        self,
        model: Any,
        frozen: Any,
        batch: Mapping[str, Any],
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over clips of the model's loss, and of each of its terms."""
        del frozen
        model = tracker(model)
        clips = {name: jnp.asarray(value) for name, value in batch.items()}
        one = lambda clip, key: model.loss(prepared(clip, model.config), key=key, step=step)
        return mean_loss(one, clips, key=key)

    def evaluate(
        self,
        model: Any,
        frozen: Any,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        key: PRNGKeyArray,
        step: int,
        folder: Path,
        should_stop: Callable[[], bool],
    ) -> dict[str, float]:
        """Held-out loss, slots in use, and scores of the tracks where the data set has masks, by both protocols.

        Means over clips, of a score over the clips where it is defined. Writes `table.json`, `tracks.png` and, for
        every clip drawn, a video of what was found and one of the slots.
        """
        del frozen, step
        model = tracker(model)
        sums, drawn = ClipSums(TrackScores._fields), []
        for batch in held_out(batches, key=key, name="clips", should_stop=should_stop):
            clips = {name: jnp.asarray(value) for name, value in batch.fields.items()}
            values = _measure(model, clips, batch.keys, self.config)
            sums.add(values, batch.valid)
            few = batch.to_draw(self.config.pictures - len(drawn))
            if len(few):
                chosen = {name: np.asarray(value)[few] for name, value in batch.fields.items()}
                drawn += self.tracks(model, chosen, batch.keys[few])
        # Each process measured its own clips. All come here, a stopped one too: none waits for another forever.
        sums = sums.over_processes()
        if should_stop():
            return {}
        if not sums.clips:
            raise DataError("object videos: there is no held-out clip to evaluate on; raise eval.clips.")
        numbers = {name: float(value) for name, value in sums.means().items()}
        write_table(folder, tables(numbers, sums.clips, self.config.chunk))
        self.draw(drawn, folder)
        named = {
            name.replace("authors/", "authors_").replace("attention/", "attention_"): value
            for name, value in numbers.items()
        }
        # The baselines, whose names have a prefix, do not change: they stand in the table.
        return {name: value for name, value in named.items() if "/" not in name}

    def draw(self, tracks: list[Track], folder: Path) -> None:
        """Write `tracks.png`, the key to the colours of flow, and the videos of every clip."""
        if tracks:
            write_png(folder / "tracks.png", track_strip(tracks))
            if "flow" in tracks[0].predictions:
                write_png(folder / "flow_wheel.png", flow_wheel())  # the key to its colours
        for number, track in enumerate(tracks, start=1):
            write_video(folder / f"clip_{number}", track_video(track), fps=6)
            write_video(folder / f"clip_{number}_slots", slot_video(track), fps=6)

    def track(
        self,
        model: Any,
        video: UInt8[np.ndarray, "time height width 3"],
        hints: Mapping[str, np.ndarray],
        *,
        key: PRNGKeyArray,
    ) -> Track:
        """Follow the objects of a clip of any length, a slice at a time on the device.

        `hints`: `boxes` (object 4) or `mask` (height width) of the first frame, or nothing, as the model was built.
        """
        model = tracker(model)
        config, chunk = model.config, self.config.chunk
        check_length(len(video), config)
        first = {name: jnp.asarray(value)[None] for name, value in hints.items()}
        state = model.init_state(conditions_of(model, first), key=key)
        parts = []
        for start in range(0, len(video), chunk):
            some = video[start : start + chunk]
            # The last slice is as long as the others, so that there is one program, if the model has room for it.
            more = chunk - len(some) if fits(start + chunk, config) else 0
            longer = np.concatenate([some, np.repeat(some[-1:], more, axis=0)])
            out = _goes_on(model, jnp.asarray(longer), state)
            state = out.state
            parts.append(
                jax.tree.map(lambda x, n=len(some): np.asarray(x, np.float32)[:n], out._replace(state=None))
            )
        found = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        told = np.asarray(hints["boxes"], np.float32) if "boxes" in hints else None
        return Track(
            video,
            found.masks,
            found.slots,
            found.predictions,
            attention=found.attention,
            hints=told,
            background=has_background(config),
        )

    def tracks(self, model: Any, batch: Mapping[str, np.ndarray], keys: Key[Array, " batch"]) -> list[Track]:
        """Every clip of a batch followed as a whole, with all that can be drawn of it."""
        model = tracker(model)
        clips = {name: jnp.asarray(value) for name, value in batch.items()}
        out = jax.tree.map(np.asarray, _explain(model, clips, keys))
        config = model.config
        missing = [name for name in config.targets if name not in batch and name != "rgb"]
        targets = {} if missing else jax.tree.map(np.asarray, jax.vmap(lambda c: targets_of(c, config))(clips))
        told = "boxes" in batch and config.conditioning in ("boxes", "centers")
        return [
            Track(
                np.asarray(batch["video"][i]),
                np.asarray(out.masks[i], np.float32),
                np.asarray(out.slots[i], np.float32),
                {name: np.asarray(value[i], np.float32) for name, value in out.predictions.items()},
                {name: np.asarray(value[i]) for name, value in targets.items()},
                None if out.attention is None else np.asarray(out.attention[i], np.float32),
                np.asarray(batch["mask"][i], np.int32) if "mask" in batch else None,
                np.asarray(batch["boxes"][i, 0], np.float32) if told else None,
                has_background(config),
            )
            for i in range(len(batch["video"]))
        ]


def prepared(clip: Mapping[str, Array], config: Any) -> dict[str, Any]:
    """A clip as `model.loss` takes it: `video` in the model's range, the targets by name, and all other fields."""
    return {**clip, **targets_of(clip, config), "video": to_range(clip["video"], config)}


@eqx.filter_jit
def _explain(model: Any, clips: dict[str, Array], keys: Key[Array, " batch"]) -> TrackOutput:
    def one(clip: dict[str, Array], key: Array) -> TrackOutput:
        out = model(to_range(clip["video"], model.config), conditions_of(model, clip), key=key)
        return out._replace(state=None)

    return batch_map(one)(clips, keys)


@eqx.filter_jit
def _goes_on(model: Any, video: Array, state: Any) -> TrackOutput:
    return model(to_range(video, model.config), state=state)


@eqx.filter_jit
def _measure(
    model: Any, clips: dict[str, Array], keys: Key[Array, " batch"], options: ObjectVideosConfig
) -> dict[str, Float[Array, " batch"]]:
    """Every number of every clip of a batch, NaN where it is not defined."""
    config, chunk = model.config, options.chunk
    true_count = 1 + (clips["boxes"].shape[-2] if "boxes" in clips else options.most_objects)
    forgetful = emptied(model)  # a memory is dropped between slices by the authors' evaluation

    def one(clip: dict[str, Array], key: Array) -> dict[str, Array]:
        followed = follow(model, clip, chunk=chunk, key=key)
        values, targets = {"loss": jnp.float32(0.0)}, targets_of(clip, config)
        for name, error in followed.errors.items():
            values[f"{name}_mse"] = error / jnp.float32(targets[name].size)
            values["loss"] += error / jnp.float32(_taken_together(targets[name], config))
        labels = followed.labels
        values["slots_in_use"] = jnp.sum((followed.shares >= IN_USE).astype(jnp.float32))
        if "mask" not in clip:
            return values
        true = clip["mask"].astype(jnp.int32)
        partner, told = partners(clip, config, true_count), told_objects(clip, config, true_count)
        count = max(len(followed.shares), true_count)
        candidates = {"": labels, "first/": jnp.broadcast_to(labels[:1], labels.shape)}
        if "boxes" in clip:
            boxes = painted_boxes(clip["boxes"][0], *true.shape[1:])
            candidates["boxes/"] = jnp.broadcast_to(boxes[None], true.shape)
        candidates["copy/"] = jnp.broadcast_to(true[:1], true.shape)
        if options.attention and followed.looks is not None:
            candidates["attention/"] = followed.looks
        if forgetful is not None:
            candidates["authors/"] = follow(model, clip, chunk=chunk, key=key, between=forgetful).labels
        given = None
        if partner is not None and told is not None:
            # What is held of the true first frame has the objects' labels, whichever slots the model has for them.
            itself = jnp.where(told, jnp.arange(true_count), -1)
            given = jnp.stack([itself if prefix in ("boxes/", "copy/") else partner for prefix in candidates])
        score = lambda found: track_scores(
            true, found[0], true_count=true_count, predicted_count=count, partner=found[1]
        )
        scored = jax.lax.map(score, (jnp.stack(list(candidates.values())), given))
        each = {prefix: jax.tree.map(lambda x, i=i: x[i], scored) for i, prefix in enumerate(candidates)}
        theirs = each.pop("authors/", each[""])
        for prefix, found in each.items():
            values |= {f"{prefix}{name}": value for name, value in found._asdict().items()}
            for name in AUTHORS if prefix != "attention/" else ():
                value = getattr(found if prefix else theirs, name)
                # Without an object there is no pair of points to disagree about: their 1.
                values[f"authors/{prefix}{name}"] = jnp.where(jnp.isnan(value), 1.0, value)
        return values

    return batch_map(one)(clips, keys)


def _taken_together(target: Array, config: Any) -> int:
    """By what a sum of squared errors over a clip is divided in the loss that the model is trained with."""
    match getattr(config, "reduction", "sum"):
        case "sum":
            return 1
        case "mean":
            return target.size // target.shape[-1]
        case _:
            return target.size


def tables(numbers: Mapping[str, float], clips: int, chunk: int) -> dict[str, Any]:
    """The scores by both protocols beside trivial answers, and the other numbers."""
    made = []
    for title, start, titles, notes in (
        (
            f"Tracks of {clips} held-out clips",
            "",
            TITLES,
            [
                "Over whole clips, so a slot must stay with its object; clips without objects are left out.",
                "mIoU: tracks matched one to one. J&F: region and contour (DAVIS) of the slot that was given the "
                "object, or of the one that matches it best.",
                "Segments or boxes of the first frame, held: what there is to be had without following anything.",
            ],
        ),
        (
            "By the protocol of the authors' code",
            "authors/",
            AUTHORS,
            [
                f"Slices of {chunk} frames, a memory emptied between them; all frames, the given one included; a clip "
                "without objects counts 1. Their code measures no mIoU, so theirs is the one above.",
            ],
        ),
    ):
        rows = []
        for label, prefix in ROWS:
            row = {name: numbers.get(f"{start}{prefix}{key}") for key, name in titles.items()}
            if any(value is not None for value in row.values()):
                rows.append({"name": label, **row})
        columns = [name for name in titles.values() if any(row[name] is not None for row in rows)]
        if rows:
            better = dict.fromkeys(columns, "higher")
            made.append({"title": title, "columns": columns, "better": better, "rows": rows, "notes": notes})
    rest = [
        {"name": name.replace("_", " "), "value": value}
        for name, value in numbers.items()
        if "/" not in name and name not in TITLES
    ]
    notes = ["The loss is that of training, over the whole clip; mse is the mean of squared errors."]
    if not made:
        notes.append("The data set has no masks, so tracks cannot be measured; look at the pictures.")
    made.append({"title": "Loss and slots", "columns": ["value"], "rows": rest, "notes": notes})
    return {"tables": made}
