"""The portable parallel form: `jax.lax.associative_scan` over pairs (a, x).

Two planes are one complex number in here. That compiles two to four times as fast as real planes in the pairs and
runs 1.3 to 2 times as fast on a CPU; it never leaves this file: no module and no kernel sees a complex array.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from slotzoo.ops.linear_scan.planes import Planes
from slotzoo.ops.linear_scan.reference import decay_cotangent


def forward(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"],
    u: Float[Array, "time batch channel"],
    x0: Float[Array, "batch channel"],
    *,
    planes: Planes,
    reverse: bool,
) -> Float[Array, "time batch channel"]:
    """x_t = a_t x_{t-1} + u_t (x_{t+1} if `reverse`) in log2(time) passes; dtypes as in the reference."""
    decay = _number(_over_time(a, u.shape[0], x0.dtype), planes)
    first = -1 if reverse else 0
    entered = _number(u.astype(x0.dtype), planes).at[first].add(decay[first] * _number(x0, planes))
    return _planes(_scan(decay, entered, reverse), planes).astype(u.dtype)


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
    decay = jnp.conj(_number(_over_time(a, x.shape[0], x0.dtype), planes))
    # The last step of the forward pass has no successor: what it is multiplied by meets a zero.
    ones = jnp.ones_like(decay[:1])
    shifted = jnp.concatenate([ones, decay[:-1]] if reverse else [decay[1:], ones], axis=0)
    g = _scan(shifted, _number(gy.astype(x0.dtype), planes), not reverse)
    first = -1 if reverse else 0
    dx0 = _planes(decay[first] * g[first], planes)
    g = _planes(g, planes)
    da = decay_cotangent(a, x, x0, g, planes=planes, reverse=reverse)
    return da, g.astype(gy.dtype), dx0


def _scan(
    decay: Inexact[Array, "time rows width"], u: Inexact[Array, "time batch width"], reverse: bool
) -> Inexact[Array, "time batch width"]:
    def combine(first, second):
        a1, x1 = first
        a2, x2 = second
        return a2 * a1, a2 * x1 + x2

    return lax.associative_scan(combine, (decay, u), reverse=reverse)[1]


def _number(x: Float[Array, "*axes channel"], planes: Planes) -> Inexact[Array, "*axes width"]:
    if planes == "real":
        return x
    half = x.shape[-1] // 2
    return lax.complex(x[..., :half], x[..., half:])


def _planes(x: Inexact[Array, "*axes width"], planes: Planes) -> Float[Array, "*axes channel"]:
    return x if planes == "real" else jnp.concatenate([x.real, x.imag], axis=-1)


def _over_time(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"], length: int, dtype
) -> Float[Array, "time rows channel"]:
    a = a.astype(dtype)
    return jnp.broadcast_to(a, (length, 1, *a.shape)) if a.ndim == 1 else a
