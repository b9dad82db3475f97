"""Suite `slotssm_step`: training steps of SlotSSM beside PyTorch's, and what a stream pays for a frame.

`train step` is loss, gradient, clipping and Adam on two clips of 16 frames of 64 pixels: an encoder and a decoder of
four layers of 256 channels, four blocks of six slots. Where torch can be imported, `torch_s` is the same network in
its eager mode, the two taking turns, and `over_torch` how many times faster ours is (the median over the rounds).

`stream` takes the mixers (12 sequences), the blocks with their tokens, and the model without its decoder, each on one
clip. `share` is the time of a frame over a sixteenth of that of 16 frames at once: `frame` in one call for each frame,
`scan` in one `lax.scan` over them. A call is `jax.jit` of a function of frame and state alone, with the model
enclosed and the state donated: nothing but these two is looked through at each call, and the state stays where it is.

What a share compares is not the same work in other order. A frame by itself reads all weights, of the four blocks with
Mamba-2 17 MB for 0.15 GFLOP, and reads and writes 6 MB of states; 16 frames at once read the weights once between
them, in products of sixteen times as many rows, and as one chunk of the scan they make no state before the last one.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import image_torch, slotssm_torch, timing
from experiments.schema import BenchmarkSettings
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig
from slotzoo.ops import batch_map


COLUMNS = ["what", "mixer", "part", "median_s", "best_s", "torch_s", "over_torch", "parallel_ms", "frame_ms"]
COLUMNS += ["scan_ms", "frame_share", "scan_share"]
MIXERS: dict[str, dict[str, Any]] = {
    "mamba2": {"mixer": "mamba2", "ssm_state": 128},
    "mamba1": {"mixer": "mamba1", "ssm_state": 16},
}
PARTS = ("mixer", "blocks", "model")
BATCH, FRAMES, SEQUENCES = 2, 16, 12
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"resolution": 64, "out_resolution": 64, "encoder_layers": 4},
    "paper": {},
}

Call = Callable[[], Any]


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """Two rows of training and six of streams. `scale=paper` is the released CLEVRER job, without torch."""
    sizes = SIZES[config.scale]
    settings = {name: SlotSSMConfig(**{**sizes, **options}) for name, options in MIXERS.items()}
    rows = [
        train_row(name, c, config.repeats, beside=config.scale == "tiny" and image_torch.installed())
        for name, c in settings.items()
    ]
    rows += [stream_row(name, part, c, config.repeats) for name, c in settings.items() for part in PARTS]
    return rows, COLUMNS


def built(config: SlotSSMConfig) -> SlotSSM:
    """A model with its first parameters."""
    return eqx.filter_jit(lambda: SlotSSM(config, key=jax.random.key(0)))()


def train_step(config: SlotSSMConfig) -> Call:
    """An update of parameters that are kept, on clips that do not change."""
    params, static = eqx.partition(built(config), eqx.is_inexact_array)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-4))
    side = config.resolution
    clips = jax.random.uniform(jax.random.key(1), (BATCH, FRAMES, side, side, config.in_channels))

    def update(params: Any, state: Any, clips: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            model = eqx.combine(params, static)
            return batch_map(lambda clip: model.loss({"video": clip})[0])(clips).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    return carried(jax.jit(update, donate_argnums=(0, 1)), (params, optimizer.init(params)), clips)


def train_row(name: str, config: SlotSSMConfig, repeats: int, *, beside: bool) -> dict[str, Any]:
    """Ours, and torch's `beside` it."""
    calls = {"ours": train_step(config)}
    if beside:
        calls["torch"] = slotssm_torch.step(config, BATCH, FRAMES)
    found = in_turns(calls, repeats)
    row = {"what": "train step", "mixer": name, "part": "model", "batch": BATCH, "frames": FRAMES}
    row |= {"median_s": statistics.median(found["ours"]), "best_s": min(found["ours"])}
    if beside:
        row |= {
            "torch_s": statistics.median(found["torch"]),
            "over_torch": timing.ratio(found["torch"], found["ours"]),
        }
    return row


def streamed(part: str, config: SlotSSMConfig) -> tuple[Any, Any, jax.Array, Any]:
    """The pass over all frames and the step of a part of the model, the frames that go in, and the first state."""
    model = built(dataclasses.replace(config, decoder="none"))
    draw = lambda *shape: jax.random.uniform(jax.random.key(1), (FRAMES, *shape))
    if part == "mixer":
        mixer = model.stack.blocks[0].mixer
        return mixer, mixer.step, draw(SEQUENCES, config.dim), mixer.init_state(SEQUENCES)
    if part == "blocks":
        whole = lambda tokens: model.stack(tokens)[::2]
        tokens = (config.resolution // config.encoder_patch) ** 2
        step = lambda tokens, state: model.stack.step(tokens, state)[::2]
        return whole, step, draw(tokens, config.token_dim), model.stack.init_state()
    whole = lambda clip: model(clip)[::3]
    return whole, model.step, draw(config.resolution, config.resolution, config.in_channels), model.init_state()


def stream_row(name: str, part: str, config: SlotSSMConfig, repeats: int) -> dict[str, Any]:
    """One part of the model, all frames at once against one after the other."""
    whole, step, frames, state = streamed(part, config)
    at_once = jax.jit(lambda frames: whole(frames))
    scan = jax.jit(lambda frames, state: jax.lax.scan(lambda s, x: step(x, s)[::-1], state, frames))
    single = jax.jit(lambda frame, state: step(frame, state)[::-1], donate_argnums=1)
    calls: dict[str, Call] = {
        "parallel": lambda: jax.block_until_ready(at_once(frames)),
        "frame": carried(lambda state, frame: single(frame, state), (state,), frames[0] + 0, calls=FRAMES),
        "scan": lambda: jax.block_until_ready(scan(frames, state)),
    }
    found = in_turns(calls, repeats)
    row: dict[str, Any] = {"what": "stream", "mixer": name, "part": part, "frames": FRAMES}
    for what, times in found.items():
        row[f"{what}_ms"] = statistics.median(times) / (1 if what == "parallel" else FRAMES) * 1e3
    for what in ("frame", "scan"):
        row[f"{what}_share"] = timing.ratio(found[what], found["parallel"])
    return row


def carried(function: Callable[..., Any], state: tuple[Any, ...], *args: Any, calls: int = 1) -> Call:
    """`calls` calls in a row of what takes a state it may overwrite, and returns the next state before its results."""
    kept = [jax.tree.map(jnp.copy, state)]

    def call() -> None:
        for _ in range(calls):
            out = function(*kept[0], *args)
            kept[0] = tuple(out[: len(state)])
            jax.block_until_ready(out)

    return call


def in_turns(calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one round that is not counted."""

    def seconds(call: Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    found = timing.in_turns(
        {name: functools.partial(seconds, call) for name, call in calls.items()}, repeats + 1
    )
    return {name: series[1:] for name, series in found.items()}
