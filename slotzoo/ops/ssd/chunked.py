"""The state-space dual: matrix products within chunks of time, a recurrence of states between them.

Within a chunk the scan is attention with decays for a mask: y_t = sum_{s<=t} (C_t . B_s) exp(sum_{s<r<=t} dt_r A)
dt_s x_s, plus what the state that entered the chunk still gives. So nearly all work is in matrix products, and a
clip that is one chunk long needs no state at all.
"""

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
    if time <= chunk:
        return within(x, dt, a, b, c, h0)
    chunks = -(-time // chunk)

    def cut(v):
        # A step of length zero leaves the state as it is: the last chunk is filled up with these.
        padded = jnp.pad(v, ((0, chunks * chunk - time),) + ((0, 0),) * (v.ndim - 1))
        return padded.reshape(chunks, chunk, *v.shape[1:])

    @jax.checkpoint
    def one(h, inputs):
        x_, dt_, b_, c_ = inputs
        y, h = within(x_, dt_, a, b_, c_, h)
        return h, y

    if h0 is None:
        h0 = jnp.zeros((*x.shape[1:], b.shape[2]), dt.dtype)
    h, y = lax.scan(one, h0, tuple(cut(v) for v in (x, dt, b, c)))
    return y.reshape(chunks * chunk, *x.shape[1:])[:time], h


def within(
    x: Float[Array, "time head dim"],
    dt: Float[Array, "time head"],
    a: Float[Array, "head"],
    b: Float[Array, "time group state"],
    c: Float[Array, "time group state"],
    h0: Float[Array, "head dim state"] | None,
) -> tuple[Float[Array, "time head dim"], Float[Array, "head dim state"]]:
    """The scan over one chunk, and the state that leaves it. Products in the dtype of `x`, sums in that of `dt`."""
    time, heads, dim = x.shape
    groups, state = b.shape[1:]
    real = dt.dtype

    def product(axes, *factors):
        return jnp.einsum(axes, *(f.astype(x.dtype) for f in factors), preferred_element_type=real)

    coarse, fine = _logs(dt * a[None])
    between = (coarse[:, None] - coarse[None]) + (fine[:, None] - fine[None])
    past = jnp.tril(jnp.ones((time, time), bool))[..., None]
    # Masked before the exponential: what lies in the future would overflow, and its gradient be NaN.
    mask = jnp.exp(jnp.where(past, between, -jnp.inf)).reshape(time, time, groups, heads // groups)
    weights = product("tgn,sgn->gts", c, b)[:, None] * mask.transpose(2, 3, 0, 1)

    entered = (x.astype(real) * dt[..., None]).reshape(time, groups, heads // groups, dim)
    y = product("ghts,sghp->tghp", weights, entered)
    if h0 is not None:
        h = h0.reshape(groups, heads // groups, dim, state)
        kept = jnp.exp(coarse + fine).reshape(time, groups, heads // groups, 1)
        y = y + kept * product("tgn,ghpn->tghp", c, h)
    until_end = jnp.exp((coarse[-1:] - coarse) + (fine[-1:] - fine))
    left = entered * until_end.reshape(time, groups, heads // groups, 1)
    last = product("sghp,sgn->ghpn", left, b).reshape(heads, dim, state)
    if h0 is not None:
        last = last + jnp.exp(coarse[-1] + fine[-1])[:, None, None] * h0
    return y.reshape(x.shape), last


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
