"""Two-layer perceptrons."""

import equinox as eqx
import jax
from jax.nn.initializers import glorot_uniform, he_uniform
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.linear import Linear


class MLP(eqx.Module):
    """`W_2 relu(W_1 x + b_1) + b_2`."""

    first: Linear
    second: Linear

    def __init__(self, in_size: int, width: int, out_size: int, *, key: PRNGKeyArray):
        """He-uniform first kernel, Glorot-uniform second, zero biases."""
        key_first, key_second = jax.random.split(key)
        self.first = Linear(in_size, width, init=he_uniform(), key=key_first)
        self.second = Linear(width, out_size, init=glorot_uniform(), key=key_second)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return self.second(jax.nn.relu(self.first(x)))
