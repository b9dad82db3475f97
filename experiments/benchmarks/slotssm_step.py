"""Suite `slotssm_step`: training steps of SlotSSM beside PyTorch's, and what a stream pays for a frame.

`train step` is loss, gradient, clipping and Adam on two clips of 16 frames of 64 pixels: an encoder and a decoder of
four layers of 256 channels, four blocks of six slots. Where torch can be imported, `torch_s` is the same network in
its eager mode, the two taking turns, and `over_torch` how many times faster ours is (the median over the rounds).

Its 95 GFLOP are 0.20 s on both cores of the machine of the results, where a core's products reach 245 GFLOP/s. The
rest is passes over activations and the first touch of scratch memory, which XLA asks of the system anew for each step:
0.19 s of a core for 451 MB. What `ops/order.py` does leaves 356 MB; at that rate it was to save 0.04 s of a core, and
did (interleaved: 0.742 s in place of 0.779 s, 0.417 s of time in place of 0.435 s). One product for query, key and
value was to help too, and did not: 402 MB, 0.750 s of a core.

`stream` takes the mixers, the blocks with their tokens, and the model without its decoder, for two streams that are
served together and for eight. `share` is the time of a frame over a sixteenth of that of 16 frames at once: `frame` in
one call for each frame, `scan` in one `lax.scan` over them. A call is `jax.jit` of a function of frame and state alone,
with the model enclosed and the state donated: nothing but these two is looked through at each call, and the state
stays where it is.

What a share compares is not the same work in other order. A frame by itself reads all weights, with Mamba-2 2 MB in a
mixer, 17 MB in the blocks and 30 MB in the model, and of each stream reads and writes 6.5 MB of states (1.6 MB in a
mixer); 16 frames at once read the weights once between them, in products of sixteen times as many rows, and as one
chunk of the scan they make no state before the last one. At the 112 GB/s with which both cores read 30 MB, a frame of
two streams takes 0.08 ms in the mixer, 0.4 ms in the blocks and 0.5 ms in the model at the least: these bytes do not
forbid twice the share. What is left are products of few rows, one after the other, most of them on one core (two at
once read 49 GB/s of weights at best), and for a mixer the call itself, 0.1 ms. Eight streams share both.

In the record the train step is 1.53 times as fast as PyTorch's with Mamba-2, 1.57 times with Mamba-1 (an earlier,
busier run: 1.50 and 1.45). The model pays 1.6 to 1.7 times a frame's share for two streams and 1.0 to 1.2 times for
eight; mixers and blocks up to 2.1 times in a call for each frame, up to 1.9 times in a scan.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import image_torch, slotssm_torch, timing
from experiments.schema import BenchmarkSettings
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig
from slotzoo.ops import batch_map


COLUMNS = [
    "what",
    "mixer",
    "part",
    "streams",
    "median_s",
    "best_s",
    "torch_s",
    "over_torch",
    "parallel_ms",
    "frame_ms",
]
COLUMNS += ["scan_ms", "frame_share", "scan_share"]
MIXERS: dict[str, dict[str, Any]] = {
    "mamba2": {"mixer": "mamba2", "ssm_state": 128},
    "mamba1": {"mixer": "mamba1", "ssm_state": 16},
}
PARTS = ("mixer", "blocks", "model")
BATCH, FRAMES = 2, 16
STREAMS = (2, 8)
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"resolution": 64, "out_resolution": 64, "encoder_layers": 4},
    "paper": {},
}

Call = Callable[[], Any]


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """Two rows of training and twelve of streams. `scale=paper` is the released CLEVRER job, without torch."""
    sizes = SIZES[config.scale]
    settings = {name: SlotSSMConfig(**{**sizes, **options}) for name, options in MIXERS.items()}
    rows = [
        train_row(name, c, config.repeats, beside=config.scale == "tiny" and image_torch.installed())
        for name, c in settings.items()
    ]
    rows += [
        stream_row(name, part, streams, c, config.repeats)
        for name, c in settings.items()
        for part in PARTS
        for streams in STREAMS
    ]
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


class Streamed(NamedTuple):
    """A part of the model over whole clips and frame by frame, what goes in, and the first state."""

    whole: Callable[..., Any]
    step: Callable[..., Any]
    clips: jax.Array
    frames: jax.Array
    state: Any


def streamed(part: str, config: SlotSSMConfig, streams: int) -> Streamed:
    """`streams` of them at once: in the mixer, which knows no streams, as so many more slots."""
    model = built(dataclasses.replace(config, decoder="none"))
    draw = lambda *shape: jax.random.uniform(jax.random.key(1), (FRAMES, *shape))
    if part == "mixer":
        mixer, slots = model.stack.blocks[0].mixer, streams * config.num_slots
        frames = draw(slots, config.dim)
        return Streamed(mixer, mixer.step, frames, frames, mixer.init_state(slots))
    if part == "blocks":
        whole = lambda tokens: model.stack(tokens)[::2]
        step = lambda tokens, state: model.stack.step(tokens, state)[::2]
        frames = draw(streams, (config.resolution // config.encoder_patch) ** 2, config.token_dim)
        state = model.stack.init_state()
    else:
        whole, step = lambda clip: model(clip)[::3], model.step
        frames = draw(streams, config.resolution, config.resolution, config.in_channels)
        state = model.init_state()
    state = jax.tree.map(lambda x: jnp.stack([x] * streams), state)
    return Streamed(jax.vmap(whole), jax.vmap(step), jnp.swapaxes(frames, 0, 1), frames, state)


def stream_row(name: str, part: str, streams: int, config: SlotSSMConfig, repeats: int) -> dict[str, Any]:
    """One part of the model, all frames at once against one after the other."""
    whole, step, clips, frames, state = streamed(part, config, streams)
    at_once = jax.jit(lambda clips: whole(clips))
    scan = jax.jit(lambda frames, state: jax.lax.scan(lambda s, x: step(x, s)[::-1], state, frames))
    single = jax.jit(lambda frame, state: step(frame, state)[::-1], donate_argnums=1)
    calls: dict[str, Call] = {
        "parallel": lambda: jax.block_until_ready(at_once(clips)),
        "frame": carried(lambda state, frame: single(frame, state), (state,), frames[0] + 0, calls=FRAMES),
        "scan": lambda: jax.block_until_ready(scan(frames, state)),
    }
    found = in_turns(calls, repeats)
    row: dict[str, Any] = {"what": "stream", "mixer": name, "part": part, "streams": streams, "frames": FRAMES}
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
