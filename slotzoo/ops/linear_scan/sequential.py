"""The fastest form on a CPU: a loop over time that reads and writes its arrays in place.

The same steps as the reference, written so that XLA's CPU compiler moves less memory: slices are taken from the
arrays where they lie (`lax.scan` under `vmap` first transposes them to put time in front, and a shifted copy of
x is one more pass), the planes are written one by one (a concatenation inside a loop is not vectorised), and
the cotangent of a constant decay is summed over rows at each step (a sum as large as the state is slower).

"auto" takes it on a CPU because forward + backward it measures fastest there from 16 to 1024 steps, and under `vmap`
forward too (`experiments/results/linear_scan_cpu.json`; forward alone without it, the reference is faster). Forward +
backward, 256 rows of 16 complex channels, against `lax.associative_scan` on complex64 under AD: 2.5 times faster at
300 steps, 2.4 times at 1024, with less than a three-hundredth of the temporary memory; the associative form under our
VJP takes about as long as that.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from slotzoo.ops.linear_scan.planes import Parts, Planes, add, count, join, multiply, multiply_conjugate, split


def forward(
    a: Float[Array, "channel"] | Float[Array, "time rows channel"],
    u: Float[Array, "time batch channel"],
    x0: Float[Array, "batch channel"],
    *,
    planes: Planes,
    reverse: bool,
) -> Float[Array, "time batch channel"]:
    """As `reference.forward`."""
    length = u.shape[0]
    read, write = _access(planes, x0.dtype)

    def step(s, carry):
        x, out = carry
        t = length - 1 - s if reverse else s
        x = add(multiply(_decay(a, t, read), x), read(u, t))
        return x, write(out, x, t)

    _, x = lax.fori_loop(0, length, step, (split(x0, planes), jnp.zeros_like(u)))
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
    """As `reference.backward`."""
    length = x.shape[0]
    read, write = _access(planes, x0.dtype)
    start = split(x0, planes)
    shared = a.ndim == 1 or a.shape[1] == 1

    def step(s, carry) -> Any:
        c, da, du = carry
        t = s if reverse else length - 1 - s
        # The state that entered step t; the first step was entered by x0.
        first = t == (length - 1 if reverse else 0)
        source = jnp.minimum(t + 1, length - 1) if reverse else jnp.maximum(t - 1, 0)
        entering = tuple(jnp.where(first, b, p) for b, p in zip(start, read(x, source), strict=True))
        g = add(read(gy, t), c)
        da_t = multiply_conjugate(entering, g)
        if shared:
            da_t = tuple(part.sum(axis=0, keepdims=True) for part in da_t)
        da = add(da, da_t) if a.ndim == 1 else write(da, da_t, t)
        return multiply_conjugate(_decay(a, t, read), g), da, write(du, g, t)

    zero = tuple(jnp.zeros_like(part) for part in split(x0, planes))
    da = tuple(part[:1] for part in zero) if a.ndim == 1 else jnp.zeros(a.shape, x0.dtype)
    dx0, da, du = lax.fori_loop(0, length, step, (zero, da, jnp.zeros_like(gy)))
    if a.ndim == 1:
        da = join(da)[0]
    return da.astype(a.dtype), du, join(dx0)


def _access(planes: Planes, dtype: Any) -> tuple[Any, Any]:
    """Functions that read and write the planes of one time step, in place and in the dtype of the state."""
    parts = count(planes)

    def read(array: Array, t: int | Array) -> Parts:
        width = array.shape[-1] // parts
        size = (1, array.shape[1], width)
        return tuple(lax.dynamic_slice(array, (t, 0, i * width), size)[0].astype(dtype) for i in range(parts))

    def write(array: Array, values: Parts, t: int | Array) -> Array:
        for i, value in enumerate(values):
            update = value[None].astype(array.dtype)
            array = lax.dynamic_update_slice(array, update, (t, 0, i * value.shape[-1]))
        return array

    return read, write


def _decay(a: Array, t: int | Array, read: Any) -> Parts:
    return read(a[None, None] if a.ndim == 1 else a, 0 if a.ndim == 1 else t)
