"""The evaluation protocol of video prediction, over any number of batches, with trivial baselines beside it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from slotzoo.errors import ShapeError
from slotzoo.metrics.frechet import FeatureSums, frechet_distance
from slotzoo.metrics.i3d import I3D, MIN_FRAMES, i3d_logits
from slotzoo.metrics.lpips import LPIPS, MIN_SIZE
from slotzoo.metrics.sums import RowSums, flat_features, join, read_features, sum_over_processes
from slotzoo.metrics.video import SSIM_WINDOW, psnr, ssim


# PSNR of equal frames is infinite; frames of bytes that differ in one value stay below this.
MAX_PSNR = 100.0
REPEAT_LAST = "repeat last frame"
MEAN_CONTEXT = "mean of given frames"
MEAN_TRAINING = "mean training frame"
HIGHER_IS_BETTER = {"PSNR": True, "SSIM": True, "LPIPS": False, "FVD": False}
Clips = Shaped[Array | np.ndarray, "clip time height width channel"]


class VideoProtocol:
    """Scores predictions of clips batch by batch, keeping sums and no frames.

    As in the ConvSSM and TECO evaluations: PSNR, SSIM and LPIPS (AlexNet) of each predicted frame, the given
    `context` frames left out, averaged over frames and clips; FVD over whole clips, with the true frames in
    place of the given ones. With several samples per clip there are two rows, the mean over the samples and the
    best of them (per clip and measure). Baselines that no model may lose to stand in the same table.

    context: number of frames that the model is given.
    lpips, i3d: the networks of LPIPS and FVD; None leaves the column out.
    mean_frame: the mean frame of the training set, for one more baseline.
    value_range: of float clips; uint8 clips always span 0..255.
    min_fvd_clips: FVD of fewer clips is left out of the table (a note says so).
    frames_at_once: frames scored by one compiled call.

    Several processes each score their own clips and then call `over_processes`. Elsewhere `merge` adds up two
    protocols, or `state`, which is made of plain arrays, travels and is given to `with_state`.
    """

    def __init__(
        self,
        *,
        context: int,
        lpips: LPIPS | None = None,
        i3d: I3D | None = None,
        mean_frame: Float[np.ndarray, "height width channel"] | None = None,
        value_range: tuple[int | float, int | float] = (0.0, 1.0),
        baselines: bool = True,
        min_fvd_clips: int = 16,
        frames_at_once: int = 64,
    ):
        if context < 1:
            raise ShapeError(f"the protocol needs at least one given frame, got context={context}")
        self.context = context
        self.lpips, self.i3d, self.mean_frame = lpips, i3d, mean_frame
        self.value_range = value_range
        self.baselines = baselines
        self.min_fvd_clips = min_fvd_clips
        self.frames_at_once = frames_at_once
        self.length: int | None = None
        self.smallest_side: int | None = None
        self.rows: dict[str, RowSums] = {}
        self.truth_features: FeatureSums | None = None

    def add(self, truth: Clips, predictions: Any, *, valid: Bool[np.ndarray, " clip"] | None = None) -> None:
        """Score a batch.

        truth: uint8, or float in `value_range`, (clip, time, height, width, channel).
        predictions: like `truth`, or with an axis of samples after the first, (clip, sample, time, ...); a
            mapping scores several models under their names. The time axis is that of `truth`, or has only the
            frames after the given ones.
        valid: False marks clips that fill up a last batch; they are left out.
        """
        truth = np.asarray(truth)
        models = predictions if isinstance(predictions, Mapping) else {"model": predictions}
        models = {name: np.asarray(value) for name, value in models.items()}
        if valid is not None:
            truth, models = truth[valid], {name: value[valid] for name, value in models.items()}
        if not len(truth):
            return
        true = self._unit(truth)
        self._check(true)
        samples = {name: self._unit(self._aligned(name, value, truth)) for name, value in models.items()}
        target = true[:, self.context :]
        if self.i3d is not None:
            self.truth_features = join(self.truth_features, self._features(self.i3d, true))
        for name, value in samples.items():
            self._add_model(name, true, target, value)
        if self.baselines:
            for name, frame in self._baseline_frames(true).items():
                self._add_rows({name: self._scores(np.broadcast_to(frame, target.shape), target)})
                self._add_features(name, true, np.broadcast_to(frame, target.shape))

    def merge(self, other: "VideoProtocol") -> None:
        """Add what another protocol has seen (of other clips, with the same settings)."""
        for name, row in other.rows.items():
            self.rows[name] = self.rows[name] + row if name in self.rows else row
        self.truth_features = join(self.truth_features, other.truth_features)
        self.length = self.length or other.length
        self.smallest_side = self.smallest_side or other.smallest_side

    def state(self) -> dict[str, np.ndarray]:
        """All sums as float64 arrays by name: states of two protocols add up (see `add_states`)."""
        flat = flat_features("truth", self.truth_features)
        for name, row in self.rows.items():
            flat |= row.flat(name)
        return flat

    def with_state(self, state: Mapping[str, np.ndarray]) -> "VideoProtocol":
        """A protocol of the same settings that holds the sums of `state`."""
        new = VideoProtocol(
            context=self.context,
            lpips=self.lpips,
            i3d=self.i3d,
            mean_frame=self.mean_frame,
            value_range=self.value_range,
            baselines=self.baselines,
            min_fvd_clips=self.min_fvd_clips,
            frames_at_once=self.frames_at_once,
        )
        new.length, new.smallest_side = self.length, self.smallest_side
        for name in (key[: -len("/clips")] for key in state if key.endswith("/clips")):
            new.rows[name] = RowSums.from_flat(name, state)
        new.truth_features = read_features("truth", state)
        return new

    def over_processes(self) -> "VideoProtocol":
        """A protocol that holds what all processes have seen; every process has to call it."""
        sizes = {"length": self.length, "smallest_side": self.smallest_side}
        counted = {f"#{k}/seen": np.asarray(v is not None, np.float64) for k, v in sizes.items()}
        summed = {f"#{k}/sum": np.asarray(v or 0, np.float64) for k, v in sizes.items()}
        state = sum_over_processes(self.state() | counted | summed)
        new = self.with_state({k: v for k, v in state.items() if not k.startswith("#")})
        # A process without clips knows neither length nor size; those that know them agree.
        for name in sizes:
            seen = float(state[f"#{name}/seen"])
            setattr(new, name, round(float(state[f"#{name}/sum"]) / seen) if seen else None)
        return new

    def result(self) -> dict[str, dict[str, float]]:
        """Row -> measure -> mean over clips; "<measure> std" is the standard deviation between clips."""
        table: dict[str, dict[str, float]] = {}
        for name, row in self.rows.items():
            entry: dict[str, float] = {}
            for key, total in row.total.items():
                mean = total / row.clips
                entry[key] = mean
                entry[f"{key} std"] = float(np.sqrt(max(row.square[key] / row.clips - mean**2, 0.0)))
            entry["clips"] = float(row.clips)
            if row.features is not None and self.truth_features is not None:
                if row.features.count >= max(2, self.min_fvd_clips):
                    entry["FVD"] = frechet_distance(row.features, self.truth_features)
            table[name] = entry
        return table

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """Measure -> row -> mean over clips at each predicted frame, from frame number `context` on."""
        found: dict[str, dict[str, list[float]]] = {}
        for name, row in self.rows.items():
            for key, step in row.step.items():
                found.setdefault(key, {})[name] = (step / row.clips).tolist()
        return found

    def scalars(self) -> dict[str, float]:
        """The means as flat names for a log: "psnr" (first model), "repeat_last_frame/psnr" and so on."""
        flat: dict[str, float] = {}
        for i, (name, entry) in enumerate(self.result().items()):
            prefix = "" if i == 0 else f"{re.sub('[^a-zA-Z0-9]+', '_', name)}/"
            flat |= {prefix + k.lower(): v for k, v in entry.items() if k in HIGHER_IS_BETTER}
        return flat

    def table(self, title: str = "Prediction", notes: Sequence[str] = ()) -> dict[str, Any]:
        """The table that `evaluation/step_<n>/table.json` holds and the report draws; JSON values only."""
        result = self.result()
        columns = [k for k in HIGHER_IS_BETTER if any(k in entry for entry in result.values())]
        rows = [
            {"name": name} | {k: _round(entry.get(k)) for k in columns} | {"clips": int(entry["clips"])}
            for name, entry in result.items()
        ]
        start, length = self.context, self.length or 0
        by_frame = self.curves()
        curves = [
            {
                "title": f"{measure} by frame",
                "x_label": "frame number",
                "y_label": f"{measure}{' (dB)' if measure == 'PSNR' else ''}",
                "x": list(range(start, start + len(next(iter(series.values()))))),
                "series": {name: [_round(v) for v in values] for name, values in series.items()},
            }
            for measure in columns
            if (series := by_frame.get(measure))
        ]
        return {
            "title": title,
            "columns": [*columns, "clips"],
            "better": {k: "higher" if HIGHER_IS_BETTER[k] else "lower" for k in columns},
            "rows": rows,
            "notes": [
                f"Means over frames {start} to {length - 1}; frames 0 to {start - 1} were given. "
                "PSNR in dB per frame, SSIM with an 11-pixel Gaussian window.",
                *self._absent(),
                *notes,
            ],
            "curves": curves,
        }

    def _absent(self) -> list[str]:
        notes, side = [], self.smallest_side or 0
        if side < SSIM_WINDOW:
            notes.append(f"SSIM is left out: frames are smaller than its window of {SSIM_WINDOW} pixels.")
        if self.lpips is None:
            notes.append("LPIPS was not asked for, or its weights (the extra metrics) are not installed.")
        elif side < MIN_SIZE[self.lpips.net]:
            notes.append(f"LPIPS is left out: it needs frames of {MIN_SIZE[self.lpips.net]} pixels or more.")
        counts = [row.features.count for row in self.rows.values() if row.features is not None]
        if self.i3d is None:
            notes.append("FVD was not asked for.")
        elif counts and min(counts) < self.min_fvd_clips:
            notes.append(f"FVD is left out: {min(counts)} clips are fewer than {self.min_fvd_clips}.")
        elif counts:
            notes.append(f"FVD over {min(counts)} whole clips (its value depends on that number).")
        return notes

    def _add_model(self, name: str, true: np.ndarray, target: np.ndarray, samples: np.ndarray) -> None:
        scores = [self._scores(samples[:, i], target) for i in range(samples.shape[1])]
        mean = {k: np.mean([s[k] for s in scores], axis=0) for k in scores[0]}
        count = len(scores)
        if count == 1:
            self._add_rows({name: mean})
        else:
            best = {k: _best([s[k] for s in scores], HIGHER_IS_BETTER[k]) for k in mean}
            self._add_rows({name: mean, f"{name}, best of {count}": best})
        self._add_features(name, true, samples[:, 0])

    def _add_rows(self, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        for name, scores in rows.items():
            per_clip = {k: v.mean(1, dtype=np.float64) for k, v in scores.items()}
            sums = RowSums(
                len(next(iter(scores.values()))),
                {k: float(v.sum()) for k, v in per_clip.items()},
                {k: float((v**2).sum()) for k, v in per_clip.items()},
                {k: v.sum(0, dtype=np.float64) for k, v in scores.items()},
            )
            self.rows[name] = self.rows[name] + sums if name in self.rows else sums

    def _add_features(self, name: str, true: np.ndarray, frames: np.ndarray) -> None:
        if self.i3d is None:
            return
        sums = self._features(self.i3d, np.concatenate([true[:, : self.context], frames], axis=1))
        row = self.rows[name]
        self.rows[name] = dataclasses.replace(row, features=join(row.features, sums))

    def _features(self, i3d: I3D, clips: np.ndarray) -> FeatureSums:
        rgb = clips if clips.shape[-1] == 3 else clips.repeat(3, axis=-1)
        # One clip a call, so that another number of clips does not compile anew.
        return FeatureSums.of(np.concatenate([i3d_logits(i3d, jnp.asarray(c[None])) for c in rgb]))

    def _scores(self, frames: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
        """Measure -> (clip, step), in chunks of equal size so that one compilation serves all batches."""
        clips, steps = target.shape[:2]
        left, right = (np.ascontiguousarray(x).reshape(-1, *x.shape[2:]) for x in (frames, target))
        chunk = self.frames_at_once
        found: list[dict[str, np.ndarray]] = []
        for start in range(0, len(left), chunk):
            parts = [x[start : start + chunk] for x in (left, right)]
            missing = chunk - len(parts[0])
            if missing:
                parts = [np.pad(x, ((0, missing), (0, 0), (0, 0), (0, 0))) for x in parts]
            scores = _frame_scores(self.lpips, jnp.asarray(parts[0]), jnp.asarray(parts[1]))
            found.append({k: np.asarray(v)[: chunk - missing] for k, v in scores.items()})
        joined = {k: np.concatenate([f[k] for f in found]).reshape(clips, steps) for k in found[0]}
        joined["PSNR"] = np.minimum(joined["PSNR"], MAX_PSNR)
        return joined

    def _baseline_frames(self, true: np.ndarray) -> dict[str, np.ndarray]:
        given = true[:, : self.context]
        frames = {REPEAT_LAST: given[:, -1:], MEAN_CONTEXT: given.mean(1, keepdims=True)}
        if self.mean_frame is not None:
            low, high = self.value_range
            frames[MEAN_TRAINING] = ((self.mean_frame - low) / (high - low)).astype(np.float32)[None, None]
        return frames

    def _aligned(self, name: str, value: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Predicted frames as (clip, sample, step, height, width, channel)."""
        if value.ndim == truth.ndim:
            value = value[:, None]
        steps = truth.shape[1] - self.context
        if value.ndim == truth.ndim + 1 and value.shape[2] == truth.shape[1]:
            value = value[:, :, self.context :]
        expected = (truth.shape[0], *truth.shape[2:])
        if (
            value.ndim != truth.ndim + 1
            or value.shape[2] != steps
            or (value.shape[0], *value.shape[3:]) != expected
        ):
            raise ShapeError(
                f"predictions {name!r} do not fit the true clips {truth.shape}: expected (clip, [sample,] "
                f"time, height, width, channel) with {truth.shape[1]} or {steps} frames, got {value.shape}"
            )
        return value

    def _unit(self, clips: np.ndarray) -> np.ndarray:
        """float32 in [0, 1]; floats outside of `value_range` mean that the caller is mistaken about it."""
        if clips.dtype == np.uint8:
            return clips.astype(np.float32) / np.float32(255)
        low, high = self.value_range
        slack = 0.01 * (high - low)
        lowest, highest = float(clips.min()), float(clips.max())
        if not (low - slack <= lowest and highest <= high + slack):
            raise ShapeError(
                f"clips are not in the value range [{low}, {high}]: they span [{lowest:.3g}, {highest:.3g}]; "
                "clip them, or name their range with value_range="
            )
        return np.clip((clips.astype(np.float32) - low) / (high - low), 0.0, 1.0).astype(np.float32)

    def _check(self, true: np.ndarray) -> None:
        length = true.shape[1]
        if length <= self.context:
            raise ShapeError(f"clips of {length} frames leave none to predict after {self.context} given ones")
        if self.length not in (None, length):
            raise ShapeError(f"all clips of a table must have the same length: {self.length}, then {length}")
        if self.i3d is not None and length < MIN_FRAMES:
            raise ShapeError(f"FVD needs clips of at least {MIN_FRAMES} frames, got {length}: leave it out")
        self.length = length
        self.smallest_side = min(true.shape[2:4])


def video_table(
    truth: Clips,
    predictions: Any,
    *,
    context: int,
    title: str = "Prediction",
    **settings: Any,
) -> dict[str, Any]:
    """Score one set of clips at once; see `VideoProtocol` for the arguments and settings.

    Returns row -> measure -> value under "result", and the table for `table.json` under "table".
    """
    protocol = VideoProtocol(context=context, **settings)
    protocol.add(truth, predictions)
    return {"result": protocol.result(), "table": protocol.table(title)}


@eqx.filter_jit
def _frame_scores(
    lpips: LPIPS | None,
    frames: Float[Array, "frame height width channel"],
    target: Float[Array, "frame height width channel"],
) -> dict[str, Float[Array, " frame"]]:
    scores = {"PSNR": psnr(frames, target)}
    if min(frames.shape[1:3]) >= SSIM_WINDOW:
        scores["SSIM"] = ssim(frames, target)
    if lpips is not None and min(frames.shape[1:3]) >= MIN_SIZE[lpips.net]:
        rgb = [2 * (x if x.shape[-1] == 3 else jnp.repeat(x, 3, axis=-1)) - 1 for x in (frames, target)]
        scores["LPIPS"] = jax.vmap(lpips)(*rgb)
    return scores


def _best(scores: Sequence[np.ndarray], higher: bool) -> np.ndarray:
    """For each clip the curve of the sample whose mean over time is best."""
    stacked = np.stack(scores)
    means = stacked.mean(2)
    choice = means.argmax(0) if higher else means.argmin(0)
    return stacked[choice, np.arange(stacked.shape[1])]


def _round(value: float | None) -> float | None:
    """Six digits, and None (JSON's null) for what is missing or not finite."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.6g}")
