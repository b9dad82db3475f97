"""Modules with random parameters, made without compiling their initialisers."""

from collections.abc import Callable
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
