"""Side-by-side timing of compiled programs, and what is written beside the numbers.

    results = measure({"ours": (fn, args), "published": (other, args)}, repeats=9)
    results["ours"].median_s, results["ours"].compile_s, results["ours"].temp_bytes
    speedup(results, "ours", over="published")

Other jobs share the machine, so a single timing means little. All programs run in one process, taking turns;
ratios are medians of the ratios *within* a round, which a slow minute of the machine does not change.
"""

import dataclasses
import itertools
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version

from slotzoo.files import write_text


Program = tuple[Callable[..., Any], Sequence[Any]]
# Seconds of a first call that are more than what loading a program takes.
LONG_S = 5.0


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one program. Seconds, bytes.

    `compile_s` is the wait before the first step: tracing, lowering and compiling.
    `temp_bytes` is what XLA allocates besides arguments and outputs; `peak_bytes` adds these (counting once
    what an output shares with a donated argument).
    """

    median_s: float
    best_s: float
    compile_s: float
    temp_bytes: int
    peak_bytes: int
    times_s: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The figures for a results file, without the single times."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "times_s"}


def measure(
    programs: Mapping[str, Program], repeats: int = 9, *, min_sample_s: float = 0.02
) -> dict[str, Result]:
    """Compile every program and time them taking turns.

    **Arguments**: `programs` maps a name to `(fn, args)`; `fn` may be jitted already, and must not donate its
    arguments, as it is called many times with the same ones. `repeats` is the number of rounds. A program
    faster than `min_sample_s` is called several times per sample.

    **Returns** the results by name, in the order of `programs`.
    """
    compiled, compile_s = {}, {}
    for name, (fn, args) in programs.items():
        jitted: Any = fn if hasattr(fn, "lower") else jax.jit(fn)
        start = time.perf_counter()
        compiled[name] = jitted.lower(*args).compile()
        compile_s[name] = time.perf_counter() - start

    calls = {}
    for name, (_, args) in programs.items():
        first = _seconds(compiled[name], args, 1)  # also loads the program
        call = first if first > LONG_S else _seconds(compiled[name], args, 1)
        calls[name] = max(1, min(1000, math.ceil(min_sample_s / max(call, 1e-7))))

    sampled = lambda name: lambda: _seconds(compiled[name], programs[name][1], calls[name])
    times = in_turns({name: sampled(name) for name in programs}, repeats)

    return {
        name: Result(
            median_s=statistics.median(times[name]),
            best_s=min(times[name]),
            compile_s=compile_s[name],
            temp_bytes=_memory(compiled[name])[0],
            peak_bytes=_memory(compiled[name])[1],
            times_s=tuple(times[name]),
        )
        for name in programs
    }


def speedup(results: Mapping[str, Result], name: str, *, over: str) -> float:
    """How many times faster `name` is than `over`: the median over rounds of the ratio within a round."""
    return ratio(results[over].times_s, results[name].times_s)


def both_ways(results: Mapping[str, Result], name: str, *, over: str) -> dict[str, float]:
    """What a row says of an operation, measured as `<name> forward` and, with its gradients, as `<name> both`.

    `faster_forward` and `faster` are the medians of the ratios to `over`'s within a round.
    """
    forward, both = results[f"{name} forward"], results[f"{name} both"]
    return {
        "forward_ms": forward.median_s * 1e3,
        "both_ms": both.median_s * 1e3,
        "faster_forward": speedup(results, f"{name} forward", over=f"{over} forward"),
        "faster": speedup(results, f"{name} both", over=f"{over} both"),
        "compile_s": both.compile_s,
        "temp_mb": both.temp_bytes / 2**20,
        "peak_mb": both.peak_bytes / 2**20,
    }


def in_turns(samples: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each sample gives in each round."""
    found: dict[str, list[float]] = {name: [] for name in samples}
    for turn in range(rounds):
        # Alternate the order, so that none always follows the same neighbour.
        for name in samples if turn % 2 == 0 else reversed(list(samples)):
            found[name].append(samples[name]())
    return found


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times longer the first takes: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def copy_bandwidth(size_bytes: int = 2**28, repeats: int = 7) -> float:
    """Bytes per second, read plus written, of a large elementwise pass: the roof of memory-bound code."""
    x = jnp.zeros((size_bytes // 4,), jnp.float32)
    best = measure({"copy": (lambda v: v + 1.0, (x,))}, repeats)["copy"].best_s
    return 2 * x.nbytes / best


def machine() -> dict[str, Any]:
    """The device, the versions and the allocator's settings that a result belongs to."""
    device, malloc = jax.devices()[0], os.environ.get("GLIBC_TUNABLES")
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "device_count": jax.device_count(),
        "host": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        **({"malloc": malloc} if malloc else {}),
    }


def device_slug() -> str:
    """The device as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", str(jax.devices()[0].device_kind).lower()).strip("-")


def write_results(folder: Path, suite: str, rows: list[dict[str, Any]], **extra: Any) -> Path:
    """Write `<folder>/<suite>_<device>.json` and return its path."""
    card = machine()
    path = folder / f"{suite}_{device_slug()}.json"
    date = time.strftime("%Y-%m-%d", time.gmtime())
    content = {"suite": suite, "date": date, "machine": card, **extra, "rows": _rounded(rows)}
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A plain-text table of some columns of the rows."""
    cells = [list(columns)] + [[_cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells)


def _seconds(compiled: Callable[..., Any], args: Sequence[Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        out = compiled(*args)
        jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


def _memory(compiled: Any) -> tuple[int, int]:
    stats = compiled.memory_analysis()
    live = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.temp_size_in_bytes, stats.temp_size_in_bytes + live


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _rounded(value: Any) -> Any:
    """Four significant digits: more would only be noise in a committed file."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
