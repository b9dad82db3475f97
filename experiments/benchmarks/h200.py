"""Compiling for an H200 on a machine without a GPU.

Where the CUDA plugin of jax is installed (extra `cuda`), XLA compiles for a device that is only described: real
fusions, real PTX, real limits of shared memory and registers. Nothing is run. What has to stand in the environment
before jax looks for devices is set for a process of its own, which prints its rows as one line of JSON.
"""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

from slotzoo.errors import ConfigError


TARGET = "NVIDIA H200, compiled and not run"
LONGEST_S = 1800  # of one suite; they take a minute or two
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


def rows_of(module: str, *arguments: str) -> list[dict[str, Any]]:
    """What `python -m <module> <arguments>` prints in its last line, run where it can compile for an H200.

    Raises `ConfigError` without the CUDA plugin, with the last line of what went wrong, or after `LONGEST_S`.
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
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"compiling for an H200 took more than {LONGEST_S} seconds: {module} was ended."
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"compiling for an H200 failed: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def mesh(devices: int) -> Any:
    """A mesh of described H200s with the axis `data`. Trace under `use_abstract_mesh(mesh.abstract_mesh)`."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="cuda", topology=f"1x1x{devices}", target_config=H200)
    return topologies.make_mesh(topology, (devices,), ("data",))


def facts(compiled: Any) -> dict[str, Any]:
    """What can be read off a compiled program: bytes moved, kernels launched, collectives, memory."""
    import jax

    from experiments.benchmarks.traffic import traffic

    text: str = compiled.as_text()
    moved = traffic(text)
    count = lambda name: text.count(f" {name}(") + text.count(f" {name}-start(")
    return {
        "target": TARGET,
        "jax": jax.__version__,
        "bytes": moved.bytes,
        "kernels": moved.kernels,
        "mosaic": text.count('custom_call_target="mosaic_gpu_v2"'),
        "all_gathers": count("all-gather"),
        "all_reduces": count("all-reduce"),
        "other_collectives": count("all-to-all") + count("collective-permute"),
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }
