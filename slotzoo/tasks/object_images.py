"""Object discovery in images: training an autoencoder of objects, and how well its masks are the true ones.

One task for every model of single images with the face

    model.draw(key) -> draws                                      the random numbers of one example
    model.loss(image, draws=..., key=..., step=...) -> (loss, terms)
    model.explain(image, draws=..., key=..., slots=..., iterations=...) -> slotzoo.models.objects.ObjectsOutput
    model.config.low, model.config.high                           the range of its pixels

over batches of `image` (uint8) and, where the data set has them, `mask` (label maps, 0 is background) and `visible`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key, PRNGKeyArray, UInt8

from slotzoo.errors import ConfigError, DataError
from slotzoo.metrics.segmentation import SegmentationScores, labels_of_masks, segmentation_scores
from slotzoo.models.objects import ObjectsOutput
from slotzoo.ops import batch_map
from slotzoo.tasks.clip_sums import ClipSums
from slotzoo.tasks.held_out import held_out, write_table
from slotzoo.tasks.pixels import to_range
from slotzoo.tasks.plain import AbstractPlainTask, mean_loss
from slotzoo.viz import Apart, object_grid, segment_grid, write_png


LEAST_ERROR = 1e-10
# A slot is in use if it wins at least this share of the pixels.
IN_USE = 1e-3
TITLES = {
    "ari": "ARI",
    "fg_ari": "FG-ARI",
    "covering": "mBO",
    "weighted_covering": "covering",
    "miou": "mIoU",
    "dice": "Dice",
    "count_accuracy": "right count",
}


@dataclasses.dataclass(frozen=True)
class ObjectImagesConfig:
    """What is measured and drawn. `most_objects` bounds the labels of masks that come without `visible`."""

    threshold: float = 0.5  # below it a pixel of the processed segments belongs to no slot
    pictures: int = 4  # held-out images drawn at an evaluation
    most_objects: int = 32

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"object images: threshold={self.threshold} must lie between 0 and 1.")
        if self.pictures < 0 or self.most_objects < 1:
            raise ConfigError("object images: pictures is at least 0 and most_objects at least 1.")


class ObjectImagesTask(AbstractPlainTask):
    """The task of `slotzoo.train.protocols.Task` over batches of `image`, uint8 `batch height width channel`."""

    def __init__(self, config: ObjectImagesConfig | None = None):
        self.config = config or ObjectImagesConfig()

    def loss(
        self,
        model: Any,
        frozen: Any,
        batch: Mapping[str, Any],
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over images of the model's loss, and of each of its terms."""
        del frozen
        images = to_range(jnp.asarray(batch["image"]), model.config)
        return mean_loss(lambda image, key: model.loss(image, key=key, step=step), images, key=key)

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
        """Held-out loss, reconstruction, slots in use, and segmentation scores where the data set has masks.

        Means over images, of a score over the images where it is defined (FG-ARI needs an object). Writes
        `table.json`, `objects.png` and `segments.png`.
        """
        del frozen
        sums, drawn = ClipSums(SegmentationScores._fields), []
        for batch in held_out(batches, key=key, name="images", should_stop=should_stop):
            arrays = {n: jnp.asarray(x) for n, x in batch.fields.items() if n in ("image", "mask", "visible")}
            few = batch.to_draw(self.config.pictures - len(drawn))
            values, out = _measure(
                model, arrays, batch.keys, jnp.asarray(step), self.config.most_objects, len(few) > 0
            )
            sums.add(values, batch.valid)
            if out is not None:
                shown, chosen = jax.tree.map(lambda x, few=few: np.asarray(x)[few], (arrays, out))
                drawn += self.apart(model, shown["image"], chosen, masks=shown.get("mask"))
        # Each process measured its own images. All come here, a stopped one too: none waits for another forever.
        sums = sums.over_processes()
        if should_stop():
            return {}
        if not sums.clips:
            raise DataError("object images: there is no held-out image to evaluate on; raise eval.clips.")
        numbers = {name: float(value) for name, value in sums.means().items()}
        write_table(folder, _tables(numbers, sums.clips, model.config))
        if drawn:
            write_png(folder / "objects.png", object_grid(drawn, threshold=self.config.threshold))
            write_png(folder / "segments.png", segment_grid(drawn))
        # The baselines, whose names have a prefix, do not change: they stand in the table.
        return {name: value for name, value in numbers.items() if "/" not in name}

    def explain(
        self,
        model: Any,
        images: UInt8[np.ndarray, "batch height width channel"],
        keys: Key[Array, " batch"],
        *,
        slots: int | None = None,
        iterations: int | None = None,
    ) -> ObjectsOutput:
        """`model.explain` of a batch, in the value range of the model."""
        return _explain(model, jnp.asarray(images), keys, slots, iterations)

    def apart(
        self,
        model: Any,
        images: UInt8[np.ndarray, "batch height width channel"],
        out: ObjectsOutput,
        *,
        masks: Integer[np.ndarray, "batch height width"] | None = None,
    ) -> list[Apart]:
        """What `explain` found in a batch, image by image, values in [0, 1]."""
        c = model.config
        shown = lambda x: np.clip((np.asarray(x, np.float32) - c.low) / (c.high - c.low), 0.0, 1.0)
        extra = {name: np.asarray(x) for name, x in out.extra.items()}
        extra |= {name: shown(extra[name]) for name in ("dvae", "background", "structure") if name in extra}
        pictures, made = shown(out.pictures), shown(out.reconstruction)
        return [
            Apart(
                np.asarray(images[i], np.float32) / 255,
                made[i],
                np.asarray(out.masks[i], np.float32),
                pictures[i],
                {name: x[i] for name, x in extra.items()},
                None if masks is None else np.asarray(masks[i], np.int32),
            )
            for i in range(len(images))
        ]


@eqx.filter_jit
def _explain(
    model: Any, images: Array, keys: Key[Array, " batch"], slots: int | None, iterations: int | None
) -> ObjectsOutput:
    one = lambda image, key: model.explain(image, key=key, slots=slots, iterations=iterations)
    return batch_map(one)(to_range(images, model.config), keys)


@eqx.filter_jit
def _measure(
    model: Any,
    batch: dict[str, Array],
    keys: Key[Array, " batch"],
    step: Array,
    most_objects: int,
    whole: bool,
) -> tuple[dict[str, Float[Array, " batch"]], ObjectsOutput | None]:
    """Every number of every image of a batch, NaN where it is not defined; with `whole` what they were taken from.

    Without, what is only drawn is not computed, which for SLATE is by far the most.
    """
    images = to_range(batch["image"], model.config)
    masked = "mask" in batch
    true_count = batch["visible"].shape[-1] + 1 if "visible" in batch else most_objects + 1
    span = model.config.high - model.config.low

    def one(image, key, mask):
        loss_key, explain_key = jax.random.split(key)
        loss, terms = model.loss(image, draws=model.draw(loss_key), step=step)
        out = model.explain(image, key=explain_key)
        # What is generated from slots alone is drawn, not measured: it takes far longer than anything else here.
        made = out.extra["dvae"] if "dvae" in out.extra else out.reconstruction
        error = jnp.mean(jnp.square((made.astype(jnp.float32) - image) / span))
        values = {"loss": loss} | terms
        values["psnr"] = -10.0 * jnp.log10(jnp.maximum(error, LEAST_ERROR))
        labels = labels_of_masks(out.masks)
        shares = jnp.mean(jax.nn.one_hot(labels.reshape(-1), len(out.masks)), axis=0)
        values["slots_in_use"] = jnp.sum((shares >= IN_USE).astype(jnp.float32))
        if not masked:
            return values, out if whole else None
        score = lambda labels: segmentation_scores(
            mask.astype(jnp.int32), labels, true_count=true_count, predicted_count=len(out.masks)
        )
        height, width = labels.shape
        stripes = jnp.broadcast_to(jnp.arange(width)[None, :] * len(out.masks) // width, (height, width))
        all_scores = jax.vmap(score)(jnp.stack([labels, jnp.zeros_like(labels), stripes]))
        found, one_segment, striped = (jax.tree.map(lambda x, i=i: x[i], all_scores) for i in range(3))
        if "count" in out.extra:
            # Of what the picture shows: a crop may have left objects out that the data set calls visible.
            areas = jnp.sum(jax.nn.one_hot(mask.reshape(-1), true_count), axis=0)
            true = jnp.sum((areas[1:] > 0).astype(jnp.float32))
            found = found._replace(count_accuracy=(out.extra["count"] == true).astype(jnp.float32))
        values |= found._asdict()
        for name, baseline in (("one segment", one_segment), ("stripes", striped)):
            values |= {f"{name}/{key}": value for key, value in baseline._asdict().items()}
        return values, out if whole else None

    return batch_map(one, (0, 0, 0 if masked else None))(images, keys, batch.get("mask"))


def _tables(numbers: Mapping[str, float], images: int, config: Any) -> dict[str, Any]:
    """The scores beside two trivial answers, and the other numbers."""
    tables = []
    if "ari" in numbers or "fg_ari" in numbers:
        rows = []
        for label, prefix in (
            ("model", ""),
            ("all one segment", "one segment/"),
            ("vertical stripes", "stripes/"),
        ):
            row = {title: numbers.get(f"{prefix}{name}") for name, title in TITLES.items()}
            rows.append({"name": label, **row})
        tables.append(
            {
                "title": f"Segments of {images} held-out images",
                "columns": list(TITLES.values()),
                "better": dict.fromkeys(TITLES.values(), "higher"),
                "rows": rows,
                "notes": [
                    "ARI and covering count the background as a segment, the other scores look at true objects.",
                    "mBO: best overlap of each object. mIoU and Dice: one segment per object at most.",
                ],
            }
        )
    known = {*SegmentationScores._fields}
    rest = [
        {"name": n.replace("_", " "), "value": v} for n, v in numbers.items() if "/" not in n and n not in known
    ]
    notes = [f"PSNR in dB. Values of pixels run from {config.low:g} to {config.high:g}."]
    if not tables:
        notes.append("The data set has no masks, so segments cannot be measured; look at the pictures.")
    tables.append({"title": "Reconstruction and loss", "columns": ["value"], "rows": rest, "notes": notes})
    return {"tables": tables}
