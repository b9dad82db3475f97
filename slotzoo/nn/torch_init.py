"""PyTorch's default initialisation: every weight and bias uniform within `1 / sqrt(fan_in)`."""

import math
from typing import TypeVar

import equinox as eqx
import jax
from jax.nn.initializers import variance_scaling
from jaxtyping import PRNGKeyArray

from slotzoo.nn.conv import Conv, ConvTranspose
from slotzoo.nn.linear import Linear


M = TypeVar("M")
Layer = Linear | Conv | ConvTranspose

# Uniform within 1 / sqrt(fan_in), for kernels of `Linear` and `Conv`.
TORCH_UNIFORM = variance_scaling(1 / 3, "fan_in", "uniform")
# PyTorch takes the output channels of a transposed convolution for its fan-in.
TORCH_UNIFORM_TRANSPOSED = variance_scaling(1 / 3, "fan_out", "uniform")


def torch_biases(module: M, *, key: PRNGKeyArray) -> M:
    """`module` with the bias of every linear layer and convolution drawn as PyTorch draws it."""
    is_layer = lambda node: isinstance(node, Layer)
    leaves, treedef = jax.tree.flatten(module, is_leaf=is_layer)
    keys = jax.random.split(key, len(leaves))
    drawn = [_with_bias(leaf, k) if is_layer(leaf) else leaf for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def _with_bias(layer: Layer, key: PRNGKeyArray) -> Layer:
    if layer.bias is None:
        return layer
    inputs = layer.weight.shape[-1] if isinstance(layer, ConvTranspose) else layer.weight.shape[-2]
    bound = 1 / math.sqrt(math.prod(layer.weight.shape[:-2]) * inputs)
    bias = jax.random.uniform(key, layer.bias.shape, minval=-bound, maxval=bound)
    return eqx.tree_at(lambda leaf: leaf.bias, layer, bias)
