"""Tables between a repository's parameters and our leaves, read in both directions.

A rule is a regular expression over the seed's path, the dotted name of our leaf with one `{}` per group, and a
layout that says how the array is turned.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import equinox as eqx
import numpy as np

from slotzoo.errors import WeightsError, nearest
from slotzoo.weights.leaves import fill, named_leaves


Module = TypeVar("Module", bound=eqx.Module)
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How an array of the seed becomes ours (whose shape is given), and back."""

    ours: Callable[[np.ndarray, Shape], np.ndarray]
    seed: Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """One line of the table."""

    seed: str
    ours: str
    layout: Layout


SAME = Layout(lambda x, shape: x, lambda x: x)


def under(seed: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of a part that stands under `seed` there and under `ours` here."""
    return tuple(Rule(seed + rule.seed, ours + rule.ours, rule.layout) for rule in rules)


def same(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    """Rules for arrays that are stored the same way, as pairs (seed, ours)."""
    return tuple(Rule(seed, ours, SAME) for seed, ours in pairs)


def from_seed(
    params: Mapping[str, np.ndarray],
    model: Module,
    rules: Iterable[Rule],
    *,
    what: str = "checkpoint of ConvSSM",
) -> Module:
    """`model` (which may be abstract) with every parameter replaced by the seed's, which `params` holds by path.

    **Raises** `WeightsError` for a path that no rule knows, a leaf that is left over, or a shape that differs.
    """
    leaves = named_leaves(model)
    found = {}
    for path, array in params.items():
        name, layout = _find(path, rules)
        if name not in leaves:
            raise WeightsError(f"{path} belongs to '{name}', which the model lacks.{nearest(name, leaves)}")
        shape = tuple(leaves[name].shape)
        if array.size != math.prod(shape):
            raise WeightsError(f"{path} has shape {array.shape}; it does not fit '{name}' of shape {shape}.")
        found[name] = layout.ours(np.asarray(array), shape)
    return fill(model, found, what=what)


def to_seed(model: eqx.Module, paths: Iterable[str], rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """The arrays of `model` (parameters, or gradients) that the seed keeps under `paths`, in its layout."""
    leaves = named_leaves(model)
    result = {}
    for path in paths:
        name, layout = _find(path, rules)
        result[path] = layout.seed(np.asarray(leaves[name]))
    return result


def _find(path: str, rules: Iterable[Rule]) -> tuple[str, Layout]:
    for rule in rules:
        if match := re.fullmatch(rule.seed, path):
            return rule.ours.format(*match.groups()), rule.layout
    raise WeightsError(f"no rule for the parameter {path!r}.")
