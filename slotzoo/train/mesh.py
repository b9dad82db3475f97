"""The devices as a mesh with axes `data` and `model`, and batches spread over it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from slotzoo.errors import ConfigError


AXES = ("data", "model")


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """Lay out all devices of all processes as `(data, model)`; -1 takes what is left over.

    Devices along `model` work on the same examples, and share the state and the products with it: see
    `slotzoo.train.sharding.leaf_sharding`.

    Raises ConfigError when the product is not the number of devices, or `model` reaches beyond one process, each of
    which reads its own examples.
    """
    count = jax.device_count()
    if model < 1 or data == 0 or data < -1:
        raise ConfigError(f"mesh.data={data} and mesh.model={model}: give positive numbers of devices.")
    if count % model:
        raise ConfigError(f"mesh.model={model} does not divide the number of devices, {count}.")
    if data != -1 and data * model != count:
        raise ConfigError(
            f"A mesh of data={data} by model={model} does not fit {count} device{'s' * (count != 1)}: "
            f"their product has to be {count}."
        )
    if jax.local_device_count() % model:
        raise ConfigError(
            f"mesh.model={model} does not divide the {jax.local_device_count()} devices of a process, which all see "
            "that process's own examples."
        )
    # Explicit is the default of jax 0.10 to 0.12; under it plain indexing of a sharded array fails.
    return jax.make_mesh((count // model, model), AXES, axis_types=(AxisType.Auto,) * 2)


def local_mesh(mesh: Mesh) -> Mesh:
    """The part of `mesh` that this process can read: `mesh` itself in a single process."""
    if jax.process_count() == 1:
        return mesh
    devices = np.asarray(jax.local_devices()).reshape(-1, 1)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch_size(batch_size: int, mesh: Mesh, accumulate: int = 1) -> int:
    """Return the batch size of one process; ConfigError when the global `batch_size` cannot be split evenly."""
    data = mesh.shape["data"]
    parts = data * accumulate
    if accumulate < 1 or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} and accumulate={accumulate} have to be at least 1.")
    if batch_size % parts:
        below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
        choices = f"{below} or {above}" if below else f"{above}"
        raise ConfigError(
            f"A global batch of {batch_size} cannot be split over {data} device{'s' * (data != 1)} along `data`"
            f"{f' times {accumulate} microbatches' if accumulate > 1 else ''}; take {choices}."
        )
    processes = jax.process_count()
    if batch_size % processes:
        raise ConfigError(f"A global batch of {batch_size} cannot be split over {processes} processes.")
    return batch_size // processes


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over `data`, the rest whole."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Put a process's part of a batch onto its devices, as arrays of the global batch sharded over `data`.

    A leading axis that the devices do not divide (the last batch of an evaluation) goes to each device whole.
    Entries that are not numbers, such as the names of clips, are left out.
    """
    local = sum(d.process_index == jax.process_index() for d in mesh.devices[:, 0])

    def put(x):
        if x.ndim and local and x.shape[0] % local == 0:
            return jax.make_array_from_process_local_data(batch_sharding(mesh), x)
        return jax.make_array_from_process_local_data(replicated(mesh), x)

    arrays = {name: np.asarray(value) for name, value in batch.items()}
    return {name: put(x) for name, x in arrays.items() if x.dtype.kind in "biufc"}
