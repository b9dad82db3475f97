"""Chunk after chunk of time: only the state at the start of each chunk is kept for the backward pass."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from slotzoo.ops.selective_scan import reference


CHUNK = 32  # time steps whose states are computed again in the backward pass


def forward(
    u: Float[Array, "time channel"],
    delta: Float[Array, "time channel"],
    a: Inexact[Array, "state channel"],
    b: Inexact[Array, "_ state _"],
    c: Inexact[Array, "_ state _"],
    h0: Inexact[Array, "state channel"],
) -> tuple[Float[Array, "time channel"], Inexact[Array, "state channel"]]:
    """As `reference.forward`."""
    time = u.shape[0]
    chunks = -(-time // CHUNK)
    if chunks == 1:
        return reference.forward(u, delta, a, b, c, h0)

    def cut(x):
        # A step of length zero leaves the state as it is: the last chunk is filled up with these.
        padded = jnp.pad(x, ((0, chunks * CHUNK - time),) + ((0, 0),) * (x.ndim - 1))
        return padded.reshape(chunks, CHUNK, *x.shape[1:])

    @jax.checkpoint
    def chunk(h, inputs):
        u_, delta_, b_, c_ = inputs
        y, h = reference.forward(u_, delta_, a, b if b_ is None else b_, c if c_ is None else c_, h)
        return h, y

    moving = tuple(None if m.shape[0] == 1 else cut(m) for m in (b, c))
    h, y = lax.scan(chunk, h0, (cut(u), cut(delta), *moving))
    return y.reshape(chunks * CHUNK, -1)[:time], h
