"""The plainest form: one `jax.lax.scan` over time, forward and backward."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from slotzoo.ops.linear_scan.planes import Planes, add, join, multiply, multiply_conjugate, split


def forward(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"],
    u: Float[Array, "time batch channel"],
    x0: Float[Array, "batch channel"],
    *,
    planes: Planes,
    reverse: bool,
) -> Float[Array, "time batch channel"]:
    """x_t = a_t x_{t-1} + u_t (x_{t+1} if `reverse`): state in the dtype of `x0`, output in that of `u`."""
    constant = a.ndim == 1

    def step(x, inputs):
        u_t, a_t = inputs
        decay = _rows(a if constant else a_t, x0.dtype, planes)
        x = add(multiply(decay, x), split(u_t.astype(x0.dtype), planes))
        return x, join(x).astype(u.dtype)

    _, x = lax.scan(step, split(x0, planes), (u, None if constant else a), reverse=reverse)
    return x


def backward(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"],
    x: Float[Array, "time batch channel"],
    x0: Float[Array, "batch channel"],
    gy: Float[Array, "time batch channel"],
    *,
    planes: Planes,
    reverse: bool,
) -> tuple[
    Float[Array, "channel"] | Float[Array, "time rows channel"],
    Float[Array, "time batch channel"],
    Float[Array, "batch channel"],
]:
    """Cotangents of (a, u, x0), given the output `x` and its cotangent `gy`.

    The carry c is the cotangent of the state that enters step t: g_t = gy_t + c, du_t = g_t,
    da_t = conj(x_{t-1}) g_t, and c = conj(a_t) g_t goes on to step t-1; what is left at the end is dx0.
    """
    constant = a.ndim == 1
    entering = previous(x, x0.astype(x.dtype), reverse=reverse)

    def step(carry, inputs) -> Any:
        c, total = carry
        gy_t, x_in, a_t = inputs
        decay = _rows(a if constant else a_t, x0.dtype, planes)
        g = add(split(gy_t.astype(x0.dtype), planes), c)
        da = multiply_conjugate(split(x_in.astype(x0.dtype), planes), g)
        if constant:
            total = add(total, da)
        # Rows that share one decay add up its cotangent.
        da_t = join(da).sum(axis=0, keepdims=True) if not constant and a.shape[1] == 1 else join(da)
        du_t = join(g).astype(gy.dtype)
        return (multiply_conjugate(decay, g), total), (du_t,) if constant else (du_t, da_t)

    zero = tuple(jnp.zeros_like(part) for part in split(x0, planes))
    inputs = (gy, entering, None if constant else a)
    (dx0, total), outputs = lax.scan(step, (zero, zero), inputs, reverse=not reverse)
    da = join(total).sum(axis=0) if constant else outputs[1]
    return da.astype(a.dtype), outputs[0], join(dx0)


def previous(
    x: Float[Array, "time batch channel"], x0: Float[Array, "batch channel"], *, reverse: bool
) -> Float[Array, "time batch channel"]:
    """The state that enters each step: x_{t-1}, and x0 at the first step (the last if `reverse`)."""
    parts = [x[1:], x0[None]] if reverse else [x0[None], x[:-1]]
    return jnp.concatenate(parts, axis=0)


def decay_cotangent(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"],
    x: Float[Array, "time batch channel"],
    x0: Float[Array, "batch channel"],
    g: Float[Array, "time batch channel"],
    *,
    planes: Planes,
    reverse: bool,
) -> Float[Array, "channel"] | Float[Array, "time rows channel"]:
    """da_t = conj(x_{t-1}) g_t, summed over what shares a decay, for those that have all g_t already.

    The first step is apart, so that no shifted copy of x is made.
    """

    def product(entering: Array, g: Array) -> Array:
        da = join(multiply_conjugate(*(split(v.astype(x0.dtype), planes) for v in (entering, g))))
        if a.ndim == 1:
            return da.sum(axis=(0, 1))
        return da.sum(axis=1, keepdims=True) if a.shape[1] == 1 else da

    if reverse:
        parts = [product(x[1:], g[:-1]), product(x0[None], g[-1:])]
    else:
        parts = [product(x0[None], g[:1]), product(x[:-1], g[1:])]
    da = parts[0] + parts[1] if a.ndim == 1 else jnp.concatenate(parts, axis=0)
    return da.astype(a.dtype)


def _rows(a: Float[Array, "*rows channel"], dtype, planes: Planes) -> tuple[Array, ...]:
    return split(jnp.atleast_2d(a).astype(dtype), planes)
