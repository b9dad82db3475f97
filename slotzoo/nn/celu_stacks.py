"""Stacks of `layer -> CELU -> norm`, the only kind of network in GNM, and its convolutional LSTM cell.

The norm comes after the activation, so that every layer sees normalised inputs. With `bare_last` the last layer
has neither, for outputs that are parameters of a distribution or logits of pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.activations import activation
from slotzoo.nn.conv import Conv
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import GroupNorm, LayerNorm


# Uniform within 1 / sqrt(fan in), kernels and biases alike: what the authors' framework does by default.
_kernel_init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_EPS = 1e-5
_celu = activation("elu")  # CELU and ELU are the same function at their common slope of 1


class Stage(NamedTuple):
    """One layer of a `ConvStack`. A stride of 0 is a stride of 1 without padding."""

    filters: int  # channels after the layer
    kernel: int
    stride: int = 1
    upscale: int = 1  # every pixel becomes a square of this side
    groups: int = 1  # of the GroupNorm


class ConvStack(eqx.Module):
    """`norm(celu(unfold(conv(x))))` for every stage; `unfold` makes a square of pixels out of channels.

    A stage with `upscale = u` convolves to `u * u * filters` channels, ordered (row, column, filter).
    """

    convs: tuple[Conv, ...]
    norms: tuple[GroupNorm, ...]
    stages: tuple[Stage, ...] = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)

    def __init__(
        self, in_channels: int, stages: Sequence[Stage], *, bare_last: bool = False, key: PRNGKeyArray
    ):
        convs, norms = [], []
        channels = in_channels
        for i, (stage, own) in enumerate(zip(stages, jax.random.split(key, len(stages)), strict=True)):
            pad = (stage.kernel - 1) // 2 if stage.stride else 0
            convs.append(
                conv(
                    channels,
                    stage.filters * stage.upscale**2,
                    stage.kernel,
                    stride=max(stage.stride, 1),
                    padding=((pad, pad), (pad, pad)),
                    key=own,
                )
            )
            if not (bare_last and i == len(stages) - 1):
                norms.append(GroupNorm(stage.groups, stage.filters, eps=_EPS))
            channels = stage.filters
        self.convs, self.norms = tuple(convs), tuple(norms)
        self.stages, self.in_channels = tuple(stages), in_channels

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out filters"]:
        for i, (layer, stage) in enumerate(zip(self.convs, self.stages, strict=True)):
            x = unfolded(_convolved(layer, x), stage.upscale)
            if i < len(self.norms):
                x = self.norms[i](_celu(x))
        return x


class MLPStack(eqx.Module):
    """`norm(celu(linear(x)))` for every width."""

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm, ...]
    in_size: int = eqx.field(static=True)
    bare_last: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        widths: Sequence[int],
        *,
        norm: bool = True,
        bare_last: bool = False,
        key: PRNGKeyArray,
    ):
        sizes = (in_size, *widths)
        keys = jax.random.split(key, len(widths))
        self.layers = tuple(linear(a, b, key=own) for a, b, own in zip(sizes, sizes[1:], keys, strict=False))
        normed = widths[: len(widths) - bare_last] if norm else ()
        self.norms = tuple(LayerNorm(width, eps=_EPS) for width in normed)
        self.in_size, self.bare_last = in_size, bare_last

    def __call__(self, x: Float[Array, "*batch {self.in_size}"]) -> Float[Array, "*batch out"]:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if not (self.bare_last and i == len(self.layers) - 1):
                x = _celu(x)
            if i < len(self.norms):
                x = self.norms[i](x)
        return x


class ConvLSTMState(NamedTuple):
    """What a `ConvLSTMCell` carries."""

    hidden: Float[Array, "height width hidden"]
    cell: Float[Array, "height width hidden"]


class ConvLSTMCell(eqx.Module):
    """`c' = sigmoid(f) c + sigmoid(i) tanh(g)`, `h' = sigmoid(o) tanh(c')` with `[i f o g] = conv([x h])`.

    The initial state is learned, one vector for every place. Source: Shi et al., Convolutional LSTM Network,
    NeurIPS 2015; without peepholes.
    """

    conv: Conv
    hidden: Float[Array, "size size hidden"]
    cell: Float[Array, "size size hidden"]

    def __init__(self, in_channels: int, hidden: int, *, size: int, kernel: int = 1, key: PRNGKeyArray):
        pad = (kernel - 1) // 2
        padding = ((pad, pad), (pad, pad))
        self.conv = conv(in_channels + hidden, 4 * hidden, kernel, padding=padding, key=key)
        self.hidden = jnp.zeros((size, size, hidden))
        self.cell = jnp.zeros((size, size, hidden))

    def init_state(self) -> ConvLSTMState:
        """The learned initial state: float32, as all that follow."""
        return ConvLSTMState(self.hidden.astype(jnp.float32), self.cell.astype(jnp.float32))

    def __call__(self, x: Float[Array, "size size in"], state: ConvLSTMState) -> ConvLSTMState:
        """One step."""
        gates = _convolved(self.conv, jnp.concatenate([x, state.hidden.astype(x.dtype)], -1))
        i, f, o, g = jnp.split(gates.astype(jnp.float32), 4, -1)
        cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return ConvLSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
    key: PRNGKeyArray,
) -> Conv:
    """A convolution whose kernel and bias are uniform within `1 / sqrt(fan in)`."""
    key_kernel, key_bias = jax.random.split(key)
    layer = Conv(
        in_channels, out_channels, kernel, stride=stride, padding=padding, init=_kernel_init, key=key_kernel
    )
    return eqx.tree_at(lambda c: c.bias, layer, _bias(out_channels, in_channels * kernel**2, key_bias))


def linear(in_size: int, out_size: int, *, key: PRNGKeyArray) -> Linear:
    """A linear layer whose weight and bias are uniform within `1 / sqrt(fan in)`."""
    key_weight, key_bias = jax.random.split(key)
    layer = Linear(in_size, out_size, init=_kernel_init, key=key_weight)
    return eqx.tree_at(lambda c: c.bias, layer, _bias(out_size, in_size, key_bias))


def unfolded(
    x: Float[Array, "*batch height width channel"], scale: int
) -> Float[Array, "*batch height_out width_out filter"]:
    """Channels (row, column, filter) of every pixel as a square of pixels of side `scale`."""
    if scale == 1:
        return x
    *batch, height, width, channel = x.shape
    n = len(batch)
    square = x.reshape(*batch, height, width, scale, scale, channel // scale**2)
    return square.swapaxes(n + 1, n + 2).reshape(*batch, scale * height, scale * width, -1)


def _bias(size: int, fan_in: int, key: PRNGKeyArray) -> Array:
    bound = fan_in**-0.5
    return jax.random.uniform(key, (size,), minval=-bound, maxval=bound)


def _convolved(layer: Conv, x: Array) -> Array:
    """A product of matrices where every pixel is by itself (1 x 1), and where each sees all (2 x 2 pixels under 3 x 3).

    For maps as small as that XLA's CPU compiler has no fast convolution: the 2 x 2 pixels of 64 glimpses, 128
    channels to 256, take it 50 ms with their gradients, the product 2.
    """
    size, (height, width) = layer.weight.shape[0], x.shape[-3:-1]
    pad = size // 2
    if layer.stride != 1 or not size % 2 or layer.padding != ((pad, pad), (pad, pad)):
        return layer(x)
    weight = layer.weight.astype(x.dtype)
    if size == 1:
        return layer.biased(x @ weight[0, 0])
    if max(height, width) > pad + 1:
        return layer(x)
    # What a pixel reads is a window of the kernel as large as the map.
    windows = [
        weight[pad - i : pad - i + height, pad - j : pad - j + width]
        for i in range(height)
        for j in range(width)
    ]
    every = jnp.stack(windows, -2).reshape(height * width * layer.in_channels, -1)
    y = x.reshape(*x.shape[:-3], -1) @ every
    return layer.biased(y.reshape(*x.shape[:-1], layer.out_channels))
