"""Layer, group and batch normalisation over channels-last arrays. Statistics are float32, whatever the input.

A norm and the activation after it are one function with its own backward pass: what is kept is the input and two
numbers per group, and the input's gradient is `a dy + b x + c` with coefficients per group. Left to automatic
differentiation, a residual block of the ConvS5 encoder takes 1.4 times as long on a CPU and twice the memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from slotzoo.nn.activations import Activation, activation as function
from slotzoo.ops.order import late


class LayerNorm(eqx.Module):
    """`y = (x - mean) / sqrt(var + eps) * scale + bias` over the last axis."""

    scale: Float[Array, " channel"]
    bias: Float[Array, " channel"]
    channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, eps: float = 1e-6):
        self.scale, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.channels, self.eps = channels, eps

    def __call__(
        self, x: Float[Array, "*batch {self.channels}"], *, activation: Activation | None = None
    ) -> Float[Array, "*batch {self.channels}"]:
        """Normalise, then apply `activation`."""
        return _normalised(
            _Options((-1,), 1, self.eps, activation), x, _like(self.scale, x), _like(self.bias, x)
        )


class GroupNorm(eqx.Module):
    """`y = (x - mean) / sqrt(var + eps) * scale + bias`, statistics over space and a group of channels."""

    scale: Float[Array, " channel"]
    bias: Float[Array, " channel"]
    groups: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, groups: int, channels: int, *, eps: float = 1e-6):
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be split into {groups} groups of equal size")
        self.scale, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.groups, self.channels, self.eps = groups, channels, eps

    def __call__(
        self,
        x: Float[Array, "*batch height width {self.channels}"],
        *,
        activation: Activation | None = None,
    ) -> Float[Array, "*batch height width {self.channels}"]:
        """Normalise, then apply `activation`."""
        options = _Options((-3, -2), self.channels // self.groups, self.eps, activation)
        return _normalised(options, x, _like(self.scale, x), _like(self.bias, x))


class BatchNorm(eqx.Module):
    """`y = (x - mean) / sqrt(var + eps) * scale + bias` with running statistics, or with those of a batch.

    A call takes the running ones, which no gradient changes. `training` takes the batch's and gives the norm with
    the next running ones, `momentum` times the old plus the rest times the batch's.
    """

    scale: Float[Array, " channel"]
    bias: Float[Array, " channel"]
    mean: Float[Array, " channel"]
    variance: Float[Array, " channel"]
    channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    momentum: float = eqx.field(static=True)

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.9):
        self.scale, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.mean, self.variance = jnp.zeros(channels), jnp.ones(channels)
        self.channels, self.eps, self.momentum = channels, eps, momentum

    def __call__(
        self, x: Float[Array, "*batch {self.channels}"], *, activation: Activation | None = None
    ) -> Float[Array, "*batch {self.channels}"]:
        """Normalise by the running statistics, then apply `activation`."""
        return self._by(*lax.stop_gradient((self.mean, self.variance)), x, activation)

    def training(
        self, x: Float[Array, "*batch {self.channels}"], *, activation: Activation | None = None
    ) -> tuple[Float[Array, "*batch {self.channels}"], "BatchNorm"]:
        """Normalise by the statistics over all axes before the channels; also the norm that comes after."""
        y = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean = y.mean(axes)
        variance = jnp.maximum(jnp.square(y).mean(axes) - jnp.square(mean), 0.0)
        blend = lambda old, new: self.momentum * old + (1 - self.momentum) * lax.stop_gradient(new)
        following = eqx.tree_at(
            lambda norm: (norm.mean, norm.variance),
            self,
            (blend(self.mean, mean), blend(self.variance, variance)),
        )
        return self._by(mean, variance, x, activation), following

    def _by(self, mean: Array, variance: Array, x: Array, act: Activation | None) -> Array:
        gain = lax.rsqrt(variance.astype(jnp.float32) + self.eps) * self.scale.astype(jnp.float32)
        shift = self.bias.astype(jnp.float32) - mean.astype(jnp.float32) * gain
        y = x.astype(jnp.float32) * _like(gain, x) + _like(shift, x)
        return (y if act is None else function(act)(y)).astype(x.dtype)


class _Options(NamedTuple):
    """Statistics over `axes`; if these do not hold the channels, over groups of `size` channels too."""

    axes: tuple[int, ...]
    size: int
    eps: float
    activation: Activation | None

    @property
    def act(self) -> Callable[[Array], Array]:
        return (lambda y: y) if self.activation is None else function(self.activation)

    def mean(self, x: Array) -> Array:
        """The mean over `axes` (kept, of size 1), then over groups: the large array is never split."""
        mean = x.mean(self.axes, keepdims=True)
        if self.size == 1:
            return mean
        split = mean.reshape(*mean.shape[:-1], -1, self.size)
        return jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape).reshape(mean.shape)


def _primal(options: _Options, x: Array, scale: Array, bias: Array) -> Array:
    return _forward(options, x, scale, bias)[0]


def _forward(options: _Options, x: Array, scale: Array, bias: Array):
    y = x.astype(jnp.float32)
    mean = options.mean(y)
    # The seeds' formula, one pass over x; rounding can make it negative.
    variance = jnp.maximum(options.mean(jnp.square(y)) - jnp.square(mean), 0.0)
    inverse = lax.rsqrt(variance + options.eps)
    if options.activation is None:
        # The last operation is a division for the reason that `activations.py` gives.
        deviation = jnp.sqrt(variance + options.eps)
        out = ((y - mean) * scale + bias * deviation) / deviation
    else:
        gain = inverse * scale
        out = options.act(y * gain + (bias - mean * gain))
    return out.astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(options: _Options, kept, g: Array):
    x, mean, inverse, scale, bias = kept
    # Without the barrier XLA's CPU compiler fuses what makes g into every pass below and computes it again.
    x, g = lax.optimization_barrier((x, g))
    if options.axes == (-1,):
        x = late(x, g)  # else x less its mean would be kept beside x
    dtype = x.dtype
    x, g = x.astype(jnp.float32), g.astype(jnp.float32)
    gain = inverse * scale
    y = x * gain + (bias - mean * gain)
    (dy,) = jax.vjp(options.act, y)[1](g)
    if options.axes == (-1,):
        normal = (x - mean) * inverse
        dn = dy * scale
        dx = inverse * (dn - options.mean(dn) - normal * options.mean(dn * normal))
        dscale, dbias = dy * normal, dy
    else:
        # Sums over space per channel serve the parameters and, averaged over groups, the statistics.
        count = x.shape[-3] * x.shape[-2]
        dbias = dy.sum(options.axes, keepdims=True)
        dscale = ((dy * x).sum(options.axes, keepdims=True) - mean * dbias) * inverse
        slope = -jnp.square(inverse) * _group_mean(options, scale * dscale) / count
        shift = -inverse * _group_mean(options, scale * dbias) / count - slope * mean
        dx = dy * gain + x * slope + shift
    return dx.astype(dtype), _sum_to(dscale, scale), _sum_to(dbias, bias)


def _group_mean(options: _Options, x: Array) -> Array:
    return options._replace(axes=()).mean(x)


_normalised: Any = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_normalised.defvjp(_forward, _backward)


def _like(vector: Array, x: Array) -> Array:
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))


def _sum_to(gradient: Array, parameter: Array) -> Array:
    return gradient.sum(tuple(range(gradient.ndim - 1)), keepdims=True).reshape(parameter.shape)
