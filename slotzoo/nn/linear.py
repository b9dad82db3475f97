"""Maps over the last axis, and tables of vectors."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.ops.product import product


class Linear(eqx.Module):
    """`y = x W + b` over the last axis; parameters are cast to the dtype of `x`."""

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"] | None
    in_size: int = eqx.field(static=True)
    out_size: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        bias: bool = True,
        init: Initializer = lecun_normal(),
        key: PRNGKeyArray,
    ):
        """Weights by `init`, LeCun-normal (truncated) unless given; zero bias."""
        self.weight = init(key, (in_size, out_size), jnp.float32)
        self.bias = jnp.zeros(out_size) if bias else None
        self.in_size, self.out_size = in_size, out_size

    def __call__(self, x: Float[Array, "*batch {self.in_size}"]) -> Float[Array, "*batch {self.out_size}"]:
        y = product(x, self.weight.astype(x.dtype))
        if self.bias is not None:
            y = y + _broadcast(self.bias, y)
        return y


class Embedding(eqx.Module):
    """`y = table[index]`. An index of -1 means the last row, which the seeds use as "unknown"."""

    table: Float[Array, "rows size"]
    rows: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, rows: int, size: int, *, key: PRNGKeyArray):
        """Normal rows with variance 1 / size."""
        self.table = jax.random.normal(key, (rows, size)) * size**-0.5
        self.rows, self.size = rows, size

    def __call__(self, index: Int[Array, "*batch"]) -> Float[Array, "*batch {self.size}"]:
        return self.table[jnp.where(index < 0, index + self.rows, index)]


def _broadcast(vector: Array, like: Array) -> Array:
    """Give a per-channel vector the rank and the dtype of `like` (rank promotion is an error in the tests)."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))
