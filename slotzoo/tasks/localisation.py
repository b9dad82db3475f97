"""Localisation: in which cell is the snitch when the video ends? (CATER, Girdhar and Ramanan, ICLR 2020, task 3.)

Batches hold `video` (uint8, `batch time height width channel`) and `label` (`batch`, cell 6 * row + column of a
6 x 6 grid); the model gives logits over the cells.
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
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt8

from slotzoo.errors import ConfigError, DataError
from slotzoo.ops import batch_map
from slotzoo.tasks.clip_sums import ClipSums
from slotzoo.tasks.held_out import held_out, write_table
from slotzoo.tasks.plain import AbstractPlainTask
from slotzoo.tasks.slot_batches import clip_loss, examples
from slotzoo.viz import write_png
from slotzoo.viz.strips import labelled_rows, stacked


TITLES = {"top_1": "top 1", "top_5": "top 5", "distance": "distance"}


@dataclasses.dataclass(frozen=True)
class LocalisationConfig:
    """What is drawn: `pictures` videos with the true cell and the predicted shares."""

    pictures: int = 4
    frames: int = 8  # of each, evenly spaced

    def __post_init__(self):
        if self.pictures < 0 or self.frames < 1:
            raise ConfigError("localisation: pictures is at least 0 and frames at least 1.")


class LocalisationTask(AbstractPlainTask):
    """The task of `slotzoo.train.protocols.Task` over batches of `video` and `label`."""

    def __init__(self, config: LocalisationConfig | None = None):
        self.config = config or LocalisationConfig()

    def loss(
        self,
        model: Any,
        frozen: Any,
        batch: Mapping[str, Any],
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over clips of the model's loss: the cross-entropy of the true cell."""
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
        """Shares of held-out videos whose cell is the likeliest (`top_1`), among the five likeliest (`top_5`), and
        `distance`, how many cells apart the likeliest one is (rows plus columns).

        Beside them in `table.json` the answer that is best without a look: always the cells that are most frequent
        among the held-out videos themselves. Writes `cells.png`.
        """
        del frozen
        sums, drawn = ClipSums(), []
        for batch in held_out(batches, key=key, name="cells", should_stop=should_stop):
            arrays = {name: jnp.asarray(x) for name, x in batch.fields.items() if name in ("video", "label")}
            values, shares = _measure(model, arrays, batch.keys, jnp.asarray(step))
            labels = np.asarray(batch.fields["label"])
            sums.add({**values, "frequency": np.eye(shares.shape[1])[labels]}, batch.valid)
            for i in batch.to_draw(self.config.pictures - len(drawn)):
                video = np.asarray(batch.fields["video"][i])
                drawn.append(self._row(video, int(labels[i]), np.asarray(shares[i])))
        sums = sums.over_processes()
        if should_stop():
            return {}
        if not sums.clips:
            raise DataError("localisation: there is no held-out video to evaluate on; raise eval.clips.")
        means = sums.means()
        numbers = {name: float(value) for name, value in means.items() if name != "frequency"}
        write_table(folder, _table(numbers, means["frequency"], sums.clips))
        if drawn:
            write_png(folder / "cells.png", stacked(drawn))
        return numbers

    def _row(
        self,
        video: UInt8[np.ndarray, "time height width 3"],
        label: int,
        shares: Float[np.ndarray, " cell"],
    ) -> UInt8[np.ndarray, "tall wide 3"]:
        """Frames of a video, and two maps of the table: the true cell, and how likely each one is held."""
        chosen = np.round(np.linspace(0, len(video) - 1, self.config.frames)).astype(int)
        true, side = np.eye(len(shares))[label], video.shape[1:3]
        maps = [_table_map(values, side) for values in (true, shares / max(float(shares.max()), 1e-6))]
        titles = [f"frame {t + 1}" for t in chosen] + ["true cell", "predicted"]
        return labelled_rows({"": np.concatenate([video[chosen], np.stack(maps)])}, titles=titles)


@eqx.filter_jit
def _measure(
    model: Any, batch: dict[str, Array], keys: Key[Array, " batch"], step: Array
) -> tuple[dict[str, Float[Array, " batch"]], Float[Array, "batch cell"]]:
    def one(example, key):
        loss, terms = model.loss(example, key=key, step=step)
        logits = model(example["video"], key=key).outputs.logits.astype(jnp.float32)
        logits = logits if logits.ndim == 1 else logits[-1]
        label, side = example["label"], math.isqrt(logits.shape[0])
        # How many cells are held to be likelier than the true one; of equals the true one comes last.
        rank = jnp.sum((logits >= logits[label]).astype(jnp.int32)) - 1
        likeliest = jnp.argmax(logits).astype(jnp.int32)
        apart = jnp.abs(likeliest // side - label // side) + jnp.abs(likeliest % side - label % side)
        values = {"loss": loss, **terms, "top_1": rank < 1, "top_5": rank < 5, "distance": apart}
        return {name: value.astype(jnp.float32) for name, value in values.items()}, jax.nn.softmax(logits)

    return batch_map(one)(examples(batch, model.config), keys)


def _table(numbers: Mapping[str, float], frequency: Float[np.ndarray, " cell"], clips: int) -> dict[str, Any]:
    side = math.isqrt(len(frequency))
    cells = np.arange(len(frequency))
    apart = np.abs(cells[:, None] // side - cells // side) + np.abs(cells[:, None] % side - cells % side)
    best = np.sort(frequency)[::-1]
    constant = {"top 1": best[0], "top 5": best[:5].sum(), "distance": (apart @ frequency).min()}
    return {
        "tables": [
            {
                "title": f"The snitch in {clips} held-out videos",
                "columns": list(TITLES.values()),
                "better": {"top 1": "higher", "top 5": "higher", "distance": "lower"},
                "rows": [
                    {"name": "model", **{title: numbers[name] for name, title in TITLES.items()}},
                    {"name": "without a look", **{name: float(value) for name, value in constant.items()}},
                    {"name": "by chance", "top 1": 1 / len(frequency), "top 5": 5 / len(frequency)},
                ],
                "notes": [
                    "Distance in cells, rows plus columns. Without a look: the best answer for each column that is the "
                    "same for all videos, which knows how often each cell is right."
                ],
            }
        ]
    }


def _table_map(
    values: Float[np.ndarray, " cell"], side: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Values from 0 (white) to 1 (black) of the cells, as large as a frame; row 0 is at the top."""
    cells = math.isqrt(len(values))
    rows, columns = (np.arange(n) * cells // n for n in side)
    grey = values.reshape(cells, cells)[rows][:, columns]
    return np.repeat((255 * (1 - np.clip(grey, 0, 1)))[..., None], 3, -1).astype(np.uint8)
