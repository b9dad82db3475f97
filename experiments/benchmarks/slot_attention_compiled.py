"""Suite `slot_attention_compiled`: what one step's compiled H200 program moves, on a machine without a GPU.

A unit is the bytes of the keys and values together, in bfloat16. The forward pass has to move one; forward and
backward three: both read keys and values, the backward pass writes their cotangents. Its kernel copies each tile of
keys twice, half a unit more where the second copy does not come from a cache: that is not counted. Needs the CUDA
plugin, see `h200`.
"""

import functools
import json
import sys
from typing import Any

from experiments.benchmarks import h200
from experiments.schema import BenchmarkSettings


COLUMNS = [
    "batch",
    "devices",
    "implementation",
    "program",
    "units",
    "kernels",
    "mosaic",
    "all_gathers",
    "temp_units",
]
SLOTS, TOKENS, DIM = 7, 128 * 128, 64  # of one example: CLEVR6


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each program. Raises `ConfigError` without the CUDA plugin."""
    return rows(full=True), COLUMNS


def rows(*, full: bool) -> list[dict[str, Any]]:
    """`full` adds XLA's own form and the published batch of 64."""
    return h200.rows_of("experiments.benchmarks.slot_attention_compiled", *(["full"] if full else []))


def _compile(batch: int, implementation: Any, program: str, devices: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P

    from slotzoo.ops import batch_map, slot_attention

    mesh = h200.mesh(devices)
    sharding = NamedSharding(mesh, P("data"))
    query, key, value = (
        jax.ShapeDtypeStruct((batch, rows, DIM), jnp.bfloat16, sharding=sharding)
        for rows in (SLOTS, TOKENS, TOKENS)
    )
    step: Any = batch_map(functools.partial(slot_attention, implementation=implementation))

    def loss(*args: Any) -> Any:
        return jnp.square(step(*args).astype(jnp.float32)).sum()

    chosen = step if program == "forward" else jax.grad(loss, argnums=(0, 1, 2))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = h200.facts(jax.jit(chosen).lower(query, key, value).compile())
    unit = 2 * key.size * key.dtype.itemsize // devices
    return {
        "batch": batch,
        "devices": devices,
        "implementation": implementation,
        "program": program,
        "units": found["bytes"] / unit,
        "temp_units": found["temp_bytes"] / unit,
        **found,
    }


def main() -> None:
    """Print the rows as JSON, on one line."""
    cases = [(4, "auto", 1), (8, "auto", 4)]
    if "full" in sys.argv:
        cases += [(64, "auto", 1), (64, "xla", 1), (64, "reference", 1)]
    print(
        json.dumps([_compile(*case[:2], program, case[2]) for case in cases for program in ("forward", "both")])
    )


if __name__ == "__main__":
    main()
