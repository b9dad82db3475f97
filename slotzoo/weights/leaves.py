"""Leaves of a module by dotted name: `encoder.levels.0.blocks.1.conv_in.weight`."""

from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.errors import WeightsError, nearest


M = TypeVar("M")


def dotted(path: tuple[Any, ...]) -> str:
    """The name of a leaf from its tree path: attributes, indices and dictionary keys joined by dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named_leaves(model: Any) -> dict[str, Any]:
    """Every array leaf of a pytree by its dotted name; leaves may be abstract (`jax.ShapeDtypeStruct`)."""
    found, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(model, _is_array))
    return {dotted(path): leaf for path, leaf in found}


def fill(model: M, arrays: Mapping[str, Any], *, what: str = "weights") -> M:
    """Return `model`, which may be abstract, with every array leaf taken from `arrays` by name.

    Values are converted to the leaf's own floating-point dtype. **Raises** `WeightsError`, naming the leaf,
    when one is missing, unexpected, of another shape, or of another kind (integer for float).
    """
    wanted = named_leaves(model)
    missing = sorted(set(wanted) - set(arrays))
    unexpected = sorted(set(arrays) - set(wanted))
    if missing or unexpected:
        raise WeightsError(_difference(what, missing, unexpected))

    def leaf(path, old):
        name = dotted(path)
        new = arrays[name]
        if tuple(new.shape) != tuple(old.shape):
            raise WeightsError(
                f"{what}: leaf '{name}' has shape {tuple(new.shape)}, the model wants {tuple(old.shape)}; "
                "the file belongs to a model of another size."
            )
        same_kind = jnp.issubdtype(new.dtype, jnp.floating) == jnp.issubdtype(old.dtype, jnp.floating)
        if not (same_kind or new.dtype == old.dtype):
            raise WeightsError(f"{what}: leaf '{name}' is {new.dtype}, the model wants {old.dtype}.")
        return jnp.asarray(np.asarray(new), dtype=old.dtype)

    dynamic, static = eqx.partition(model, _is_array)
    return eqx.combine(jax.tree_util.tree_map_with_path(leaf, dynamic), static)


def _is_array(x: Any) -> bool:
    return eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct)


def _difference(what: str, missing: list[str], unexpected: list[str]) -> str:
    parts = []
    if missing:
        hint = nearest(missing[0], unexpected) if unexpected else ""
        parts.append(f"{len(missing)} missing ({_some(missing)}){hint}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_some(unexpected)})")
    return f"{what}: leaves do not match the model: {', '.join(parts)}."


def _some(names: list[str]) -> str:
    return ", ".join(repr(n) for n in names[:3]) + (", ..." if len(names) > 3 else "")
