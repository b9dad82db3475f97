"""Pictures from slots: training a SlotSSM to paint a video again, its depth, or the picture that answers a question.

What is painted is named by `model.config.target`: `video` (every frame as it was given), `depth` (float maps beside
the frames) or `image` (one picture after the last frame; Blinking Color Balls). See `slotzoo.tasks.slot_batches` for
the face of a model. Batches hold `video` and, where the data set has them, `mask` (label maps, 0 is background),
`target`, `target_mask` and `colors`, `depth`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from slotzoo.errors import ConfigError, DataError
from slotzoo.metrics.segmentation import labels_of_masks, segmentation_scores
from slotzoo.ops import batch_map
from slotzoo.tasks.clip_sums import ClipSums
from slotzoo.tasks.held_out import held_out, write_table
from slotzoo.tasks.plain import AbstractPlainTask
from slotzoo.tasks.slot_batches import clip_loss, examples
from slotzoo.viz import colour_labels, write_png
from slotzoo.viz.strips import labelled_rows, stacked


LEAST_ERROR = 1e-10
# White and what a ball of Blinking Color Balls blinks in; black, which no ball has, stands for one that is missing.
PALETTE = (
    (255, 255, 255),
    (217, 0, 0),
    (255, 255, 60),
    (140, 255, 255),
    (0, 0, 255),
    (217, 0, 250),
    (0, 0, 0),
)
SEGMENTS = ("ari", "fg_ari", "miou")
TITLES = {"ari": "ARI", "fg_ari": "FG-ARI", "miou": "mIoU"}


@dataclasses.dataclass(frozen=True)
class SlotPicturesConfig:
    """What is measured and drawn."""

    pictures: int = 4  # held-out clips drawn
    frames: int = 8  # of each, evenly spaced
    most_objects: int = 32  # bounds the labels of masks that come without `visible`

    def __post_init__(self):
        if self.pictures < 0 or self.frames < 1 or self.most_objects < 1:
            raise ConfigError("pictures of slots: pictures is at least 0, frames and most_objects at least 1.")


class SlotPicturesTask(AbstractPlainTask):
    """The task of `slotzoo.train.protocols.Task` over batches of `video`, uint8 `batch time height width channel`."""

    def __init__(self, config: SlotPicturesConfig | None = None):
        self.config = config or SlotPicturesConfig()

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
        return clip_loss(model, batch, key=key, step=step)

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
        """Loss and squared error of held-out clips beside those of trivial pictures; writes `table.json`, `clips.png`.

        Blinking Color Balls: `color_accuracy`, the share of balls that had a colour and are painted nearest to the
        right one, and `place_iou`, how much of the discs is where it should be. Where the data set has masks and the
        model shares tokens or pixels out among slots: the scores of these segments over whole clips, of the decoder's
        masks (`fg_ari`) and of the attention in the last block that reads the frame (`attention_fg_ari`).
        """
        del frozen
        partial = tuple(f"{prefix}{name}" for prefix in ("", "attention_") for name in SEGMENTS)
        sums, drawn = ClipSums((*partial, "color_accuracy")), []
        for batch in held_out(batches, key=key, name="clips", should_stop=should_stop):
            arrays = {name: jnp.asarray(value) for name, value in batch.fields.items()}
            few = batch.to_draw(self.config.pictures - len(drawn))
            options = (self.config.most_objects, len(few) > 0)
            values, made = _measure(model, arrays, batch.keys, jnp.asarray(step), *options)
            sums.add(values, batch.valid)
            if made is not None:
                shown = {name: np.asarray(value) for name, value in made.items()}
                for i in few:
                    one = {name: value[i] for name, value in shown.items()}
                    drawn.append(self._draw(np.asarray(batch.fields["video"][i]), one, model.config))
        # Each process measured its own clips. All come here, a stopped one too: none waits for another forever.
        sums = sums.over_processes()
        if should_stop():
            return {}
        if not sums.clips:
            raise DataError("pictures of slots: there is no held-out clip to evaluate on; raise eval.clips.")
        numbers = {name: float(value) for name, value in sums.means().items()}
        write_table(folder, _tables(numbers, sums.clips, model.config))
        if drawn:
            write_png(folder / "clips.png", stacked(drawn, gap=6))
        # The baselines, whose names have a prefix, do not change: they stand in the table.
        return {name: value for name, value in numbers.items() if "/" not in name}

    def _draw(self, video: np.ndarray, made: Mapping[str, np.ndarray], config: Any) -> np.ndarray:
        """Rows of a clip: what was given, the truth, what was painted, and the segments."""
        chosen = np.unique(np.round(np.linspace(0, len(video) - 1, self.config.frames)).astype(int))
        frames = _same_side(video[chosen].astype(np.float32) / 255, made["made"].shape[-2])
        rows, titles = {"given": frames}, [f"frame {t + 1}" for t in chosen]
        if config.target == "image":
            # One more column: the question in front, the answer behind.
            blank = np.ones_like(frames[:1])
            rows = {
                "truth": np.concatenate([frames, made["wanted"][None]]),
                "painted": np.concatenate([blank] * len(frames) + [made["made"][None]]),
            }
            return labelled_rows(rows, titles=[*titles, "answer"])
        low, high = (0.0, 1.0) if config.target == "video" else _span(made["wanted"])
        between = lambda x: np.clip((x[chosen] - low) / max(high - low, 1e-6), 0, 1)
        if config.target != "video":
            rows["truth"] = _rgb(between(made["wanted"]))
        rows["painted"] = _rgb(between(made["made"]))
        for name in ("segments", "attention"):
            if name in made:
                rows[name] = _same_side(
                    colour_labels(made[name][chosen] + 1).astype(np.float32) / 255, frames.shape[1]
                )
        return labelled_rows(rows, titles=titles)


@eqx.filter_jit
def _measure(
    model: Any,
    batch: dict[str, Array],
    keys: Key[Array, " batch"],
    step: Array,
    most_objects: int,
    whole: bool,
) -> tuple[dict[str, Float[Array, " batch"]], dict[str, Array] | None]:
    """Every number of every clip, NaN where it is not defined; with `whole` what is drawn."""
    c = model.config
    given = examples(batch, c)
    truth = {name: batch[name] for name in ("mask", "target_mask", "colors") if name in batch}
    true_count = batch["visible"].shape[-1] + 1 if "visible" in batch else most_objects + 1

    def one(example, truth, key):
        loss, _ = model.loss(example, key=key, step=step)
        out = model(example["video"], key=key)
        made = out.outputs.reconstruction.astype(jnp.float32)
        wanted = example[c.target] if c.target != "video" or made.ndim == 4 else example["video"][-1]
        values = {"loss": loss} | _errors(made, wanted, c)
        if "target_mask" in truth and c.target == "image":
            values |= _colours(made, truth["target_mask"], truth["colors"], c)
        drawn = {"made": made, "wanted": wanted}
        for name, labels, slots in _segments(out):
            drawn["attention" if name else "segments"] = labels
            if "mask" in truth and labels.shape[0] == truth["mask"].shape[0]:
                full = _grown(labels, truth["mask"].shape[-1])
                scores = segmentation_scores(
                    truth["mask"].astype(jnp.int32), full, true_count=true_count, predicted_count=slots
                )._asdict()
                values |= {f"{name}{score}": scores[score] for score in SEGMENTS}
        return values, drawn if whole else None

    return batch_map(one)(given, truth, keys)


def _errors(made: Array, wanted: Array, c: Any) -> dict[str, Array]:
    """Mean squared error in the range of the target, and of the best constant pictures."""
    error = jnp.mean(jnp.square(made - wanted))
    found = {"error": error}
    if c.target == "depth":
        frame_mean = jnp.mean(wanted, axis=(1, 2, 3), keepdims=True)
        found["mean of each frame/error"] = jnp.mean(jnp.square(wanted - frame_mean))
        found["mean of the clip/error"] = jnp.mean(jnp.square(wanted - jnp.mean(wanted)))
        return found
    span = c.high - c.low
    found["psnr"] = -10.0 * jnp.log10(jnp.maximum(error / span**2, LEAST_ERROR))
    if c.target == "image":
        found["black/error"] = jnp.mean(jnp.square(wanted - c.low))
    elif wanted.ndim == 4:
        found["mean frame of the clip/error"] = jnp.mean(jnp.square(wanted - wanted.mean(0, keepdims=True)))
    return found


def _colours(made: Array, mask: Array, colors: Array, c: Any) -> dict[str, Array]:
    """Which colour each ball was painted in, and where anything was painted."""
    balls = colors.shape[0]
    discs = jax.nn.one_hot(mask.astype(jnp.int32), balls + 1)[..., 1:]
    area = jnp.maximum(discs.sum((0, 1)), 1.0)
    shown = (made - c.low) / (c.high - c.low)
    mean = jnp.einsum("hwc,hwb->bc", shown, discs) / area[:, None]
    palette = jnp.asarray(np.asarray(PALETTE, np.float32) / 255)
    distance = jnp.square(mean[:, None, :] - palette[None, :, :]).sum(-1)
    right = (jnp.argmin(distance, axis=-1).astype(colors.dtype) == colors).astype(jnp.float32)
    blinked = (colors > 0).astype(jnp.float32)
    painted, true = shown.max(-1) > 0.4, mask > 0
    union = jnp.maximum(jnp.sum((painted | true).astype(jnp.float32)), 1.0)
    places = jnp.sum((painted & true).astype(jnp.float32)) / union
    # The right places in the mean of the colours: what is reached without remembering any of them.
    mean_colour = jnp.mean(palette[1:6], axis=0)
    whole = palette[colors][None, None] - mean_colour[None, None, None, :]
    blind = jnp.sum(jnp.square(whole) * discs[..., None]) / made.size * (c.high - c.low) ** 2
    return {
        "color_accuracy": jnp.sum(right * blinked) / jnp.sum(blinked),
        "place_iou": places,
        "right places, mean colour/error": blind,
    }


def _segments(out: Any) -> list[tuple[str, Int[Array, "time height width"], int]]:
    """Label maps by the decoder's masks ("") and by the attention of the last block that reads ("attention_")."""
    found = []
    masks = out.outputs.masks
    if masks is not None and masks.ndim == 4:
        found.append(("", jax.vmap(labels_of_masks)(masks), masks.shape[1]))
    shares = next((a for a in reversed(out.attention) if a is not None), None)
    if shares is not None:
        time, _, slots, tokens = shares.shape
        side = math.isqrt(tokens)
        if side > 1 and side * side == tokens:
            labels = jnp.argmax(shares.sum(1), axis=1).astype(jnp.int32)
            found.append(("attention_", labels.reshape(time, side, side), slots))
    return found


def _grown(labels: Int[Array, "time height width"], side: int) -> Int[Array, "time {side} {side}"]:
    """Label maps at another size: the nearest label."""
    index = np.minimum((np.arange(side) + 0.5) * labels.shape[-1] / side, labels.shape[-1] - 1).astype(np.int32)
    return labels[:, index][:, :, index]


def _same_side(frames: np.ndarray, side: int) -> np.ndarray:
    """Pictures (time, height, width, channel) at another side: the nearest pixel."""
    rows, columns = (
        np.minimum(((np.arange(side) + 0.5) * n / side).astype(int), n - 1) for n in frames.shape[1:3]
    )
    return frames[:, rows][:, :, columns]


def _span(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _rgb(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames


def _tables(numbers: Mapping[str, float], clips: int, config: Any) -> dict[str, Any]:
    what = {"video": "frames", "depth": "depth", "image": "answers"}[config.target]
    columns = ["error"] + [name for name in ("psnr", "color_accuracy", "place_iou", "loss") if name in numbers]
    better = {
        "error": "lower",
        "psnr": "higher",
        "color_accuracy": "higher",
        "place_iou": "higher",
        "loss": "lower",
    }
    title = lambda name: name.replace("_", " ").replace("psnr", "PSNR")
    rows: list[dict[str, Any]] = [{"name": "model", **{title(name): numbers[name] for name in columns}}]
    for name, value in numbers.items():
        if name.endswith("/error"):
            rows.append({"name": name.removesuffix("/error"), "error": value})
    notes = [
        "Error: mean of the squared difference, pixels from 0 to 1."
        if config.target != "depth"
        else "Error: mean of the squared difference."
    ]
    if "color_accuracy" in numbers:
        rows.append({"name": "colours by chance", "color accuracy": 1 / 5})
        notes.append(
            "Colour accuracy: of the balls that had a colour, painted nearer to the right one than to the four others, "
            "white and black. Place IoU: of what is painted and the true discs."
        )
    tables = [
        {
            "title": f"Painted {what} of {clips} held-out clips",
            "columns": [title(name) for name in columns],
            "better": {title(name): better[name] for name in columns},
            "rows": rows,
            "notes": notes,
        }
    ]
    segments = [
        {"name": label, **{TITLES[s]: numbers[f"{prefix}{s}"] for s in SEGMENTS if f"{prefix}{s}" in numbers}}
        for label, prefix in (("masks of the decoder", ""), ("attention to the frame", "attention_"))
        if any(f"{prefix}{s}" in numbers for s in SEGMENTS)
    ]
    if segments:
        tables.append(
            {
                "title": f"Segments of {clips} held-out clips",
                "columns": list(TITLES.values()),
                "better": dict.fromkeys(TITLES.values(), "higher"),
                "rows": segments,
                "notes": ["Over all frames of a clip at once: a segment has to stay on its object."],
            }
        )
    return {"tables": tables}
