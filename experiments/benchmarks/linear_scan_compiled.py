"""Suite `linear_scan_compiled`: what the scan's compiled H200 program moves, on a machine without a GPU.

A unit is the bytes of `u`; forward and backward together have to move five of them, and the loss of this suite,
sum(x^2), two more. Needs the CUDA plugin, see `h200`.
"""

import json
import sys
from typing import Any

from experiments.benchmarks import h200
from experiments.schema import BenchmarkSettings


COLUMNS = [
    "batch",
    "devices",
    "dtype",
    "implementation",
    "program",
    "units",
    "kernels",
    "mosaic",
    "all_gathers",
]
COLUMNS += ["temp_units"]
SHAPE = (300, 16, 16, 512)  # of one example, in the published model


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each program. Raises `ConfigError` without the CUDA plugin."""
    return rows(full=True), COLUMNS


def rows(*, full: bool) -> list[dict[str, Any]]:
    """`full` adds the published formulation, the associative form, a batch of 16 and bfloat16."""
    return h200.rows_of("experiments.benchmarks.linear_scan_compiled", *(["full"] if full else []))


def _compile(batch: int, dtype: str, scan: Any, name: str, program: str, devices: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P

    from slotzoo.ops import batch_map

    mesh = h200.mesh(devices)
    like = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    # The published formulation takes complex numbers, half as many.
    *shape, channels = SHAPE if dtype != "complex64" else (*SHAPE[:-1], SHAPE[-1] // 2)
    a = like((channels,), dtype if dtype == "complex64" else jnp.float32, P())
    u = like((batch, *shape, channels), dtype, P("data"))

    def forward(a: Any, u: Any) -> Any:
        return batch_map(scan, in_axes=(None, 0))(a, u)

    def loss(a: Any, u: Any) -> Any:
        x = forward(a, u)
        parts = (x.real, x.imag) if jnp.iscomplexobj(x) else (x.astype(jnp.float32),)
        return sum(jnp.square(part).sum() for part in parts)

    chosen = forward if program == "forward" else jax.grad(loss, argnums=(0, 1))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = h200.facts(jax.jit(chosen).lower(a, u).compile())
    unit = u.size * u.dtype.itemsize // devices
    return {
        "batch": batch,
        "devices": devices,
        "dtype": dtype,
        "implementation": name,
        "program": program,
        "units": found["bytes"] / unit,
        "temp_units": found["temp_bytes"] / unit,
        **found,
    }


def main() -> None:
    """Print the rows as JSON, on one line."""
    from experiments.benchmarks.linear_scan import ours, published

    found = []
    for program in ("forward", "both"):
        found.append(_compile(2, "float32", ours("auto"), "auto", program, devices=1))
        found.append(_compile(8, "float32", ours("auto"), "auto", program, devices=4))
        if "full" in sys.argv:
            found.append(_compile(2, "bfloat16", ours("auto"), "auto", program, devices=1))
            found.append(_compile(16, "float32", ours("auto"), "auto", program, devices=1))
            found.append(_compile(2, "float32", ours("associative"), "associative", program, devices=1))
            found.append(_compile(2, "complex64", published, "published", program, devices=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
