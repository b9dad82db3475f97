"""Suite `selective_scan_compiled`: what the selective scan's compiled H200 program moves, on a machine without a GPU.

A unit is the bytes of `u`, in float32. Forward, the kernel has to move three: u and the step lengths in, y out. With
its gradient it has to keep the states at the start of chunks and read them again, to read u, the step lengths and
the cotangent of y, and to write two cotangents. The loss of this suite, sum(y^2), moves one or two more. Needs the
CUDA plugin, see `h200`.
"""

import functools
import json
import sys
from typing import Any

from experiments.benchmarks import h200
from experiments.schema import BenchmarkSettings


COLUMNS = [
    "batch",
    "time",
    "states",
    "devices",
    "implementation",
    "program",
    "gb",
    "units",
    "kernels",
    "mosaic",
    "all_gathers",
    "temp_units",
]
CHANNELS = 512


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each program. Raises `ConfigError` without the CUDA plugin."""
    return rows(full=True), COLUMNS


def rows(*, full: bool) -> list[dict[str, Any]]:
    """`full` adds 128 states, and the associative form, ours and as it is usually written."""
    return h200.rows_of("experiments.benchmarks.selective_scan_compiled", *(["full"] if full else []))


def _compile(
    batch: int, time: int, states: int, name: str, scan: Any, program: str, devices: int
) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P

    from slotzoo.ops import batch_map

    mesh = h200.mesh(devices)
    like = lambda shape, spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    moving = like((batch, time, CHANNELS), P("data"))
    matrix = like((batch, time, states), P("data"))
    args = (moving, moving, like((CHANNELS, states), P()), matrix, matrix)
    mapped = batch_map(scan, in_axes=(0, 0, None, 0, 0))

    def forward(*args: Any) -> Any:
        return mapped(*args)[0]

    def loss(*args: Any) -> Any:
        return jnp.square(forward(*args)).sum()

    chosen = forward if program == "forward" else jax.grad(loss, argnums=tuple(range(5)))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = h200.facts(jax.jit(chosen).lower(*args).compile())
    unit = moving.size * moving.dtype.itemsize // devices
    return {
        "batch": batch,
        "time": time,
        "channels": CHANNELS,
        "states": states,
        "devices": devices,
        "implementation": name,
        "program": program,
        "gb": found["bytes"] / 1e9,
        "units": found["bytes"] / unit,
        "temp_units": found["temp_bytes"] / unit,
        **found,
    }


def main() -> None:
    """Print the rows as JSON, on one line."""
    from experiments.benchmarks.selective_scan import published
    from slotzoo.ops import selective_scan

    cases: list[tuple[int, int, int, str, Any, int]] = [
        (8, 1024, 16, "auto", selective_scan, 1),
        (48, 16, 16, "auto", selective_scan, 4),
    ]
    if "full" in sys.argv:
        cases += [(48, 16, states, "auto", selective_scan, 1) for states in (16, 128)]
        for name in ("chunked", "associative"):
            cases.append((8, 1024, 16, name, functools.partial(selective_scan, implementation=name), 1))
        cases.append((8, 1024, 16, "published", published, 1))
    found = [_compile(*case[:5], program, case[5]) for case in cases for program in ("forward", "both")]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
