"""Layer and group normalisation over channels-last arrays. Statistics are float32, whatever the input."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LayerNorm(eqx.Module):
    """`y = (x - mean) / sqrt(var + eps) * scale + bias` over the last axis."""

    scale: Float[Array, " channel"]
    bias: Float[Array, " channel"]
    channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, eps: float = 1e-6):
        self.scale, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.channels, self.eps = channels, eps

    def __call__(self, x: Float[Array, "*batch {self.channels}"]) -> Float[Array, "*batch {self.channels}"]:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * _like(self.scale, y) + _like(self.bias, y)).astype(x.dtype)


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
        self, x: Float[Array, "*batch height width {self.channels}"]
    ) -> Float[Array, "*batch height width {self.channels}"]:
        y = x.astype(jnp.float32)
        y = y - self._group_mean(y)
        y = y * jax.lax.rsqrt(self._group_mean(jnp.square(y)) + self.eps)
        return (y * _like(self.scale, y) + _like(self.bias, y)).astype(x.dtype)

    def _group_mean(self, y: Array) -> Array:
        """Mean over space, then over each group, as `*batch 1 1 channel`: `y` itself is never split."""
        mean = y.mean((-3, -2), keepdims=True)
        if self.groups == self.channels:
            return mean
        split = mean.reshape(*mean.shape[:-1], self.groups, self.channels // self.groups)
        return jnp.broadcast_to(split.mean(-1, keepdims=True), split.shape).reshape(mean.shape)


def _like(vector: Array, y: Array) -> Array:
    return vector.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
