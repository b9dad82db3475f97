"""Arithmetic on states kept as real planes: one plane for a real state, two (re, im) for a complex one.

An array of planes carries them as halves of its last axis, `[re | im]`, so that it goes through convolutions,
casts and kernels as any real array does. Here the halves are taken apart into a tuple and put together again.
"""

from typing import Literal

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


Planes = Literal["real", "complex"]
Parts = tuple[Array, ...]


def count(planes: Planes) -> int:
    """How many planes the last axis holds."""
    return 2 if planes == "complex" else 1


def state_dtype(u: Float[Array, "..."]) -> DTypeLike:
    """What the state is kept in: float32 (1 - |a| is often below bfloat16's resolution), float64 for float64."""
    return jnp.float64 if u.dtype == jnp.float64 else jnp.float32


def split(x: Float[Array, "*axes channel"], planes: Planes) -> Parts:
    """The planes of `x`, each a contiguous part of the last axis."""
    if planes == "real":
        return (x,)
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def join(parts: Parts) -> Float[Array, "*axes channel"]:
    """The inverse of `split`."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def multiply(a: Parts, b: Parts) -> Parts:
    """The product a b, plane by plane."""
    if len(a) == 1:
        return (a[0] * b[0],)
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def multiply_conjugate(a: Parts, b: Parts) -> Parts:
    """The product conj(a) b: what a cotangent is multiplied by on its way back through a b."""
    if len(a) == 1:
        return (a[0] * b[0],)
    return a[0] * b[0] + a[1] * b[1], a[0] * b[1] - a[1] * b[0]


def add(a: Parts, b: Parts) -> Parts:
    """The sum a + b."""
    return tuple(x + y for x, y in zip(a, b, strict=True))
