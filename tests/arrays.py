"""Modules with random parameters, made without compiling their initialisers; whether records are the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


M = TypeVar("M")


def random_module(build: Callable[[], M], seed: int = 0, scale: float = 0.5) -> M:
    """What `build()` would make, its parameters drawn with numpy: normal, of standard deviation `scale`."""
    rng = np.random.default_rng(seed)
    leaf = lambda x: jnp.asarray(rng.normal(size=x.shape) * scale, x.dtype)
    return jax.tree.map(leaf, eqx.filter_eval_shape(build))


def same_record(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Whether two records, or batches, have the same fields with the same values."""
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def same_records(a: Sequence, b: Sequence) -> bool:
    """Whether two sources, or lists of batches, have the same records in the same order."""
    return len(a) == len(b) and all(same_record(a[i], b[i]) for i in range(len(a)))
