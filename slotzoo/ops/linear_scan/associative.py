"""The portable parallel form: `jax.lax.associative_scan` over pairs (a, x) of real planes."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from slotzoo.ops.linear_scan.planes import Planes, add, join, multiply, multiply_conjugate, split
from slotzoo.ops.linear_scan.reference import previous


def forward(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"],
    u: Float[Array, "time batch channel"],
    x0: Float[Array, "batch channel"],
    *,
    planes: Planes,
    reverse: bool,
) -> Float[Array, "time batch channel"]:
    """x_t = a_t x_{t-1} + u_t (x_{t+1} if `reverse`) in log2(time) passes; dtypes as in the reference."""
    decay = _over_time(a, u.shape[0], x0.dtype)
    first = -1 if reverse else 0
    entering = join(multiply(split(decay[first], planes), split(x0, planes)))
    u_ = u.astype(x0.dtype).at[first].add(entering)
    return _scan(decay, u_, planes, reverse).astype(u.dtype)


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
    """Cotangents of (a, u, x0): one more scan, the other way, with conj(a) moved on by one step.

    g_t = gy_t + conj(a_{t+1}) g_{t+1}. Differentiating the forward's recursion instead moves twice the bytes.
    """
    decay = _over_time(a, x.shape[0], x0.dtype)
    re_im = split(decay, planes)
    conjugate = join((re_im[0], *(-part for part in re_im[1:])))
    # The decay that the last step is entered with multiplies nothing: no step comes after it.
    ones = jnp.ones_like(conjugate[:1])
    shifted = jnp.concatenate([ones, conjugate[:-1]] if reverse else [conjugate[1:], ones], axis=0)
    g = _scan(shifted, gy.astype(x0.dtype), planes, not reverse)

    entering = previous(x, x0.astype(x.dtype), reverse=reverse).astype(x0.dtype)
    da = join(multiply_conjugate(split(entering, planes), split(g, planes)))
    if a.ndim == 1:
        da = da.sum(axis=(0, 1))
    elif a.shape[1] == 1:
        da = da.sum(axis=1, keepdims=True)
    first = -1 if reverse else 0
    dx0 = join(multiply_conjugate(split(decay[first], planes), split(g[first], planes)))
    return da.astype(a.dtype), g.astype(gy.dtype), dx0


def _scan(
    decay: Float[Array, "time rows channel"],
    u: Float[Array, "time batch channel"],
    planes: Planes,
    reverse: bool,
) -> Float[Array, "time batch channel"]:
    n = len(split(u[0], planes))

    def combine(first, second):
        a1, x1, a2, x2 = first[:n], first[n:], second[:n], second[n:]
        return (*multiply(a2, a1), *add(multiply(a2, x1), x2))

    elements = (*split(decay, planes), *split(u, planes))
    return join(lax.associative_scan(combine, elements, reverse=reverse)[n:])


def _over_time(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"], length: int, dtype
) -> Float[Array, "time rows channel"]:
    a = a.astype(dtype)
    return jnp.broadcast_to(a, (length, 1, *a.shape)) if a.ndim == 1 else a
