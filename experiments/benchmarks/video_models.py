"""Suite `video_models`: training steps and rollouts of the temporal cores, against the length of the clip.

    train step              loss, gradient and AdamW on one clip, for every core and length
    rollout                 ours: `generate`, one program. published: the same parameters as the authors sample
                            with them (`video_models_published`), one dispatch per frame. Each of these frames costs
                            the same, so only the first `PUBLISHED_FRAMES` are run. One clip at every length, and
                            the batch of the published evaluation at the first

`temp_bytes` of the rollouts say whether memory grows with the length: it is what XLA needs beside the parameters
and the frames that come out. Times are seconds for the frames that were run, `frame_ms` is for one of them, and
`speedup` and `convs5_is_faster_by` compare frames. All cores have the same encoder and decoder, and a similar
number of parameters at the small scale.

What the record has of rollouts of 64 frames at the small size, milliseconds per frame on two cores of an AMD EPYC
(Zen 5), jaxlib 0.10.2, and what the products of the convolutions take alone at the pace of one from 32 to
32 channels at 16 x 16, which is 231 GFLOP/s for one clip and 306 for eight (on one core 192):

                 one clip                                  eight clips
                 published   ours            products      published   ours            products
    convs5            1.04   0.50    2.1x        0.31           5.9    3.0     2.0x         1.9
    convlstm          1.18   0.60    2.0x        0.47           6.8    3.9     1.8x         2.9
    s5                0.83   0.33    2.5x        0.14           3.8    1.8     2.1x         0.9
    transformer       2.2    0.33    6.7x                        19    1.9      10x
    performer         2.3    0.34    6.7x                        20    1.8      11x

So three times is out of reach for ConvS5 and ConvLSTM, whose published frames are little but the same convolutions on
one core, unless these get fewer products: with everything else for nothing it would be 3.4 and 2.5 times. S5 spends
its frame in encoder and decoder. Of 0.33 ms, 0.03 are the first convolution, from one channel; 0.03 wait for the
second core, which sleeps between the short pieces (a norm with its activation at 32 x 32 takes 16 microseconds where
it has to be woken and 5.5 where not); 0.015 read 1 MB of weights of the squares. Independent convolutions do not run
at once in a loop: two to eight chains of them, in one or as loops of their own, take as long as one after the other.
The slices that the authors take between dispatches are 0.08 ms of a frame at most; their `pmap` would add 0.06.

In the record ConvS5 trains 1.2 times as fast as our ConvLSTM at 300 frames (the paper has 3 for its own sizes on a
GPU), and generates 4.4, 17 and 144 times as fast as the published Transformer in rollouts of 64, 256 and 1024 frames
(the paper: up to 400), as that one has no cache. Ours has one: it takes two thirds to three quarters of ConvS5's time.
Two rows were disturbed: the published ConvS5 at 256 frames, 1.5 ms, where it had 1.04 at 64 and 1.08 at 1024, and our
ConvLSTM at 1024, 0.77 ms, where it had 0.60 at 64 and 256. Every row is the mean of two.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import timing
from experiments.benchmarks.video_models_published import published
from slotzoo.losses import pixel_loss
from slotzoo.models.convs5 import ConvS5PixelsConfig
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
# The batch of the published evaluation, at the first length only.
BATCH = 8
PUBLISHED_FRAMES = 16
# A Performer's published features are scaled by the largest of all tokens, those to come included, and then 1e-6 is
# added; ours of the past do not depend on the future.
TOLERANCE = {"performer": 2e-3}


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
    for name, model in built.items():
        check_agreement(model, TOLERANCE.get(name, 2e-4))
    lengths = ROLLOUTS[config.scale]
    for length, batch in [*((length, 1) for length in lengths), (lengths[0], BATCH)]:
        ours = {name: rollout(model, length, batch) for name, model in built.items()}
        theirs = {
            f"{name}, published": published(model, firsts(model, batch), length, PUBLISHED_FRAMES)
            for name, model in built.items()
        }
        results = timing.measure(ours | theirs, config.repeats)
        share = PUBLISHED_FRAMES / length
        for name in built:
            other = f"{name}, published"
            gain = timing.speedup(results, name, over=other) / share
            against = timing.speedup(results, "convs5", over=name)
            frame = {"batch": batch, "frame_ms": 1e3 * results[name].median_s / length}
            more = {"speedup": gain, "convs5_is_faster_by": against}
            rows.append(_row("rollout", name, length, results[name], **frame, **more))
            against = timing.speedup(results, "convs5", over=other) / share
            frame["frame_ms"] = 1e3 * results[other].median_s / PUBLISHED_FRAMES
            rows.append(_row("rollout", other, length, results[other], **frame, convs5_is_faster_by=against))
    columns = [
        "what",
        "core",
        "frames",
        "batch",
        "median_s",
        "frame_ms",
        "temp_bytes",
        "speedup",
        "over_convlstm",
    ]
    return rows, [*columns, "convs5_is_faster_by"]


def _row(what: str, core: str, length: int, result: timing.Result, **extra: float) -> dict[str, Any]:
    return {"what": what, "core": core, "frames": length, **result.as_dict(), **extra}


def check_agreement(model: VideoPixels, tolerance: float, frames: int = 3) -> None:
    """Both forms generate the same frames."""
    first = firsts(model, 2)
    forms = {"ours": rollout(model, frames, 2), "published": published(model, first, frames, frames)}
    found = {name: jax.block_until_ready(program(*args)) for name, (program, args) in forms.items()}
    np.testing.assert_allclose(found["ours"][:, 1:], found["published"], atol=tolerance)


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


def firsts(model: VideoPixels, batch: int) -> Array:
    """First frames, one for each rollout."""
    return clip(model, batch)


def rollout(model: VideoPixels, length: int, batch: int) -> timing.Program:
    """`length` frames after one, in one program."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    def generate(parameters: Any, first: Array) -> Array:
        model = eqx.combine(parameters, static)
        return jax.vmap(lambda frame: model.generate(frame[None], None, length + 1))(first)

    return jax.jit(generate), (parameters, firsts(model, batch))
