"""Suite `selective_scan`: every implementation against the usual formulation, and single steps against the whole.

The baseline is how Mamba's scan is written in JAX without a kernel: exp(delta A) and delta B u for all steps,
`jax.lax.associative_scan` over these under plain differentiation, then the sum with C. Its memory is many times
time x channel x state.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks import timing
from experiments.schema import BenchmarkSettings
from slotzoo.ops import selective_scan, selective_step


# (batch, time, channels, states). The published SlotSSM has 6 slots of each of 8 clips, 512 channels; here of 2.
SIZES = {
    "tiny": [(12, 16, 512, 16)] + [(2, time, 512, 16) for time in (256, 1024, 4096)],
    "paper": [(48, 16, 512, 16), (48, 16, 512, 128), (8, 256, 512, 16), (8, 1024, 512, 16), (8, 4096, 512, 16)],
}
COLUMNS = [
    "batch",
    "time",
    "states",
    "implementation",
    "forward_ms",
    "both_ms",
    "faster",
    "compile_s",
    "temp_mb",
    "peak_mb",
    "less_memory",
    "step_ms",
    "step_share",
    "scan_share",
]

Array = jax.Array
AXES = (0, 0, None, 0, 0)


def published(u: Array, delta: Array, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """One example: pairs (exp(delta A), delta B u) of the size time x channel x state, combined over time."""
    decay = jnp.exp(delta[..., None] * a[None])
    entered = (delta * u)[..., None] * b[:, None]

    def combine(first: Any, second: Any) -> Any:
        (a1, h1), (a2, h2) = first, second
        return a2 * a1, a2 * h1 + h2

    _, h = lax.associative_scan(combine, (decay, entered))
    return (h * c[:, None]).sum(-1), h[-1]


def ours(implementation: Any) -> Callable[..., Any]:
    return functools.partial(selective_scan, implementation=implementation)


def inputs(batch: int, time: int, channels: int, states: int) -> tuple[tuple[Array, ...], Array]:
    """The arguments with the initialisation of Mamba (steps of 0.001 to 0.1, rates of 1 to N), and gy."""
    keys = jax.random.split(jax.random.key(0), 5)
    moving = (batch, time, channels)
    delta = jnp.exp(jax.random.uniform(keys[0], moving, minval=jnp.log(1e-3), maxval=jnp.log(1e-1)))
    a = -jnp.tile(jnp.arange(1.0, states + 1)[None], (channels, 1))
    b, c = (jax.random.normal(k, (batch, time, states)) for k in keys[1:3])
    return (jax.random.normal(keys[3], moving), delta, a, b, c), jax.random.normal(keys[4], moving)


def programs(scan: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward pass, and forward + backward: y and the cotangents of all arguments."""
    mapped = jax.vmap(scan, in_axes=AXES)

    def forward(*args: Array) -> Any:
        return mapped(*args)[0]

    def both(gy: Array, *args: Array) -> Any:
        y, pullback = jax.vjp(forward, *args)
        return y, pullback(gy)

    return forward, both


def streamed(args: tuple[Array, ...]) -> tuple[timing.Program, timing.Program]:
    """One step with its state, and a scan of all of them; the state lies as (state, channel), as in a stream."""
    u, delta, a, b, c = args

    def one(u: Array, delta: Array, a: Array, b: Array, c: Array, state: Array) -> tuple[Array, Array]:
        y, state = selective_step(u, delta, a, b, c, state.T)
        return y, state.T

    step: Callable[..., Any] = jax.vmap(one, in_axes=(*AXES, 0))

    def scan(u: Array, delta: Array, a: Array, b: Array, c: Array, state: Array) -> Any:
        advance = lambda state, x: step(x[0], x[1], a, x[2], x[3], state)[::-1]
        return lax.scan(advance, state, tuple(jnp.swapaxes(x, 0, 1) for x in (u, delta, b, c)))

    state = jnp.zeros((u.shape[0], *a.T.shape))
    return (step, (u[:, 0], delta[:, 0], a, b[:, 0], c[:, 0], state)), (scan, (*args, state))


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each size and implementation; `step_share` is a step's time over its share of the whole pass, in
    a call of its own (which a small one mostly consists of), `scan_share` that of steps in one `lax.scan`.
    """
    rows = []
    for batch, time, channels, states in SIZES[config.scale]:
        args, gy = inputs(batch, time, channels, states)
        # What keeps the states of all steps is slow enough at length 256 to say so.
        names = ("chunked", "auto") if time > 256 else ("reference", "associative", "chunked", "auto")
        scans = {"published": published} | {name: ours(name) for name in names}
        step, scanned = streamed(args)
        work: dict[str, timing.Program] = {"step": step, "steps": scanned}
        for name, scan in scans.items():
            forward, both = programs(scan)
            work |= {f"{name} forward": (forward, args), f"{name} both": (both, (gy, *args))}
        results = timing.measure(work, config.repeats)
        baseline = results["published both"]
        for name in scans:
            both = results[f"{name} both"]
            rows.append(
                {
                    "batch": batch,
                    "time": time,
                    "channels": channels,
                    "states": states,
                    "implementation": name,
                    **timing.both_ways(results, name, over="published"),
                    "less_memory": baseline.peak_bytes / both.peak_bytes,
                    "step_ms": results["step"].median_s * 1e3,
                    "step_share": time / timing.speedup(results, "step", over=f"{name} forward"),
                    "scan_share": 1 / timing.speedup(results, "steps", over=f"{name} forward"),
                }
            )
            print(timing.table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    return rows, COLUMNS
