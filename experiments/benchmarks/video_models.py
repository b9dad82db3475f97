"""Suite `video_models`: training steps and rollouts of the temporal cores, against the length of the clip.

    train step              loss, gradient and AdamW on one clip, for every core and length
    rollout                 ours: `generate`, one program. published: the same parameters as the authors sample
                            with them: one dispatch per frame, kernels computed anew for every frame; a
                            Transformer runs over all frames that there is room for, again for every frame.
                            Each of these frames costs the same, so only the first `PUBLISHED_FRAMES` are run

`temp_bytes` of the rollouts say whether memory grows with the length: it is what XLA needs beside the parameters
and the frames that come out. Times are seconds for the frames that were run, `frame_ms` is for one of them, and
`speedup` and `convs5_is_faster_by` compare frames. All cores have the same encoder and decoder, and a similar
number of parameters at the small scale.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import timing
from slotzoo.losses import pixel_loss
from slotzoo.models.convs5 import ConvS5PixelsConfig
from slotzoo.models.temporal import RecurrentTemporal, TransformerTemporal
from slotzoo.models.video import VideoPixels
from slotzoo.models.video_baselines import (
    ConvLSTMPixelsConfig,
    PerformerPixelsConfig,
    S5PixelsConfig,
    TransformerPixelsConfig,
)
from slotzoo.models.video_config import PixelsConfig


Array = jax.Array
# What the cores share, by scale; then the lengths to measure at. The published evaluation ends at 1,300 frames.
SHARED: dict[str, dict[str, Any]] = {
    "tiny": dict(
        height=32,
        width=32,
        encoder_depths=(16, 32),
        decoder_depths=(16, 32),
        norm_groups=16,
        layers=2,
        scan_layers=False,
    ),
    "paper": dict(layers=8, remat=True),
}
LENGTHS = {"tiny": (64, 300, 1024), "paper": (64, 300, 600, 1024)}
ROLLOUTS = {"tiny": (64, 256, 1024), "paper": (64, 256, 1024)}
PUBLISHED_FRAMES = 16


def models(scale: str) -> dict[str, PixelsConfig]:
    """The configurations of all cores."""
    paper = scale == "paper"
    shared, width = SHARED[scale], 256 if paper else 32
    squares: dict[str, Any] = dict(patch=16, feature_dim=8, d_model=32)
    attention: dict[str, Any] = dict(heads=4, mlp_dim=64)
    if paper:
        squares, attention = dict(patch=16, feature_dim=256, d_model=1024), dict(heads=16, mlp_dim=4096)
    return {
        "convs5": ConvS5PixelsConfig(**shared, d_model=width, ssm_size=width, clip_eigenvalues=True),
        "convlstm": ConvLSTMPixelsConfig(**shared, d_model=width),
        "s5": S5PixelsConfig(**shared, **squares, ssm_size=width),
        "transformer": TransformerPixelsConfig(**shared, **squares, **attention),
        "performer": PerformerPixelsConfig(**shared, **squares, **attention, favor_features=width),
    }


def run(config: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the suite: training steps, then rollouts."""
    configs = models(config.scale)
    built = {name: VideoPixels(options, key=jax.random.key(0)) for name, options in configs.items()}
    rows = []
    for length in LENGTHS[config.scale]:
        results = timing.measure({n: train_step(m, length) for n, m in built.items()}, config.repeats)
        for name, result in results.items():
            over = timing.speedup(results, name, over="convlstm")
            rows.append(_row("train step", name, length, result, over_convlstm=over))
    for length in ROLLOUTS[config.scale]:
        ours = {name: rollout(model, length) for name, model in built.items()}
        theirs = {f"{name}, published": published(model, length) for name, model in built.items()}
        results = timing.measure(ours | theirs, config.repeats)
        share = PUBLISHED_FRAMES / length
        for name in built:
            other = f"{name}, published"
            gain = timing.speedup(results, name, over=other) / share
            against = timing.speedup(results, "convs5", over=name)
            rows.append(_row("rollout", name, length, results[name], speedup=gain, convs5_is_faster_by=against))
            against = timing.speedup(results, "convs5", over=other) / share
            rows.append(_row("rollout", other, length, results[other], convs5_is_faster_by=against))
    columns = ["what", "core", "frames", "median_s", "frame_ms", "temp_bytes", "speedup", "over_convlstm"]
    return rows, [*columns, "convs5_is_faster_by"]


def _row(what: str, core: str, length: int, result: timing.Result, **extra: float) -> dict[str, Any]:
    run = PUBLISHED_FRAMES if core.endswith("published") else length
    frame = {"frame_ms": 1e3 * result.median_s / run} if what == "rollout" else {}
    return {"what": what, "core": core, "frames": length, **result.as_dict(), **frame, **extra}


def clip(model: VideoPixels, length: int) -> Array:
    """Noise of the right shape."""
    c = model.config
    return jax.random.uniform(jax.random.key(1), (length, c.height, c.width, c.channels), minval=-1.0)


def train_step(model: VideoPixels, length: int) -> timing.Program:
    """One update on one clip of `length` frames."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.adamw(1e-3, b2=0.95, weight_decay=1e-5)

    def loss(parameters: Any, video: Array) -> Array:
        out = eqx.combine(parameters, static)(video)
        return jnp.sum(out.weights * pixel_loss(out.prediction, video[out.frames], squared=0.5))

    def step(parameters: Any, opt_state: Any, video: Array):
        value, grads = jax.value_and_grad(loss)(parameters, video)
        updates, opt_state = optimizer.update(grads, opt_state, parameters)
        return optax.apply_updates(parameters, updates), opt_state, value

    return step, (parameters, optimizer.init(parameters), clip(model, length))


def rollout(model: VideoPixels, length: int) -> timing.Program:
    """`length` frames after one, in one program."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    def generate(parameters: Any, video: Array) -> Array:
        return eqx.combine(parameters, static).generate(video, None, length + 1)

    return generate, (parameters, clip(model, 1))


def published(model: VideoPixels, length: int) -> timing.Program:
    """`PUBLISHED_FRAMES` of the same rollout, one dispatch per frame, of what the authors compute for a frame."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    first, core = clip(model, 1)[0], model.core.temporal
    if isinstance(core, RecurrentTemporal):

        def step(parameters: Any, frame: Array, memory: Any, now: Array):
            # Kernels are computed here, anew for every frame; encoder and decoder run as in a call.
            model = eqx.combine(parameters, static)
            encoded = model.core.encoder(frame)
            action = jnp.full((), -1)
            out = model.core.temporal.step(encoded, action, jnp.zeros((), bool), memory)
            return jnp.tanh(model.core.decoder(out.features)), out.state

        return HostLoop(step), (parameters, first, core.init_state(), jnp.int32(0))

    def rerun(parameters: Any, frame: Array, memory: Array, now: Array):
        # `memory` holds the encoded frames of the whole rollout, of which those up to `now` are there.
        model = eqx.combine(parameters, static)
        memory = memory.at[now].set(model.core.encoder(frame))
        unknown, visible = jnp.full(length, -1), jnp.zeros(length, bool)
        features = model.core.temporal(memory, unknown, visible).features[now]
        return jnp.tanh(model.core.decoder(features)), memory

    assert isinstance(core, TransformerTemporal)
    memory = jnp.zeros((length, *model.config.latent_size, model.config.encoder_depths[-1]))
    return HostLoop(rerun), (parameters, first, memory, jnp.int32(0))


@dataclasses.dataclass
class HostLoop:
    """A step compiled once and called from Python for every frame, as the published samplers do."""

    step: Any

    def lower(self, *args: Any) -> "HostLoop":
        return HostLoop(jax.jit(self.step).lower(*args))

    def compile(self) -> "HostLoop":
        return HostLoop(self.step.compile())

    def memory_analysis(self) -> Any:
        return self.step.memory_analysis()

    def __call__(self, parameters: Any, frame: Array, memory: Any, now: Array) -> Array:
        frames = []
        for _ in range(PUBLISHED_FRAMES):
            frame, memory = self.step(parameters, frame, memory, now)
            frames.append(frame)
            now = now + 1
        return jnp.stack(frames)
