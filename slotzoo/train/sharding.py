"""Where each array of the state lives, and initialising it right there."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from slotzoo.errors import ConfigError, nearest
from slotzoo.train.mesh import replicated


STRATEGIES = ("replicated", "fsdp")
# Splitting a small array costs more in communication than it saves in memory.
FSDP_MINIMUM = 2**12


def check_strategy(strategy: str) -> None:
    """Raise ConfigError for a strategy that does not exist."""
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"The sharding strategy {strategy!r} does not exist; choose replicated or fsdp."
            f"{nearest(strategy, STRATEGIES)}"
        )


def leaf_sharding(leaf: Any, mesh: Mesh, strategy: str) -> NamedSharding:
    """The sharding of one array of the state.

    The largest axis that the devices along `model` divide is split over them; with the strategy `fsdp` the largest
    of the others that those along `data` divide, over these. Arrays of fewer than `FSDP_MINIMUM` entries, or without
    such an axis, stay whole. How the products with them are shared out follows from this: the compiler's part.
    """
    shape = leaf.shape
    if int(np.prod(shape)) < FSDP_MINIMUM:
        return replicated(mesh)
    spec: list[str | None] = [None] * len(shape)
    for name in ("model", "data") if strategy == "fsdp" else ("model",):
        devices = mesh.shape[name]
        fitting = [
            axis for axis, size in enumerate(shape) if size and size % devices == 0 and spec[axis] is None
        ]
        if devices > 1 and fitting:
            spec[max(fitting, key=lambda a: shape[a])] = name
    while spec and spec[-1] is None:
        spec.pop()
    return NamedSharding(mesh, PartitionSpec(*spec))


def state_shardings(tree: PyTree, mesh: Mesh, strategy: str) -> PyTree:
    """The sharding of each array (or `jax.ShapeDtypeStruct`) of `tree`; None for everything else."""
    check_strategy(strategy)
    return jax.tree.map(lambda leaf: leaf_sharding(leaf, mesh, strategy) if _is_array(leaf) else None, tree)


def abstract(tree: PyTree, mesh: Mesh, strategy: str) -> PyTree:
    """`tree` with each array replaced by its shape, dtype and sharding; everything else is left as it is."""

    def leaf(x):
        if not _is_array(x):
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf_sharding(x, mesh, strategy))

    check_strategy(strategy)
    return jax.tree.map(leaf, tree)


def init_sharded(build: Any, *arguments: Any, mesh: Mesh, strategy: str) -> PyTree:
    """Return `build(*arguments)` with each array made directly where it belongs.

    No device ever holds the whole of a sharded state: the initialisers run under `jit` with output shardings.
    """
    shapes = eqx.filter_eval_shape(build, *arguments)
    dynamic, static = eqx.partition(shapes, _is_array)
    shardings = state_shardings(dynamic, mesh, strategy)

    def arrays(*args):
        return eqx.filter(build(*args), eqx.is_array)

    with jax.set_mesh(mesh):
        return eqx.combine(jax.jit(arrays, out_shardings=shardings)(*arguments), static)


def place(tree: PyTree, mesh: Mesh, strategy: str) -> PyTree:
    """Put the arrays of `tree`, equal on all processes, where the strategy wants them."""

    def put(x):
        if not _is_array(x):
            return x
        if jax.process_count() > 1:  # an array of this process alone cannot be moved to devices of others
            x = np.asarray(x)
        return jax.device_put(x, leaf_sharding(x, mesh, strategy))

    check_strategy(strategy)
    return jax.tree.map(put, tree)


def whole(tree: PyTree, everywhere: Mesh, here: Mesh) -> PyTree:
    """Gather `tree` from the global mesh `everywhere` and replicate it on `here`, this process's own mesh."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    with jax.set_mesh(everywhere):
        arrays = jax.jit(lambda t: t, out_shardings=replicated(everywhere))(arrays)
    arrays = jax.tree.map(lambda x: jax.device_put(np.asarray(x.addressable_data(0)), replicated(here)), arrays)
    return eqx.combine(arrays, static)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray))
