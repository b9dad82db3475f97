"""Suite `convs5_compiled`: the gradient of a ConvS5 at its published size, compiled for data-parallel H200s.

Says whether anything is gathered, whether the scan is the kernel, and how much memory a device needs. Nothing is
run, and no GPU is needed; the CUDA plugin is, see `h200`.
"""

import json
import sys
from typing import Any

from experiments.benchmarks import h200
from experiments.schema import BenchmarkSettings


COLUMNS = ["model", "batch", "devices", "frames", "dtype", "mosaic", "all_gathers", "all_reduces", "temp_gb"]


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each program. Raises `ConfigError` without the CUDA plugin."""
    return rows(full=True), COLUMNS


def rows(*, full: bool) -> list[dict[str, Any]]:
    """`full` adds the published batch and length."""
    return h200.rows_of("experiments.benchmarks.convs5_compiled", *(["full"] if full else []))


def _compile(name: str, batch: int, devices: int, frames: int, dtype: Any) -> dict[str, Any]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec as P

    from slotzoo.models import create_model
    from slotzoo.ops import batch_map

    mesh = h200.mesh(devices)
    like = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    model = eqx.filter_eval_shape(lambda key: create_model(name, key=key), jax.random.key(0))
    params, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    params = jax.tree.map(lambda leaf: like(leaf.shape, leaf.dtype, P()), params)
    video = like((batch, frames, 64, 64, 1), dtype, P("data"))

    def loss(params: Any, video: Any) -> Any:
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        model = eqx.combine(cast, static)

        def one(clip: Any) -> Any:
            error = model(clip).prediction - clip[1:]
            return jnp.square(error.astype(jnp.float32)).mean()

        return batch_map(one)(video).mean()

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = h200.facts(jax.jit(jax.value_and_grad(loss)).lower(params, video).compile())
    card = {"model": name, "batch": batch, "devices": devices, "frames": frames, "dtype": jnp.dtype(dtype).name}
    return {**card, "temp_gb": found["temp_bytes"] / 1e9, **found}


def main() -> None:
    """Print the rows as JSON, on one line."""
    import jax.numpy as jnp

    found = [_compile("convs5_mnist600", 4, 4, 32, jnp.float32)]
    if "full" in sys.argv:
        found += [_compile("convs5_mnist600", 8, 8, 600, dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
