"""Perceptrons: the one with two layers, and one of any depth with a norm."""

from typing import Literal

import equinox as eqx
import jax
from jax.nn.initializers import glorot_uniform, he_uniform
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import LayerNorm


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


class DeepMLP(eqx.Module):
    """`hidden` layers of `width` with a ReLU after each, and a linear one; a LayerNorm in front ("pre") or behind.

    As the modules of SAVi and STATM have it: LeCun-normal kernels, zero biases, norm with an epsilon of 1e-6.
    """

    layers: tuple[Linear, ...]
    norm: LayerNorm | None
    placed: Literal["pre", "post"] | None = eqx.field(static=True)
    residual: bool = eqx.field(static=True)
    activate_output: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        width: int,
        out_size: int | None = None,
        *,
        hidden: int = 1,
        norm: Literal["pre", "post"] | None = None,
        residual: bool = False,
        activate_output: bool = False,
        key: PRNGKeyArray,
    ):
        """`out_size` is `in_size` unless given. `residual` adds the input, before a norm behind; `activate_output`
        puts a ReLU after the last layer too.
        """
        out_size = in_size if out_size is None else out_size
        sizes = (in_size, *[width] * hidden, out_size)
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True))
        self.norm = None if norm is None else LayerNorm(in_size if norm == "pre" else out_size)
        self.placed, self.residual, self.activate_output = norm, residual, activate_output

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        y = self.norm(x) if self.norm is not None and self.placed == "pre" else x
        for layer in self.layers[:-1]:
            y = jax.nn.relu(layer(y))
        y = self.layers[-1](y)
        if self.activate_output:
            y = jax.nn.relu(y)
        if self.residual:
            y = x + y
        return self.norm(y) if self.norm is not None and self.placed == "post" else y
