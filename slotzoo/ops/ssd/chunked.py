"""The state-space dual: matrix products within chunks of time, a recurrence of states between them.

Within a chunk the scan is attention with decays for a mask: y_t = sum_{s<=t} (C_t . B_s) exp(sum_{s<r<=t} dt_r A)
dt_s x_s, plus what the state that entered the chunk still gives. So nearly all work is in matrix products, and a
clip that is one chunk long needs no state at all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def forward(
    x: Float[Array, "time head dim"],
    dt: Float[Array, "time head"],
    a: Float[Array, "head"],
    b: Float[Array, "time group state"],
    c: Float[Array, "time group state"],
    h0: Float[Array, "head dim state"] | None,
    *,
    chunk: int,
) -> tuple[Float[Array, "time head dim"], Float[Array, "head dim state"]]:
    """As `reference.forward`, `chunk` steps at a time; `h0` None is a state of zeros that costs nothing.

    One chunk after the other; the backward pass computes each chunk again from the state that entered it.
    """
    time = x.shape[0]

    def one(h, inputs):
        x_, dt_, b_, c_ = inputs
        local = _within(x_, dt_, a, b_, c_)
        y, last = local.y, local.last
        if h is not None:
            y = y + _carried(c_, h, local.kept)
            last = last + local.kept[-1][:, None, None] * h
        return last, y

    if time <= chunk:
        h, y = one(h0, (x, dt, b, c))
        return y, h
    if h0 is None:
        h0 = jnp.zeros((*x.shape[1:], b.shape[2]), dt.dtype)
    h, y = lax.scan(jax.checkpoint(one), h0, tuple(_cut(v, chunk) for v in (x, dt, b, c)))
    return y.reshape(-1, *x.shape[1:])[:time], h


def forward_parallel(
    x: Float[Array, "time head dim"],
    dt: Float[Array, "time head"],
    a: Float[Array, "head"],
    b: Float[Array, "time group state"],
    c: Float[Array, "time group state"],
    h0: Float[Array, "head dim state"] | None,
    *,
    chunk: int,
) -> tuple[Float[Array, "time head dim"], Float[Array, "head dim state"]]:
    """As `forward`, with all chunks at once: their states are joined by a `jax.lax.associative_scan`.

    Few, large products, for a GPU; memory for the states and masks of all chunks.
    """
    time = x.shape[0]
    if time <= chunk:
        return forward(x, dt, a, b, c, h0, chunk=chunk)
    x_, dt_, b_, c_ = (_cut(v, chunk) for v in (x, dt, b, c))
    local = jax.vmap(_within, in_axes=(0, 0, None, 0, 0))(x_, dt_, a, b_, c_)

    def combine(first, second):
        (a1, h1), (a2, h2) = first, second
        return a2 * a1, a2 * h1 + h2

    over = local.kept[:, -1, :, None, None]
    first = jnp.zeros_like(local.last[0]) if h0 is None else h0
    _, left = lax.associative_scan(combine, (over, local.last.at[0].add(over[0] * first)))
    entering = jnp.concatenate([first[None], left[:-1]])
    y = local.y + jax.vmap(_carried)(c_, entering, local.kept)
    return y.reshape(-1, *x.shape[1:])[:time], left[-1]


class _Local(NamedTuple):
    """What a chunk makes of a state of zeros, and the share of the state before it that is left at each step."""

    y: Float[Array, "*chunks time head dim"]
    last: Float[Array, "*chunks head dim state"]
    kept: Float[Array, "*chunks time head"]


def _within(
    x: Float[Array, "time head dim"],
    dt: Float[Array, "time head"],
    a: Float[Array, "head"],
    b: Float[Array, "time group state"],
    c: Float[Array, "time group state"],
) -> _Local:
    """The scan over one chunk. Products of matrices in the dtype of `x`, everything else in that of `dt`."""
    time, heads, dim = x.shape
    groups, state = b.shape[1:]
    real = dt.dtype

    coarse, fine = _logs(dt * a[None])
    between = (coarse[:, None] - coarse[None]) + (fine[:, None] - fine[None])
    past = jnp.tril(jnp.ones((time, time), bool))[..., None]
    # Masked before the exponential: what lies in the future would overflow, and its gradient be NaN.
    mask = jnp.exp(jnp.where(past, between, -jnp.inf)).reshape(time, time, groups, heads // groups)
    weights = _product("tgn,sgn->gts", x.dtype, real, c, b)[:, None] * mask.transpose(2, 3, 0, 1)

    entered = (x.astype(real) * dt[..., None]).reshape(time, groups, heads // groups, dim)
    y = _product("ghts,sghp->tghp", x.dtype, real, weights, entered)
    until_end = jnp.exp((coarse[-1:] - coarse) + (fine[-1:] - fine))
    left = entered * until_end.reshape(time, groups, heads // groups, 1)
    last = _product("sghp,sgn->ghpn", x.dtype, real, left, b)
    return _Local(y.reshape(x.shape), last.reshape(heads, dim, state), jnp.exp(coarse + fine))


def _carried(
    c: Float[Array, "time group state"], h: Float[Array, "head dim state"], kept: Float[Array, "time head"]
) -> Float[Array, "time head dim"]:
    """What the state that entered a chunk gives to its outputs."""
    groups = c.shape[1]
    grouped = h.reshape(groups, -1, *h.shape[1:])
    y = _product("tgn,ghpn->tghp", c.dtype, h.dtype, c, grouped)
    return kept[..., None] * y.reshape(*kept.shape, -1)


def _product(axes: str, dtype: Any, sums: Any, *factors: Array) -> Array:
    return jnp.einsum(axes, *(f.astype(dtype) for f in factors), preferred_element_type=sums)


def _cut(x: Float[Array, "time *rest"], chunk: int) -> Float[Array, "chunks chunk *rest"]:
    """In chunks; the last one is filled up with steps of length zero, which leave the state as it is."""
    chunks = -(-x.shape[0] // chunk)
    padded = jnp.pad(x, ((0, chunks * chunk - x.shape[0]),) + ((0, 0),) * (x.ndim - 1))
    return padded.reshape(chunks, chunk, *x.shape[1:])


GRAIN = 64.0  # coarse parts are multiples of 1 / GRAIN
LEAST = -1024.0  # of one step's logarithm: exp is 0 long before


def _logs(log_decay: Float[Array, "time head"]) -> tuple[Float[Array, "time head"], Float[Array, "time head"]]:
    """Sums of logarithms up to each step, in two parts whose differences stay exact.

    After a step that forgets everything a plain sum is so large that the small logarithms behind it are rounded
    away. Multiples of 1/64 sum exactly up to 2^18; the rests, below 1/128, sum to so little that nothing is lost.
    """
    log_decay = jnp.maximum(log_decay, LEAST)
    coarse = lax.stop_gradient(jnp.round(log_decay * GRAIN) / GRAIN)
    return jnp.cumsum(coarse, axis=0), jnp.cumsum(log_decay - coarse, axis=0)
