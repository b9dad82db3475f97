"""Suite `linear_scan_compiled`: what the scan's compiled H200 program moves, on a machine without a GPU.

XLA compiles for a described device where the CUDA plugin is installed (extra `cuda`): real fusions, real PTX, real
limits of shared memory and registers. Nothing is run. A unit is the bytes of `u`; forward and backward together
have to move five of them, and the loss of this suite, sum(x^2), two more.
"""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from experiments.schema import BenchmarkSettings
from slotzoo.errors import ConfigError


COLUMNS = [
    "batch",
    "dtype",
    "implementation",
    "program",
    "units",
    "kernels",
    "mosaic",
    "all_gathers",
    "temp_units",
]
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# An H200 as XLA describes it; hardware figures from NVIDIA's data sheet and occupancy tables.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 device_memory_size: 150000000000
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""


def plugin_missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if any(importlib.util.find_spec(name) for name in PLUGINS):
        return None
    return f"compiling for an H200 needs the CUDA plugin of jax ({' or '.join(PLUGINS)}): install slotzoo[cuda]"


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each program. Raises `ConfigError` without the CUDA plugin."""
    return rows(full=True), COLUMNS


def rows(*, full: bool) -> list[dict[str, Any]]:
    """Compile in a process of its own, since what it sets has to stand before jax looks for devices.

    `full` adds the published formulation, a batch of 16 and bfloat16.
    """
    if reason := plugin_missing():
        raise ConfigError(f"{reason}.")
    environment = os.environ | {
        # The plugin would otherwise stop where no cuDNN is found, or look for a GPU.
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_PLATFORMS": "cpu",
        # No timing of kernels on a device that is not there.
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    }
    command = [sys.executable, "-m", "experiments.benchmarks.linear_scan_compiled", *(["full"] if full else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise ConfigError(f"compiling for an H200 failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _compile(batch: int, dtype: str, scan: Any, name: str, program: str, devices: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec as P

    from experiments.benchmarks.traffic import traffic
    from slotzoo.ops import batch_map

    topology = topologies.get_topology_desc(platform="cuda", topology=f"1x1x{devices}", target_config=H200)
    mesh = topologies.make_mesh(topology, (devices,), ("data",))
    like = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    a = like((512,), jnp.float32, P())
    u = like((batch, 300, 16, 16, 512), dtype, P("data"))

    def forward(a: Any, u: Any) -> Any:
        return batch_map(scan, in_axes=(None, 0))(a, u)

    def loss(a: Any, u: Any) -> Any:
        return jnp.square(forward(a, u).astype(jnp.float32)).sum()

    chosen = forward if program == "forward" else jax.grad(loss, argnums=(0, 1))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled: Any = jax.jit(chosen).lower(a, u).compile()
    text: str = compiled.as_text()
    moved = traffic(text)
    unit = jnp.dtype(dtype).itemsize * batch * 300 * 16 * 16 * 512 // devices
    return {
        "target": "NVIDIA H200, compiled and not run",
        "jax": jax.__version__,
        "batch": batch,
        "devices": devices,
        "dtype": dtype,
        "implementation": name,
        "program": program,
        "units": moved.bytes / unit,
        "kernels": moved.kernels,
        "mosaic": text.count('custom_call_target="mosaic_gpu_v2"'),
        "all_gathers": text.count(" all-gather(") + text.count(" all-gather-start("),
        "temp_units": compiled.memory_analysis().temp_size_in_bytes / unit,
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
            for name, scan in {"associative": ours("associative"), "published": published}.items():
                found.append(_compile(2, "float32", scan, name, program, devices=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
