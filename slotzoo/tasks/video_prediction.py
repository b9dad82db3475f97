"""Video prediction: training on clips, rollouts from a few given frames, and how well they match.

One task for every sequence model of the zoo, over tokens of a frozen image tokenizer or over pixels. A model
takes one clip: `model(clip, actions, [codebook,] draws=..., key=...)` gives predictions with weights, `generate`
continues a context.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, UInt8

from slotzoo import losses
from slotzoo.errors import ConfigError, DataError
from slotzoo.metrics.i3d import I3D, load_i3d
from slotzoo.metrics.lpips import LPIPS, load_lpips
from slotzoo.metrics.protocol import VideoProtocol
from slotzoo.metrics.sums import sum_over_processes
from slotzoo.ops import batch_map
from slotzoo.prng import stream
from slotzoo.tasks.first_stage import FirstStage
from slotzoo.tasks.held_out import write_table
from slotzoo.tasks.pixels import to_bytes, to_float
from slotzoo.tasks.plain import AbstractPlainTask
from slotzoo.viz import prediction_strip, side_by_side, write_png, write_video


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One kind of rollout: `context` given frames, with the actions or without, to `length` frames in all (None: as
    many as the clip has)."""

    context: int
    actions: bool = True
    length: int | None = None

    @property
    def name(self) -> str:
        """As the authors call their folders: `action_144`, `36`; with a length `36_to_500`."""
        name = f"action_{self.context}" if self.actions else str(self.context)
        return name if self.length is None else f"{name}_to_{self.length}"

    @property
    def title(self) -> str:
        what = f"{self.context} frames given, {'with' if self.actions else 'without'} actions"
        return what if self.length is None else f"{what}, {self.length - self.context} frames predicted"


@dataclasses.dataclass(frozen=True)
class VideoPredictionConfig:
    """What is measured. `samples` rollouts are drawn per clip, at `temperature`; the table has their mean and best."""

    rollouts: tuple[Rollout, ...] = ()
    samples: int = 1
    temperature: float = 1.0
    lpips: bool = True
    fvd: bool = False
    pictures: int = 4  # clips drawn per kind of rollout
    one_step_frames: int | None = None  # of a held-out clip, for the loss of the next frame; None: all

    def __post_init__(self):
        if self.samples < 1 or self.temperature < 0 or self.pictures < 0:
            raise ConfigError("video prediction: samples is at least 1, temperature and pictures at least 0.")


class VideoPredictionTask(AbstractPlainTask):
    """The task of `slotzoo.train.protocols.Task` over batches of `video` (uint8) or `tokens`, and `actions`."""

    def __init__(self, config: VideoPredictionConfig | None = None):
        self.config = config or VideoPredictionConfig()

    @functools.cached_property
    def networks(self) -> tuple[LPIPS | None, I3D | None]:
        """What LPIPS and FVD are measured with. **Raises** `WeightsError` where the extra `metrics` is missing.

        Ask for it before training: the first evaluation may be hours away.
        """
        c = self.config
        lpips = load_lpips("alex") if c.lpips and c.rollouts else None
        return lpips, load_i3d() if c.fvd and c.rollouts else None

    def loss(
        self,
        model: Any,
        frozen: FirstStage,
        batch: Mapping[str, Any],
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The mean over clips of the weighted sum of each prediction's loss, and its terms.

        Tokens: cross-entropy with smoothed labels, summed over a frame. Pixels: squared and absolute error mixed.
        A model with a `loss` of its own says itself what it is trained on.
        """
        del step
        clips = _clips(frozen, batch)
        keys = jax.random.split(key, len(clips))
        actions = _actions(batch, *clips.shape[:2])

        def one(clip, actions, key):
            draw_key, dropout_key = jax.random.split(key)
            draws = model.draw(len(clip), key=draw_key)
            if hasattr(model, "loss"):  # it is trained on more than its predictions, as TECO is
                given = () if frozen.tokenizer is None else (frozen.tokenizer.codebook,)
                return model.loss(clip, actions, *given, draws=draws, key=dropout_key)
            out = _forward(model, frozen, clip, actions, draws=draws, key=dropout_key)
            return _score(model, out, clip)

        per_clip, terms = batch_map(one)(clips, actions, keys)
        return jnp.mean(per_clip), {name: jnp.mean(value) for name, value in terms.items()}

    def evaluate(
        self,
        model: Any,
        frozen: FirstStage,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        key: PRNGKeyArray,
        step: int,
        folder: Path,
        should_stop: Callable[[], bool],
    ) -> dict[str, float]:
        """One-step predictions of held-out clips, then rollouts with the authors' measures and trivial baselines.

        Writes `table.json`, and per kind of rollout strips (PNG) and videos of the first clips.
        """
        c = self.config
        lpips, i3d = self.networks
        protocols = {r: VideoProtocol(context=r.context, lpips=lpips, i3d=i3d) for r in c.rollouts}
        drawn = dict.fromkeys(c.rollouts, 0)
        sums: dict[str, np.ndarray] = {}
        clocks = {r: _Clock() for r in c.rollouts}
        for number, batch in enumerate(batches):
            if should_stop():
                break
            arrays = {name: batch[name] for name in ("video", "tokens", "actions") if name in batch}
            clips = len(next(iter(arrays.values())))
            valid = np.asarray(batch.get("valid", np.ones(clips, bool)))
            first = _cut(arrays, c.one_step_frames)
            for name, value in _one_step(model, frozen, first, jnp.asarray(valid)).items():
                sums[name] = np.asarray(sums.get(name, 0) + np.asarray(value, np.float64))
            truth = self.truth(frozen, arrays)
            ceiling = _ceiling(frozen, arrays)
            for rollout, protocol in protocols.items():
                if should_stop():
                    break
                with clocks[rollout].frames(clips * c.samples, rollout.length or truth.shape[1]):
                    made = self.rollout(model, frozen, arrays, rollout, key=stream(key, rollout.name, number))
                compared = {"model": made} | _cut(ceiling, rollout.length)
                protocol.add(truth[:, : rollout.length], compared, valid=valid)
                wanted = c.pictures - drawn[rollout]
                for clip in np.flatnonzero(valid)[:wanted]:
                    draw_clip(folder, rollout, drawn[rollout], truth[clip, : rollout.length], made[clip, 0])
                    drawn[rollout] += 1
        # Each process measured its own clips. All of them come here, a stopped one too: none waits for another forever.
        sums = sum_over_processes(sums)
        protocols = {r: protocol.over_processes() for r, protocol in protocols.items()}
        if should_stop():
            return {}
        if not sums:
            raise DataError("video prediction: there is no held-out clip to evaluate on; raise eval.clips.")
        one_step = _one_step_numbers(sums)
        tables = [_one_step_table(one_step)]
        for r, protocol in protocols.items():
            table = protocol.table(f"Rollout: {r.title}")
            timing = clocks[r].milliseconds()
            tables.append({**table, "rollout": r.name, "ms_per_frame": timing})
        write_table(folder, {"tables": tables})
        numbers = dict(one_step)
        for r, protocol in protocols.items():
            # The baselines, whose names have a prefix, do not change: they stand in the table.
            numbers |= {f"{r.name}/{k}": v for k, v in protocol.scalars().items() if "/" not in k}
        return numbers

    def truth(
        self, frozen: FirstStage, batch: Mapping[str, Any]
    ) -> UInt8[np.ndarray, "clip time height width channel"]:
        """The true frames of a batch; for tokens without video, their pictures (so that the tokenizer's own loss
        does not show)."""
        if "video" in batch:
            return np.asarray(batch["video"])
        return np.asarray(_pictures(frozen, jnp.asarray(batch["tokens"])))

    def rollout(
        self,
        model: Any,
        frozen: FirstStage,
        batch: Mapping[str, Any],
        rollout: Rollout,
        *,
        key: PRNGKeyArray,
        length: int | None = None,
    ) -> UInt8[np.ndarray, "clip sample time height width channel"]:
        """Continue the first `rollout.context` frames of each clip to `length` frames (default: the rollout's own
        length, else the clip's).

        The frames that were given come back as they were. Actions are needed for every frame that is predicted.
        """
        frames: int = batch["tokens" if "tokens" in batch else "video"].shape[1]
        total: int = length or rollout.length or frames
        given = {name: batch[name] for name in ("video", "tokens") if name in batch}
        clips = _encoded(frozen, _cut(given, rollout.context))
        actions = _actions(batch, len(clips), frames)
        if rollout.actions and total > actions.shape[1]:
            raise ConfigError(
                f"A rollout of {total} frames with actions needs as many actions; the clips have "
                f"{actions.shape[1]}. Ask for at most {actions.shape[1]} frames, or actions=false."
            )
        told = actions[:, :total] if rollout.actions else None
        truth = self.truth(frozen, _cut(given, rollout.context))
        samples = []
        for sample in range(self.config.samples):
            keys = jax.random.split(jax.random.fold_in(key, sample), len(clips))
            made = _generate(
                model,
                frozen,
                clips,
                told,
                total,
                jnp.float32(self.config.temperature),
                keys,
            )
            samples.append(np.concatenate([truth, np.asarray(made)[:, rollout.context :]], axis=1))
        return np.stack(samples, axis=1)


class _Clock:
    """How long rollouts take per frame, given ones included, once they are compiled."""

    def __init__(self):
        self.seconds, self.counted, self.calls = 0.0, 0, 0

    @contextlib.contextmanager
    def frames(self, clips: int, length: int) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.calls:  # the first call compiles
            self.seconds, self.counted = (
                self.seconds + time.perf_counter() - started,
                self.counted + clips * length,
            )
        self.calls += 1

    def milliseconds(self) -> float | None:
        """Per frame of one clip; None after one call or none."""
        return 1000 * self.seconds / self.counted if self.counted else None


def draw_clip(
    folder: Path,
    rollout: Rollout,
    number: int,
    truth: UInt8[np.ndarray, "time height width channel"],
    made: UInt8[np.ndarray, "time height width channel"],
) -> None:
    """Write the strip and the video of one rollout."""
    name = f"rollout_{rollout.name}_{number}"
    write_png(folder / f"{name}.png", prediction_strip(truth, {"predicted": made}, context=rollout.context))
    write_video(folder / name, side_by_side({"truth": truth, "predicted": made}, context=rollout.context))


def _cut(arrays: Mapping[str, Any], length: int | None) -> dict[str, Any]:
    """The first `length` frames of arrays (clip, time, ...); None keeps all."""
    return {name: value[:, :length] for name, value in arrays.items()}


def _clips(frozen: FirstStage, batch: Mapping[str, Any]) -> Array:
    """What the model takes: codes, or pixels in [-1, 1]."""
    return to_float(jnp.asarray(batch["video"])) if frozen.tokenizer is None else frozen.tokens(batch)


def _actions(batch: Mapping[str, Any], clips: int, length: int) -> Int[Array, "clip time"]:
    if "actions" in batch:
        return jnp.asarray(batch["actions"])
    return jnp.zeros((clips, length), jnp.int32)


def _forward(model: Any, frozen: FirstStage, clip: Array, actions: Array | None, **options: Any) -> Any:
    if frozen.tokenizer is None:
        return model(clip, actions, **options)
    return model(clip, actions, frozen.tokenizer.codebook, **options)


def _score(model: Any, out: Any, clip: Array) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of one clip's predictions."""
    target = clip[out.frames]
    weights = out.weights / jnp.sum(out.weights)
    if jnp.issubdtype(clip.dtype, jnp.integer):
        smoothing = model.config.label_smoothing
        per_frame = losses.token_cross_entropy(out.prediction, target, smoothing=smoothing).sum((1, 2))
        per_token = losses.token_cross_entropy(out.prediction, target).mean((1, 2))
        return jnp.sum(out.weights * per_frame), {"token_ce": jnp.sum(weights * per_token)}
    per_frame = losses.pixel_loss(out.prediction, target, squared=model.config.loss_weight)
    error = jnp.square(out.prediction.astype(jnp.float32) - target).mean((1, 2, 3))
    return jnp.sum(out.weights * per_frame), {"mse": jnp.sum(weights * error)}


@eqx.filter_jit
def _encoded(frozen: FirstStage, batch: dict[str, Any]) -> Array:
    return _clips(frozen, {name: jnp.asarray(value) for name, value in batch.items()})


def _ceiling(frozen: FirstStage, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The true frames through the tokenizer: no prediction of its tokens can look better."""
    if frozen.tokenizer is None or "video" not in batch:
        return {}
    return {"true frames as tokens": np.asarray(_pictures(frozen, _encoded(frozen, dict(batch))))}


@eqx.filter_jit
def _pictures(frozen: FirstStage, tokens: Array) -> Array:
    return frozen.frames(tokens)


@eqx.filter_jit
def _generate(
    model: Any,
    frozen: FirstStage,
    context: Array,
    actions: Array | None,
    length: int,
    temperature: Array,
    keys: Key[Array, " clip"],
) -> UInt8[Array, "clip time height width channel"]:
    if frozen.tokenizer is None:
        made = batch_map(lambda clip, a: model.generate(clip, a, length), (0, None if actions is None else 0))
        return to_bytes(made(context, actions))
    codebook = frozen.tokenizer.codebook

    def one(clip, actions, key):
        return model.generate(clip, actions, codebook, length, key=key, temperature=temperature)

    tokens = batch_map(one, (0, None if actions is None else 0, 0))(context, actions, keys)
    return frozen.frames(tokens)


@eqx.filter_jit
def _one_step(
    model: Any, frozen: FirstStage, batch: dict[str, Any], valid: Array
) -> dict[str, Float[Array, "..."]]:
    """Sums over the valid clips of what a model that sees every true frame before it gets wrong."""
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    clips = _clips(frozen, batch)
    actions = _actions(batch, *clips.shape[:2])
    two_tasks = getattr(model.config, "causal_masking", False)

    def one(clip, actions):
        # Trained on two tasks, the model has met visible frames only together with unknown actions.
        terms = _score(model, _forward(model, frozen, clip, None if two_tasks else actions), clip)[1]
        if two_tasks and len(clip) > model.config.open_loop_context:
            draws = model.draw(len(clip), key=jax.random.key(0))
            draws = draws._replace(drop_actions=jnp.zeros_like(draws.drop_actions))
            late = _score(model, _forward(model, frozen, clip, actions, draws=draws), clip)[1]
            terms |= {f"open_loop_{name}": value for name, value in late.items()}
        return terms

    count = valid.astype(jnp.float32)
    sums = {name: jnp.sum(value * count) for name, value in batch_map(one)(clips, actions).items()}
    sums["clips"] = jnp.sum(count)
    if frozen.tokenizer is not None:
        codes = jnp.where(valid[:, None, None, None], clips, frozen.tokenizer.config.n_embed)
        sums["histogram"] = jnp.bincount(codes.reshape(-1), length=frozen.tokenizer.config.n_embed + 1)[:-1]
    return sums


def _one_step_numbers(sums: Mapping[str, Any]) -> dict[str, float]:
    numbers = {k: float(v / sums["clips"]) for k, v in sums.items() if k not in ("clips", "histogram")}
    if "histogram" in sums:
        share = sums["histogram"] / np.sum(sums["histogram"])
        entropy = float(-np.sum(share[share > 0] * np.log(share[share > 0])))
        numbers["unigram_entropy"] = entropy
        numbers["below_unigram"] = 1 - numbers["token_ce"] / entropy if entropy > 0 else 0.0
    return numbers


def _one_step_table(numbers: Mapping[str, float]) -> dict[str, Any]:
    if "unigram_entropy" not in numbers:
        rows = [{"name": name, "value": value} for name, value in numbers.items()]
        return {"title": "Next frame", "columns": ["value"], "rows": rows, "notes": ["Pixels in [-1, 1]."]}
    entropy = numbers["unigram_entropy"]
    labels = {"token_ce": "next frame, frames seen", "open_loop_token_ce": "later frames, actions only"}
    rows = [
        {"name": label, "nats per token": numbers[name], "below unigram": f"{1 - numbers[name] / entropy:.1%}"}
        for name, label in labels.items()
        if name in numbers
    ]
    rows.append({"name": "unigram entropy of the codes", "nats per token": entropy, "below unigram": "0.0%"})
    return {
        "title": "Cross-entropy of held-out tokens",
        "columns": ["nats per token", "below unigram"],
        "better": {"nats per token": "lower", "below unigram": "higher"},
        "rows": rows,
        "notes": [
            "The unigram entropy is what a model scores that knows how often each code occurs, and no more."
        ],
    }
