"""Prediction by slots: a SlotSSM paints the next frame, and goes on from its own pictures (Jiang et al., 2024).

Trained with every true frame before it; measured as published: the squared error of frames 1 to `length - 1`, of
which those up to the last given one are predicted from true frames and the others from predicted ones. Batches hold
`video`, uint8 `batch time height width channel`; the model has `target="next"` and `generate(context, length)`. See
`slotzoo.tasks.slot_batches` for the rest of its face.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError, DataError
from slotzoo.metrics.protocol import VideoProtocol
from slotzoo.ops import batch_map
from slotzoo.tasks.clip_sums import ClipSums
from slotzoo.tasks.held_out import write_table
from slotzoo.tasks.pixels import to_range
from slotzoo.tasks.plain import AbstractPlainTask
from slotzoo.tasks.slot_batches import clip_loss
from slotzoo.tasks.video_prediction import Rollout, draw_clip


@dataclasses.dataclass(frozen=True)
class SlotPredictionConfig:
    """What is measured: `rollouts`, and how many clips of each are drawn."""

    rollouts: tuple[Rollout, ...] = ()
    pictures: int = 4

    def __post_init__(self):
        if self.pictures < 0:
            raise ConfigError("prediction by slots: pictures is at least 0.")


class SlotPredictionTask(AbstractPlainTask):
    """The task of `slotzoo.train.protocols.Task` over batches of `video`."""

    def __init__(self, config: SlotPredictionConfig | None = None):
        self.config = config or SlotPredictionConfig()

    def loss(
        self,
        model: Any,
        frozen: Any,
        batch: Mapping[str, Any],
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over clips of the error of the next frame, true frames seen."""
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
        """Errors of every kind of rollout: `<rollout>/mse`, of its last frame `<rollout>/mse_last`, PSNR and SSIM.

        Writes `table.json` with curves over the frames, and strips and videos of the first clips.
        """
        del frozen, key, step
        c = self.config
        if not c.rollouts:
            raise ConfigError(
                "prediction by slots: no rollout to measure; give eval.rollouts=[{context: 10, actions: false}]."
            )
        protocols = {r: VideoProtocol(context=r.context) for r in c.rollouts}
        sums, drawn = ClipSums(), dict.fromkeys(c.rollouts, 0)
        for batch in batches:
            if should_stop():
                break
            video = np.asarray(batch["video"])
            valid = np.asarray(batch.get("valid", np.ones(len(video), bool)))
            for rollout, protocol in protocols.items():
                truth = video[:, : rollout.length]
                curves, made = _rollout(model, jnp.asarray(truth), rollout.context)
                sums.add({f"{rollout.name}/{name}": np.asarray(v) for name, v in curves.items()}, valid)
                made = np.asarray(made)
                protocol.add(truth, made, valid=valid)
                missing = c.pictures - drawn[rollout] if jax.process_index() == 0 else 0
                for clip in np.flatnonzero(valid)[:missing]:
                    draw_clip(folder, rollout, drawn[rollout], truth[clip], made[clip])
                    drawn[rollout] += 1
        # Each process measured its own clips. All of them come here, a stopped one too: none waits for another forever.
        sums = sums.over_processes()
        protocols = {r: protocol.over_processes() for r, protocol in protocols.items()}
        if should_stop():
            return {}
        if not sums.clips:
            raise DataError("prediction by slots: there is no held-out clip to evaluate on; raise eval.clips.")
        means, numbers, tables = sums.means(), {}, []
        for r, protocol in protocols.items():
            found = {name: means[f"{r.name}/{name}"] for name in ("model", "repeat")}
            tables += [
                _error_table(r, found, sums.clips // len(protocols)),
                protocol.table(f"Rollout: {r.title}"),
            ]
            after = found["model"][r.context - 1 :]
            numbers |= {f"{r.name}/mse": float(after.mean()), f"{r.name}/mse_last": float(after[-1])}
            numbers[f"{r.name}/mse_next"] = float(found["model"][: r.context].mean())
            numbers |= {f"{r.name}/{k}": v for k, v in protocol.scalars().items() if "/" not in k}
        write_table(folder, {"tables": tables})
        return {name: float(value) for name, value in numbers.items()}


@eqx.filter_jit
def _rollout(model: Any, video: Array, context: int) -> tuple[dict[str, Float[Array, "batch step"]], Array]:
    """Squared errors of frames 1 on, of the model and of a repetition, and the frames as bytes, given ones in front."""
    c = model.config
    if c.target != "next":
        raise ConfigError(
            f"prediction by slots: the model is trained on target={c.target!r}, not on the next frame."
        )
    span = c.high - c.low

    def one(clip: Array) -> tuple[dict[str, Array], Array]:
        seen, later = clip[:context], clip[context:]
        after = model.generate(seen, len(later)).astype(jnp.float32)
        told = model(seen[:-1]).outputs.reconstruction.astype(jnp.float32) if context > 1 else after[:0]
        predicted = jnp.concatenate([told, after])
        # The last given frame is all that a repetition knows of those that come later.
        repeated = clip[jnp.minimum(jnp.arange(len(predicted)), context - 1)]
        error = lambda made: jnp.mean(jnp.square((made - clip[1:]) / span), axis=(1, 2, 3))
        whole = jnp.clip((jnp.concatenate([seen, after]) - c.low) / span, 0, 1)
        shown = jnp.round(whole * 255).astype(jnp.uint8)
        return {"model": error(predicted), "repeat": error(repeated)}, shown

    return batch_map(one)(to_range(video, c))


def _error_table(rollout: Rollout, found: Mapping[str, np.ndarray], clips: int) -> dict[str, Any]:
    names = {"model": "model", "repeat": "repeat last frame"}
    length, start = len(found["model"]) + 1, rollout.context - 1
    columns = ["frames given", "rolled out", "last frame"]
    parts = {
        "frames given": slice(0, rollout.context),
        "rolled out": slice(start, None),
        "last frame": slice(-1, None),
    }
    rows = [
        {"name": title, **{column: float(found[name][part].mean()) for column, part in parts.items()}}
        for name, title in names.items()
    ]
    return {
        "title": f"Squared error of {clips} held-out clips: {rollout.title}",
        "columns": columns,
        "better": dict.fromkeys(columns, "lower"),
        "rows": rows,
        "notes": [
            f"Pixels from 0 to 1, mean per frame. Up to frame {rollout.context} every true frame before it was given; "
            f"frames {rollout.context} to {length - 1} are rolled out."
        ],
        "curves": [
            {
                "title": "Squared error by frame",
                "x_label": "frame number",
                "y_label": "squared error",
                "x": list(range(1, length)),
                "series": {title: [float(v) for v in found[name]] for name, title in names.items()},
            }
        ],
    }
