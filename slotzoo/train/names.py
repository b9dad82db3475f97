"""Leaves of a pytree by their dotted names: `layers.0.conv.weight`."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from slotzoo.errors import CheckpointError


def leaf_name(path: tuple) -> str:
    """The dotted name of a pytree path."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def leaf_names(tree: PyTree) -> list[str]:
    """The dotted names of all leaves of `tree`, in the order of `jax.tree.leaves`."""
    return [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def named_arrays(tree: PyTree) -> dict[str, Any]:
    """The arrays (or `jax.ShapeDtypeStruct`s) of `tree` by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, is_array))
    named = {leaf_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise CheckpointError(
            "Two arrays of the state have the same dotted name; rename a field or a dict key."
        )
    return named


def from_named(tree: PyTree, named: Mapping[str, Any]) -> PyTree:
    """`tree` with the arrays of `named` in place of its own; its other leaves are left as they are."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: named[leaf_name(path)] if is_array(leaf) else leaf, tree
    )


def targets(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """What to restore: shape, dtype and sharding by name; without a sharding, the first device."""
    here = SingleDeviceSharding(jax.local_devices()[0])

    def target(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here)

    return {name: target(leaf) for name, leaf in named_arrays(tree).items()}


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or stands for one."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
