"""Several processes: found by Slurm or Kubernetes, or given explicitly; nothing to do in a single one."""

import json
from typing import Any

import jax
import numpy as np

from slotzoo.errors import ConfigError


def initialize(
    enabled: bool = False,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes of this run; call it before anything touches a device.

    With `enabled` alone, jax asks Slurm, Kubernetes or Open MPI. Otherwise all of `coordinator` ("host:port" of
    process 0), `processes` and `process_id` are needed. A single process (`enabled=False` and none of them)
    is left as it is. Raises ConfigError when it cannot work.
    """
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not enabled:
        return
    if jax.distributed.is_initialized():
        return
    if 0 < len(missing) < len(given):
        raise ConfigError(
            f"To start several processes by hand, give mesh.coordinator, mesh.processes and mesh.process_id; "
            f"missing: {', '.join(missing)}."
        )
    if processes is not None and process_id is not None and not 0 <= process_id < processes:
        raise ConfigError(f"mesh.process_id is {process_id}; it has to lie in 0..{processes - 1}.")
    try:
        jax.distributed.initialize(coordinator, processes, process_id)
    except (ValueError, RuntimeError) as error:
        hint = (
            "no cluster manager was detected; give mesh.coordinator, mesh.processes and mesh.process_id"
            if missing
            else f"could not meet the other processes at {coordinator}"
        )
        raise ConfigError(
            f"The run could not be distributed: {hint} ({str(error).splitlines()[0]})."
        ) from error


def is_main() -> bool:
    """Whether this process writes logs and pictures."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The plain value of every process, in order."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(text.size, np.int32))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [json.loads(bytes(row[:size]).decode()) for row, size in zip(rows, sizes, strict=True)]
