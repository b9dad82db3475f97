"""Suite `conv_transpose`: transposed convolutions of stride 2, the decoders' layers, against `jax.lax.conv_transpose`.

The layers of a spatial broadcast decoder: 5 x 5 taps, 64 to 64 channels, "SAME", on a batch of images x slots. The
baseline is what Flax's `ConvTranspose` calls; it multiplies the zeros between the pixels as well.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from experiments.benchmarks import timing
from experiments.schema import BenchmarkSettings
from slotzoo.nn.conv import conv_transpose2d


# (images x slots, side of what enters). The published batch of Slot Attention is 64 images of 7 slots.
SIZES = {"tiny": [(84, 16), (56, 32)], "paper": [(448, 16), (448, 32), (448, 64)]}
CHANNELS, TAPS = 64, 5
COLUMNS = ["batch", "side", "implementation", "forward_ms", "both_ms", "faster_forward", "faster", "temp_mb"]

Array = jax.Array


def ours(x: Array, kernel: Array) -> Array:
    return conv_transpose2d(x, kernel, stride=2)


def published(x: Array, kernel: Array) -> Array:
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def inputs(batch: int, side: int) -> tuple[Array, Array, Array]:
    """Images, a kernel, and the cotangent of the result."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, side, side, CHANNELS))
    kernel = jax.random.normal(keys[1], (TAPS, TAPS, CHANNELS, CHANNELS)) / (TAPS * CHANNELS**0.5)
    return x, kernel, jax.random.normal(keys[2], (batch, 2 * side, 2 * side, CHANNELS))


def with_gradients(forward: Callable[[Array, Array], Array]) -> Callable[..., Any]:
    """The result, and the cotangents of the images and of the kernel."""

    def both(x: Array, kernel: Array, gy: Array) -> Any:
        y, pullback = jax.vjp(forward, x, kernel)
        return y, pullback(gy)

    return both


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each size and implementation."""
    rows = []
    for batch, side in SIZES[config.scale]:
        x, kernel, gy = inputs(batch, side)
        work: dict[str, timing.Program] = {}
        for name, forward in {"published": published, "ours": ours}.items():
            work |= {f"{name} forward": (forward, (x, kernel))}
            work |= {f"{name} both": (with_gradients(forward), (x, kernel, gy))}
        results = timing.measure(work, config.repeats)
        for name in ("published", "ours"):
            row = {"batch": batch, "side": side, "channels": CHANNELS, "taps": TAPS, "implementation": name}
            rows.append(row | timing.both_ways(results, name, over="published"))
    return rows, COLUMNS
