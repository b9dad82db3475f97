"""Mixed precision: parameters stay float32, one cast at the boundary of the model, float32 islands inside.

These upcast their own inputs and cast their result back, under every policy, so that a caller never has to think of it:

    recurrences: the state and the decay of every scan (1 - |a| is often below bfloat16's resolution)
    discretisation of state-space models: Lambda, log_step and what is computed from them
    statistics of LayerNorm, GroupNorm and BatchNorm
    softmax and log-softmax, the normalisation of attention weights
    codebook distances and their argmin
    losses and metrics

Optimiser state, parameters and their moving averages are float32 throughout.
"""

import dataclasses
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


Precision = Literal["float32", "bfloat16"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which dtype a model computes in. Parameters are always kept in float32."""

    compute: DTypeLike

    def cast(self, tree: T) -> T:
        """Cast every floating-point array of `tree` to the compute dtype; integers and keys are left alone."""

        def leaf(x):
            return x.astype(self.compute) if _is_float(x) else x

        return jax.tree.map(leaf, tree)


def policy(precision: Precision) -> Policy:
    """The policy of a configuration's `precision=` value."""
    return Policy({"float32": jnp.float32, "bfloat16": jnp.bfloat16}[precision])


def _is_float(x: object) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
