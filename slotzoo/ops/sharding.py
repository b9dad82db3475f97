"""How an op runs on a sharded batch: each device works on its own examples, nothing is gathered.

XLA cannot look into a kernel: asked to run one on sharded arrays it gathers them onto every device first. So
the ops enter `jax.shard_map` themselves, over whatever mesh is ambient (`jax.set_mesh`). They are written for
one example and know no batch axis; `batch_map` adds it and says over which mesh axis it is split.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


BATCH_AXIS = "data"


def batch_map(fn: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    """`jax.vmap(fn, in_axes)` over a batch that may be sharded over the mesh axis `"data"`.

    If the ambient mesh has an axis `"data"` which divides the batch, ops inside `fn` run on each device's part
    of it; otherwise this is `jax.vmap`. Outputs get the batch as their leading axis.
    """

    def mapped(*args: Any) -> Any:
        plain = jax.vmap(fn, in_axes=in_axes)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or BATCH_AXIS not in mesh.axis_names or BATCH_AXIS in mesh.manual_axes:
            return plain(*args)
        if _batch_size(args, in_axes) % mesh.shape[BATCH_AXIS]:
            return plain(*args)
        return jax.vmap(fn, in_axes=in_axes, spmd_axis_name=BATCH_AXIS)(*args)

    return mapped


def per_device(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Run `fn` under `jax.shard_map` over the ambient mesh, if there is one.

    Its arrays have no batch axis yet and count as replicated; the one that `batch_map` adds stays sharded.
    """
    if not over_devices():
        return fn
    # No replication check: a kernel does not declare over which axes its result varies.
    return jax.shard_map(fn, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)


def over_devices() -> bool:
    """Whether the compiler spreads what is computed here over several devices of the ambient mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return not (mesh.empty or mesh.size == 1 or mesh.manual_axes)


def _batch_size(args: tuple[Any, ...], in_axes: Any) -> int:
    sizes = []

    def visit(axis: int | None, tree: Any) -> None:
        if axis is not None:
            sizes.extend(leaf.shape[axis] for leaf in jax.tree.leaves(tree))

    axes = (in_axes,) * len(args) if isinstance(in_axes, int) or in_axes is None else tuple(in_axes)
    is_none = lambda node: node is None
    for axis, arg in zip(axes, args, strict=True):
        jax.tree.map(visit, axis, arg, is_leaf=is_none)
    return sizes[0] if sizes else 1
