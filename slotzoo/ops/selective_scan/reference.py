"""The plainest form: one `jax.lax.scan` over time, derivatives by JAX.

Here and in the other implementations arrays lie as the loops want them: the state is (state, channel), so that sums
over the state run along the slower axis, and B, C are (time or 1, state, group).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact


def forward(
    u: Float[Array, "time channel"],
    delta: Float[Array, "time channel"],
    a: Inexact[Array, "state channel"],
    b: Inexact[Array, "_ state _"],
    c: Inexact[Array, "_ state _"],
    h0: Inexact[Array, "state channel"],
) -> tuple[Float[Array, "time channel"], Inexact[Array, "state channel"]]:
    """y_t = C_t h_t and the last h, with h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t.

    The state is in the dtype of `h0`, `y` in that of `u`.
    """

    def one(h, inputs):
        u_t, delta_t, b_t, c_t = inputs
        y, h = step(u_t, delta_t, a, b[0] if b_t is None else b_t, c[0] if c_t is None else c_t, h)
        return h, y.astype(u.dtype)

    moving = tuple(None if m.shape[0] == 1 else m for m in (b, c))
    h, y = lax.scan(one, h0, (u, delta, *moving))
    return y, h


def step(
    u: Float[Array, "channel"],
    delta: Float[Array, "channel"],
    a: Inexact[Array, "state channel"],
    b: Inexact[Array, "state _"],
    c: Inexact[Array, "state _"],
    h: Inexact[Array, "state channel"],
) -> tuple[Float[Array, "channel"], Inexact[Array, "state channel"]]:
    """One step of the recurrence: (y, h), y in the real dtype of `h`."""
    real = jnp.finfo(h.dtype).dtype
    delta = delta.astype(real)
    entered = (delta * u.astype(real)).astype(h.dtype)[None]
    h = jnp.exp(delta.astype(h.dtype)[None] * a) * h + entered * spread(b, u.shape[0])
    return read_out((h * spread(c, u.shape[0])).sum(axis=0)), h


def read_out(y: Inexact[Array, "*axes"]) -> Float[Array, "*axes"]:
    """A complex state stands for itself and its conjugate: together twice the real part."""
    return 2 * y.real if jnp.iscomplexobj(y) else y


def spread(b: Inexact[Array, "*axes group"], channels: int) -> Inexact[Array, "*axes _"]:
    """Each group's values for all of its channels; one group is left to broadcast."""
    groups = b.shape[-1]
    return b if groups in (1, channels) else jnp.repeat(b, channels // groups, axis=-1)


def gather(x: Inexact[Array, "*axes channel"], groups: int) -> Inexact[Array, "*axes group"]:
    """The sum over the channels of each group: what `spread` is in reverse."""
    return x.reshape(*x.shape[:-1], groups, -1).sum(axis=-1)
