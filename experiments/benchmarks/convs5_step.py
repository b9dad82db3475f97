"""Suite `convs5_step`: a training step and one generated frame of ConvS5, against the published formulation.

The baseline is the same function of the same parameters, written as the authors' code computes it: complex64
convolutions and states, `jax.lax.associative_scan` under plain differentiation, one example and frame at a time
under `vmap`, and kernels that are discretised anew for every generated frame. Its agreement with ours is
checked before anything is timed.

What to expect on a CPU at the small size: of 2.1 ms for a generated frame, 1.5 ms are seventeen 3x3
convolutions between 32 channels and the first one, which XLA runs on one core (0.19 ms at 32x32, 0.05 ms at 16x16:
190 of the 240 GFLOP/s that a core reaches). Ours runs them on two, joins two of the four large ones with the
resampling beside them (4 products in place of 9) and has a cheaper ELU: 1.6 times as fast, 1.75 times in a rollout,
which has no calls between frames. Twice is not reached: at this size two cores reach 310 GFLOP/s. Measured and slower
at 32x32 and 16x16 than one core's convolution: Winograd F(2x2) 0.25, 0.10 and F(4x4) 0.35, 0.18 (the transforms alone
0.13 and more), patches and one product 0.39, 0.10, nine shifted products 0.43, 0.16, channels first 0.26, 0.06.

The last rows: passes over a whole clip at once, and frame by frame in a loop. A lone layer gains little
or nothing up to 512 frames, the network with its encoder from about 16, so the choice is made once for the whole of
it, in `VideoCore.observe`. A call stays parallel: it may be differentiated, and the gradient of the loop takes 1.1
times as long on a CPU (the last two rows).
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.benchmarks import timing
from experiments.benchmarks.convs5_published import layers_of, published_forward, published_step
from slotzoo.losses import pixel_loss
from slotzoo.models.convs5 import ConvS5Pixels, ConvS5PixelsConfig
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.precision import Precision
from slotzoo.train.step import cast_parameters


Array = jax.Array
ROLLOUT = 32

# The configuration that the seed's own timings were taken with.
TINY = ConvS5PixelsConfig(
    height=32,
    width=32,
    encoder_depths=(32, 32),
    decoder_depths=(32, 32),
    layers=2,
    d_model=32,
    ssm_size=32,
    ssm_groups=32,
    clip_eigenvalues=True,
    scan_layers=False,
)
PAPER = dataclasses.replace(
    TINY,
    height=64,
    width=64,
    encoder_depths=(64, 128, 256),
    decoder_depths=(64, 128, 256),
    layers=8,
    d_model=256,
)


def our_forward(model: ConvS5Pixels, video: Array) -> Array:
    return jax.vmap(lambda clip: model(clip).prediction)(video)


def train_step(
    forward: Any, static: Any, optimizer: optax.GradientTransformation, precision: Precision = "float32"
):
    """`(parameters, optimiser state, video) -> (parameters, optimiser state, loss)`."""

    def loss(parameters, video):
        model = eqx.combine(cast_parameters(parameters, precision), static)
        return pixel_loss(forward(model, video), video[:, 1:], squared=0.5).mean()

    def step(parameters, opt_state, video):
        value, grads = jax.value_and_grad(loss)(parameters, video)
        updates, opt_state = optimizer.update(grads, opt_state, parameters)
        return optax.apply_updates(parameters, updates), opt_state, value

    return step


def run(config: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the suite: forward, training step, generated frame; ours and published."""
    paper = config.scale == "paper"
    options, batch, length = (PAPER, 8, 300) if paper else (TINY, 2, 64)
    model = ConvS5Pixels(options, key=jax.random.key(0))
    shape = (batch, length, options.height, options.width, options.channels)
    video = jax.random.uniform(jax.random.key(1), shape, minval=-1.0, maxval=1.0)
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    check_agreement(model, video[:1, :8])

    optimizer = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000), b2=0.95, weight_decay=1e-5
    )
    opt_state = optimizer.init(parameters)
    forward = lambda fn: (lambda p, v: fn(eqx.combine(p, static), v), (parameters, video))
    step = lambda fn, precision: (
        train_step(fn, static, optimizer, precision),
        (parameters, opt_state, video),
    )
    rows = compare("forward", forward(our_forward), forward(published_forward), config.repeats)
    rows += compare(
        "train step", step(our_forward, "float32"), step(published_forward, "float32"), config.repeats
    )
    if paper:
        bfloat16 = step(our_forward, "bfloat16")
        rows += compare("train step, bfloat16", bfloat16, step(published_forward, "float32"), config.repeats)
    rows += compare("generated frame", *generated_frame(model, video[:, 0]), config.repeats)
    rows += compare(f"rollout of {ROLLOUT} frames", *rollout(model, video[:, 0]), config.repeats)
    for frames in () if paper else (64, 256):
        rows += compare_forms(f"context of {frames} frames", observed(model, batch, frames), config.repeats)
    for frames in () if paper else (64, 256, 512):
        rows += compare_forms(f"layer over {frames} frames", layer(batch, frames), config.repeats)
    if not paper:
        rows += compare_forms("layer over 64 frames, gradient", layer(batch, 64, gradient=True), 3)
    sizes = {"batch": batch, "frames": length, "size": options.height, "d_model": options.d_model}
    rows = [{**row, **sizes, "layers": options.layers} for row in rows]
    return rows, ["what", "form", "median_s", "compile_s", "temp_bytes", "peak_bytes", "speedup"]


def generated_frame(model: ConvS5Pixels, frame: Array) -> tuple[timing.Program, timing.Program]:
    """One frame of a rollout with carried states.

    Ours takes the prepared kernels, as the loop of `generate` does; the published code recomputes them.
    """
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    prepared = jax.jit(lambda p: eqx.combine(p, static).core.prepare())(parameters)
    states = jnp.broadcast_to(model.init_state(), (len(frame), *model.init_state().shape))
    action = jnp.zeros((), int)

    def ours(parameters, prepared, frame, states):
        model = eqx.combine(parameters, static)
        out = jax.vmap(lambda frame, state: model.step(frame, action, state, prepared=prepared))(frame, states)
        return out.prediction, out.state

    complex_states = [
        jnp.zeros((*states.shape[:1], *states.shape[2:4], states.shape[-1] // 2), jnp.complex64)
        for _ in layers_of(model).sequence.layers
    ]
    published = lambda p, frame, states: published_step(eqx.combine(p, static), frame, states)
    return (ours, (parameters, prepared, frame, states)), (published, (parameters, frame, complex_states))


class HostLoop:
    """A step compiled once and called from Python for every frame, as the published sampler does."""

    def __init__(self, step: Any):
        self.step: Any = jax.jit(step)

    def lower(self, *args: Any) -> "HostLoop":
        self.step = self.step.lower(*args)
        return self

    def compile(self) -> "HostLoop":
        self.step = self.step.compile()
        return self

    def memory_analysis(self) -> Any:
        return self.step.memory_analysis()

    def __call__(self, parameters: Any, frame: Array, states: list[Array]) -> list[Array]:
        frames = []
        for _ in range(ROLLOUT):
            frame, states = self.step(parameters, frame, states)
            frames.append(frame)
        return frames


def rollout(model: ConvS5Pixels, frame: Array) -> tuple[timing.Program, timing.Program]:
    """Ours is one program, `generate`; the published one a loop of steps."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    def ours(parameters, frame):
        model = eqx.combine(parameters, static)
        return jax.vmap(lambda frame: model.generate(frame[None], None, ROLLOUT + 1))(frame)

    _, (published, arguments) = generated_frame(model, frame)
    return (ours, (parameters, frame)), (HostLoop(published), arguments)


def observed(model: ConvS5Pixels, batch: int, length: int) -> dict[str, timing.Program]:
    """The state after a context, for a rollout."""
    parameters, static = eqx.partition(model.core, eqx.is_inexact_array)
    size = (model.config.height, model.config.width, model.config.channels)
    video = jax.random.uniform(jax.random.key(2), (batch, length, *size))

    def form(implementation: Any) -> timing.Program:
        def run(parameters, video):
            core = eqx.combine(parameters, static)
            rest = (jnp.zeros(length, int), core.init_state(), core.prepare())
            return jax.vmap(lambda clip: core.observe(clip, *rest, implementation=implementation))(video)

        return run, (parameters, video)

    return {"per frame": form("per_frame"), "parallel": form("parallel")}


def layer(batch: int, length: int, *, gradient: bool = False) -> dict[str, timing.Program]:
    """A layer without its output block, on 16x16 maps: over all frames, or in a loop that keeps no states."""
    ssm = ConvSSM(32, 32, head="none", clip_eigenvalues=True, key=jax.random.key(3))
    parameters, static = eqx.partition(ssm, eqx.is_inexact_array)
    us = jax.random.normal(jax.random.key(4), (batch, length, 16, 16, 32))

    def parallel(parameters, us):
        return jax.vmap(lambda u: eqx.combine(parameters, static)(u)[0])(us)

    def per_frame(parameters, us):
        ssm = eqx.combine(parameters, static)
        kernels = ssm.discretise()
        step = lambda state, u: ssm.step(u, state, prepared=kernels)[::-1]
        return jax.vmap(lambda u: lax.scan(step, ssm.init_state(16, 16), u)[1])(us)

    def form(fn: Any) -> timing.Program:
        loss = lambda parameters, us: jnp.square(fn(parameters, us)).sum()
        return (jax.grad(loss, argnums=(0, 1)) if gradient else fn), (parameters, us)

    return {"per frame": form(per_frame), "parallel": form(parallel)}


def compare(what: str, ours: timing.Program, published: timing.Program, repeats: int) -> list[dict[str, Any]]:
    return compare_forms(what, {"slotzoo": ours, "published": published}, repeats)


def compare_forms(what: str, forms: dict[str, timing.Program], repeats: int) -> list[dict[str, Any]]:
    """One row per form; `speedup` is over the last one."""
    results = timing.measure(forms, repeats)
    base = list(forms)[-1]
    return [
        {
            "what": what,
            "form": name,
            **result.as_dict(),
            "speedup": timing.speedup(results, name, over=base),
        }
        for name, result in results.items()
    ]


def check_agreement(model: ConvS5Pixels, video: Array) -> None:
    """Both forms compute the same function."""
    ours, theirs = jax.jit(our_forward)(model, video), jax.jit(published_forward)(model, video)
    np.testing.assert_allclose(ours, theirs, atol=1e-2 if jax.default_backend() == "gpu" else 2e-4)
