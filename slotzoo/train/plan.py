"""What a step will need, said before the first one: memory from the compiler, time against measured peaks."""

import dataclasses
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from slotzoo.precision import Precision


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Bytes, floating-point operations and a lower bound in seconds of one step on one device."""

    arguments: int  # bytes of state, frozen arrays and batch
    temporaries: int  # bytes of activations and other scratch
    total: int  # bytes at the peak: arguments, temporaries, and outputs that are not donated inputs
    available: int | None  # bytes of the device, where it says so
    flops: float
    traffic: float  # bytes read and written
    seconds: float  # max(flops / peak flop/s, traffic / peak bytes/s)
    device: str

    def sentence(self) -> str:
        """The plan as a line of the log."""
        of = "" if self.available is None else f" of {_bytes(self.available)}"
        text = (
            f"One step needs {_bytes(self.total)}{of} on each device (state, batch {_bytes(self.arguments)}; "
            f"scratch {_bytes(self.temporaries)}) and at least {_seconds(self.seconds)} on {self.device}: "
            f"{self.flops / 1e9:.3g} GFLOP, {_bytes(self.traffic)} of traffic at the speeds measured here "
            "(a loop's body is counted once)."
        )
        if self.available is not None and self.total > self.available:
            text += " That is more than there is: take a smaller batch, train.accumulate, or train.remat=true."
        return text


def plan_step(compiled: Any, precision: Precision = "float32") -> StepPlan:
    """Read the compiler's figures of a compiled step (`jax.stages.Compiled`), measure this device's peaks."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost or {}
    flops, traffic = float(cost.get("flops", 0.0)), float(cost.get("bytes accessed", 0.0))
    device = jax.local_devices()[0]
    peak_flops, peak_bytes = measure_peaks(precision)
    arguments = int(getattr(memory, "argument_size_in_bytes", 0))
    temporaries = int(getattr(memory, "temp_size_in_bytes", 0))
    outputs = int(getattr(memory, "output_size_in_bytes", 0)) - int(getattr(memory, "alias_size_in_bytes", 0))
    return StepPlan(
        arguments=arguments,
        temporaries=temporaries,
        total=arguments + temporaries + max(outputs, 0),
        available=_available(device),
        flops=flops,
        traffic=traffic,
        seconds=max(flops / peak_flops, traffic / peak_bytes),
        device=device.device_kind,
    )


def measure_peaks(precision: Precision = "float32") -> tuple[float, float]:
    """Return (flop/s of a matrix product, bytes/s of a copy) of the first device, each within a second."""
    device = jax.local_devices()[0]
    big = device.platform != "cpu"
    n, words = (8192, 2**27) if big else (768, 2**23)
    dtype = jnp.bfloat16 if precision == "bfloat16" and big else jnp.float32
    square = jax.device_put(jnp.ones((n, n), dtype), device)
    long = jax.device_put(jnp.ones(words, jnp.float32), device)
    product = _median_seconds(jax.jit(lambda x: x @ x), square)
    copy = _median_seconds(jax.jit(lambda x: x + 1), long)
    return 2 * n**3 / product, 8 * words / copy


def _median_seconds(function: Any, argument: jax.Array) -> float:
    jax.block_until_ready(function(argument))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - start)
    return max(statistics.median(times), 1e-9)


def _available(device: Any) -> int | None:
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // max(len(jax.local_devices()), 1)
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _bytes(count: float | int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _seconds(value: float | int) -> str:
    if value < 1e-3:
        return f"{1e6 * value:.3g} us"
    return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
