"""Suite `linear_scan`: every implementation against the published formulation, forward and forward + backward.

The baseline is how the authors compute it: `jax.lax.associative_scan` on complex64 under plain differentiation.
The work is one layer's scan of ConvS5: `time` steps of a 16x16 grid of complex channels with a constant decay.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks import timing
from experiments.schema import BenchmarkSettings
from slotzoo.ops import linear_scan


GRID = (16, 16)
# (batch or None, time, complex channels). The published model has 256 channels, 300 frames, 2 clips a device.
SIZES = {
    "tiny": [(None, time, 16) for time in (16, 64, 128, 300, 512, 1024)] + [(2, 300, 16)],
    "paper": [(2, 300, 256), (16, 300, 256)],
}
COLUMNS = [
    "batch",
    "time",
    "implementation",
    "forward_ms",
    "both_ms",
    "faster",
    "compile_s",
    "temp_mb",
    "roofline",
]

Array = jax.Array
Scan = Callable[[Array, Array], Array]


def published(a: Array, u: Array) -> Array:
    """Pairs (a, u) of complex numbers, combined by `associative_scan`; `a` broadcast over time, as published.

    Takes and gives complex numbers: the authors have them throughout.
    """
    decays = jnp.broadcast_to(a[None, None, None], (len(u), 1, 1, len(a)))

    def combine(first: Any, second: Any) -> Any:
        (a1, x1), (a2, x2) = first, second
        return a2 * a1, a2 * x1 + x2

    return lax.associative_scan(combine, (decays, u))[1]


def as_complex(planes: Array) -> Array:
    """The halves [re | im] of the last axis as complex numbers."""
    re, im = jnp.split(planes, 2, axis=-1)
    return lax.complex(re, im)


def ours(implementation: Any) -> Scan:
    return functools.partial(linear_scan, planes="complex", implementation=implementation)


def inputs(batch: int | None, time: int, channels: int) -> tuple[Array, Array, Array]:
    """(a, u, cotangent of x): decays of 0.5 to 0.999 and any phase."""
    keys = jax.random.split(jax.random.key(0), 4)
    size = jax.random.uniform(keys[0], (channels,), minval=0.5, maxval=0.999)
    phase = jax.random.uniform(keys[1], (channels,), maxval=2 * jnp.pi)
    lead = () if batch is None else (batch,)
    shape = (*lead, time, *GRID, 2 * channels)
    a = jnp.concatenate([size * jnp.cos(phase), size * jnp.sin(phase)])
    return a, jax.random.normal(keys[2], shape), jax.random.normal(keys[3], shape)


def programs(scan: Scan, batch: int | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward pass, and forward + backward: the states and the cotangents of (a, u)."""
    forward = scan if batch is None else jax.vmap(scan, in_axes=(None, 0))

    def both(a: Array, u: Array, gy: Array) -> Any:
        x, pullback = jax.vjp(forward, a, u)
        return x, pullback(gy)

    return forward, both


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each size and implementation."""
    bandwidth = timing.copy_bandwidth()
    scans = {"published": published} | {name: ours(name) for name in ("reference", "associative", "auto")}
    rows = []
    for batch, time, channels in SIZES[config.scale]:
        a, u, gy = inputs(batch, time, channels)
        work: dict[str, timing.Program] = {}
        for name, scan in scans.items():
            forward, both = programs(scan, batch)
            args = tuple(map(as_complex, (a, u, gy))) if scan is published else (a, u, gy)
            work |= {f"{name} forward": (forward, args[:2]), f"{name} both": (both, args)}
        results = timing.measure(work, config.repeats)
        for name in scans:
            forward, both = results[f"{name} forward"], results[f"{name} both"]
            rows.append(
                {
                    "batch": batch or 1,
                    "time": time,
                    "rows": GRID[0] * GRID[1],
                    "channels": channels,
                    "implementation": name,
                    **timing.both_ways(results, name, over="published"),
                    # The share of copy speed: 2 arrays move forward, 3 more backward (x, gy in; du out). It is
                    # above 1 where the arrays stay in a cache.
                    "roofline_forward": 2 * u.nbytes / bandwidth / forward.median_s,
                    "roofline": 5 * u.nbytes / bandwidth / both.median_s,
                }
            )
            print(timing.table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    return rows, COLUMNS
