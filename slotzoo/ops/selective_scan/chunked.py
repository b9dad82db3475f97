"""The portable parallel form: `jax.lax.associative_scan` within chunks of time, one chunk after the other.

Memory for time x channel x state is needed for one chunk only; a single chunk as long as the clip is the plain
associative form. The backward pass computes the states of each chunk again, from the one that entered it, and runs
one more scan the other way. Differentiating the scan's recursion instead takes three times as long.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from slotzoo.ops.selective_scan.reference import contract, doubled, read_out, spread


def forward(
    u: Float[Array, "time channel"],
    delta: Float[Array, "time channel"],
    a: Inexact[Array, "state channel"],
    b: Inexact[Array, "_ state _"],
    c: Inexact[Array, "_ state _"],
    h0: Inexact[Array, "state channel"],
    *,
    chunk: int,
    save: bool,
) -> tuple[Float[Array, "time channel"], Inexact[Array, "state channel"], Inexact[Array, "..."] | None]:
    """As `reference.forward`."""
    length, channels = u.shape

    def one(h, inputs):
        u_, delta_, b_, c_ = inputs
        _, states = _states(h, u_, delta_, a, b if b_ is None else b_)
        y = read_out((states * spread(c if c_ is None else c_, channels)).sum(axis=1))
        return states[-1], (y.astype(u.dtype), h if save else None)

    inputs = tuple(_cut(x, chunk, length) for x in (u, delta, b, c))
    h, (y, entries) = lax.scan(one, h0, inputs)
    return _joined(y, length), h, entries


def backward(
    u: Float[Array, "time channel"],
    delta: Float[Array, "time channel"],
    a: Inexact[Array, "state channel"],
    b: Inexact[Array, "_ state _"],
    c: Inexact[Array, "_ state _"],
    entries: Inexact[Array, "chunk state channel"],
    gy: Float[Array, "time channel"],
    gh: Inexact[Array, "state channel"],
    *,
    chunk: int,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """As `reference.backward`."""
    length, channels = u.shape
    real, wide = jnp.finfo(gh.dtype).dtype, gh.dtype

    def one(carry, inputs) -> Any:
        g, da, db_all, dc_all = carry
        u_, delta_, b_, c_, gy_, h = inputs
        b_, c_ = b if b_ is None else b_, c if c_ is None else c_
        decay, states = _states(h, u_, delta_, a, b_)
        u_, delta_, gy_ = u_.astype(real), delta_.astype(real), doubled(gy_, wide)
        # What a step's cotangent is multiplied by on its way to the step before is the decay of the step after.
        after = jnp.concatenate([decay[1:], jnp.ones_like(decay[:1])])
        read = gy_[:, None] * spread(c_, channels)
        g = _scan(after, read.at[-1].add(g), reverse=True)
        dc = contract(states, gy_, c.shape[2])
        db = contract(g, (delta_ * u_).astype(wide), b.shape[2])
        rate = g * decay * jnp.concatenate([h[None], states[:-1]])
        entered = (g * spread(b_, channels)).sum(axis=1).real
        du = (entered * delta_).astype(u.dtype)
        ddelta = (entered * u_ + (rate * a[None]).sum(axis=1).real).astype(delta.dtype)
        da = da + (rate * delta_.astype(wide)[:, None]).sum(axis=0)
        if db_all is not None:
            db_all, db = db_all + db.sum(axis=0, keepdims=True), None
        if dc_all is not None:
            dc_all, dc = dc_all + dc.sum(axis=0, keepdims=True), None
        return (decay[0] * g[0], da, db_all, dc_all), (du, ddelta, db, dc)

    constant = tuple(jnp.zeros_like(x) if x.shape[0] == 1 else None for x in (b, c))
    inputs = tuple(_cut(x, chunk, length) for x in (u, delta, b, c, gy))
    carry = (gh, jnp.zeros_like(a), *constant)
    (dh0, da, *constant), outputs = lax.scan(one, carry, (*inputs, entries), reverse=True)
    du, ddelta = (_joined(x, length) for x in outputs[:2])
    db, dc = (
        _joined(each, length) if total is None else total
        for total, each in zip(constant, outputs[2:], strict=True)
    )
    return du, ddelta, da, db, dc, dh0


def _states(h: Array, u: Array, delta: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """The decays and the states of a chunk, (time, state, channel), given the state that enters it."""
    delta = delta.astype(h.dtype)
    decay = jnp.exp(delta[:, None] * a[None])
    entered = (delta * u.astype(h.dtype))[:, None] * spread(b, u.shape[1])
    return decay, _scan(decay, entered.at[0].add(decay[0] * h), reverse=False)


def _scan(decay: Array, entered: Array, *, reverse: bool) -> Array:
    def combine(first, second):
        a1, h1 = first
        a2, h2 = second
        return a2 * a1, a2 * h1 + h2

    return lax.associative_scan(combine, (decay, entered), reverse=reverse)[1]


def _cut(x: Array, chunk: int, length: int) -> Array | None:
    """`x` in chunks, (chunks, chunk, ...), or None if it is constant over time.

    The last chunk is filled up with steps of length zero, which leave the state as it is.
    """
    if x.shape[0] == 1 < length:
        return None
    chunks = -(-length // chunk)
    padded = jnp.pad(x, ((0, chunks * chunk - length),) + ((0, 0),) * (x.ndim - 1))
    return padded.reshape(chunks, chunk, *x.shape[1:])


def _joined(x: Array, length: int) -> Array:
    return x.reshape(-1, *x.shape[2:])[:length]
