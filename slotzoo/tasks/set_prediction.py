"""Set prediction: from an image to the properties of its objects, in no order (Slot Attention, section 4.2).

A model takes one image: `model(image, draws=..., key=...)` has `prediction`, `slot feature`, and `model.draw(key)`
gives its random numbers. Batches hold `image` (uint8) and `targets`, float32 `batch object 19`: position
`(x + 3) / 6` (3), one-hot size (2), material (2), shape (3) and colour (8), and 1 for an object; rows of zeros
where there is none.
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
from slotzoo.losses import hungarian_loss, pairwise_huber
from slotzoo.metrics.detection import THRESHOLDS, average_precision
from slotzoo.metrics.sums import sum_over_processes
from slotzoo.ops import batch_map
from slotzoo.tasks.held_out import held_out, write_table
from slotzoo.tasks.pixels import to_range
from slotzoo.tasks.plain import AbstractPlainTask
from slotzoo.viz import write_png
from slotzoo.viz.images import comfortable_scale, enlarge, write_text
from slotzoo.viz.strips import stacked


# In the order of the targets' one-hot groups.
WORDS = (
    ("small", "large"),
    ("rubber", "metal"),
    ("cube", "sphere", "cylinder"),
    ("gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan"),
)


@dataclasses.dataclass(frozen=True)
class SetPredictionConfig:
    """What is measured: average precision within each distance, in the units of CLEVR's scenes."""

    thresholds: tuple[float, ...] = THRESHOLDS
    pictures: int = 4

    def __post_init__(self):
        if self.pictures < 0 or not self.thresholds or min(self.thresholds) <= 0:
            raise ConfigError("set prediction: thresholds are positive, pictures is at least 0.")


class SetPredictionTask(AbstractPlainTask):
    """The task of `slotzoo.train.protocols.Task` over batches of `image` and `targets`."""

    def __init__(self, config: SetPredictionConfig | None = None):
        self.config = config or SetPredictionConfig()

    def loss(
        self,
        model: Any,
        frozen: Any,
        batch: Mapping[str, Any],
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over images of the least sum of Huber distances that a one-to-one assignment has.

        Where there are more slots than rows of targets, the others are assigned to rows of zeros.
        """
        del frozen, step
        if "targets" not in batch:
            raise ConfigError(
                "set prediction: the data set gives no targets; use one with properties of its objects, "
                "data=clevr data.options.attributes=true."
            )
        targets = jnp.asarray(batch["targets"])
        keys = jax.random.split(key, len(targets))
        predictions = _forward(model, jnp.asarray(batch["image"]), keys)
        if predictions.shape[1] < targets.shape[1] or predictions.shape[2] != targets.shape[2]:
            raise ConfigError(
                f"set prediction: the model predicts {predictions.shape[1]} objects of {predictions.shape[2]} "
                f"features, the data set has up to {targets.shape[1]} of {targets.shape[2]}; set model.num_slots or "
                "data.options.max_objects."
            )
        return jnp.mean(batch_map(_matched_loss)(targets, predictions)), {}

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
        """The loss and the average precision of held-out images, all ranked together; writes `table.json`, pictures."""
        found: dict[str, np.ndarray] = {}
        rows: list[np.ndarray] = []
        process = jax.process_index()
        dealt_out = held_out(batches, key=key, name="set", should_stop=should_stop)
        for number, batch in enumerate(dealt_out):
            arrays = {name: jnp.asarray(batch.fields[name]) for name in ("image", "targets")}
            loss, predictions = _measure(model, arrays, batch.keys)
            place = f"{number:08d}/{process:08d}"
            found[f"loss/{place}"] = np.asarray(loss)[batch.valid]
            found[f"predictions/{place}"] = np.asarray(predictions, np.float32)[batch.valid]
            found[f"targets/{place}"] = np.asarray(arrays["targets"], np.float32)[batch.valid]
            for i in batch.to_draw(self.config.pictures - len(rows)):
                rows.append(_picture(np.asarray(arrays["image"][i]), np.asarray(predictions)[i]))
        # The names of two processes differ, so their sum holds what both found.
        found = sum_over_processes(found)
        if should_stop():
            return {}
        joined = {
            what: [found[name] for name in sorted(found) if name.startswith(f"{what}/")]
            for what in ("loss", "predictions", "targets")
        }
        if not sum(map(len, joined["loss"])):
            raise DataError("set prediction: there is no held-out image to evaluate on; raise eval.clips.")
        predictions, targets = (np.concatenate(joined[name]) for name in ("predictions", "targets"))
        scores = average_precision(predictions, targets, self.config.thresholds)
        trivial = average_precision(_mean_object(targets, len(predictions)), targets, self.config.thresholds)
        titles = ["any distance" if np.isinf(t) else f"within {t:g}" for t in self.config.thresholds]
        table = {
            "title": f"Average precision of {len(targets)} held-out images",
            "columns": titles,
            "better": dict.fromkeys(titles, "higher"),
            "rows": [
                {"name": label, **{t: float(v) for t, v in zip(titles, values, strict=True)}}
                for label, values in (("model", scores), ("the mean object, everywhere", trivial))
            ],
            "notes": ["Distances in the units of CLEVR's scenes, in which the table is 6 wide."],
        }
        write_table(folder, table)
        if rows:
            write_png(folder / "predictions.png", stacked(rows))
        names = ["ap" if np.isinf(t) else f"ap_{t:g}" for t in self.config.thresholds]
        numbers = {name: float(value) for name, value in zip(names, scores, strict=True)}
        return {"loss": float(np.concatenate(joined["loss"]).mean())} | numbers


def _forward(
    model: Any, images: UInt8[Array, "batch height width channel"], keys: Key[Array, " batch"]
) -> Float[Array, "batch slot feature"]:
    one = lambda image, key: model(image, draws=model.draw(key)).prediction
    return batch_map(one)(to_range(images, model.config), keys).astype(jnp.float32)


@eqx.filter_jit
def _measure(
    model: Any, batch: dict[str, Array], keys: Key[Array, " batch"]
) -> tuple[Float[Array, " batch"], Float[Array, "batch slot feature"]]:
    predictions = _forward(model, batch["image"], keys)
    return batch_map(_matched_loss)(batch["targets"], predictions), predictions


def _matched_loss(
    targets: Float[Array, "object feature"], predictions: Float[Array, "slot feature"]
) -> Float[Array, ""]:
    """Slots beyond the rows of the targets are matched with zeros: they have to learn that they hold no object."""
    missing = max(0, len(predictions) - len(targets))
    return hungarian_loss(pairwise_huber(jnp.pad(targets, ((0, missing), (0, 0))), predictions))


def _mean_object(
    targets: Float[np.ndarray, "image object feature"], images: int
) -> Float[np.ndarray, "image object feature"]:
    """The same guess for every image and slot: the mean of all real objects."""
    real = targets[targets[..., -1] > 0.5]
    mean = real.mean(0) if len(real) else np.zeros(targets.shape[-1])
    return np.broadcast_to(mean, (images, *targets.shape[1:])).astype(np.float32)


def _picture(
    image: UInt8[np.ndarray, "height width 3"], predictions: Float[np.ndarray, "slot feature"]
) -> UInt8[np.ndarray, "tall wide 3"]:
    """The image, and in words what is predicted to be there, the surest first."""
    image = enlarge(image, comfortable_scale(*image.shape[:2], comfortable=160))
    canvas = np.full((max(len(image), 14 * len(predictions) + 6), image.shape[1] + 330, 3), 255, np.uint8)
    canvas[: len(image), : image.shape[1]] = image
    for line, row in enumerate(predictions[np.argsort(-predictions[:, -1])]):
        words, start = [], 3
        for names in WORDS:
            words.append(names[int(row[start : start + len(names)].argmax())])
            start += len(names)
        size, material, shape, colour = words
        place = ", ".join(f"{6 * value - 3:.1f}" for value in row[:3])
        text = f"{row[-1]:.2f}  {size} {colour} {material} {shape} at ({place})"
        shade = (34, 34, 34) if row[-1] >= 0.5 else (170, 170, 170)
        canvas = write_text(canvas, text, left=image.shape[1] + 8, top=2 + 14 * line, size=12, colour=shade)
    return canvas
