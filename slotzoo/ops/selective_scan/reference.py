"""The plainest form: one `jax.lax.scan` over time, derivatives by JAX.

Here and in the other implementations arrays lie as the loops want them: the state is (state, channel), so that sums
over the state run along the slower axis, and B, C are (time or 1, state, group).

Complex numbers follow JAX's convention for cotangents, in which no factor is conjugated on the way back.
"""

import jax
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
    *,
    chunk: int,
    save: bool,
) -> tuple[Float[Array, "time channel"], Inexact[Array, "state channel"], Inexact[Array, "..."] | None]:
    """y_t = C_t h_t, the last h, and if `save` what entered each `chunk` of steps (here: the first step only).

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, in the dtype of `h0`; `y` in that of `u`.
    """

    def one(h, inputs):
        u_t, delta_t, b_t, c_t = inputs
        y, h = step(u_t, delta_t, a, b[0] if b_t is None else b_t, c[0] if c_t is None else c_t, h)
        return h, y.astype(u.dtype)

    moving = tuple(None if m.shape[0] == 1 < len(u) else m for m in (b, c))
    h, y = lax.scan(one, h0, (u, delta, *moving))
    return y, h, h0[None] if save else None


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
    """Cotangents of (u, delta, a, b, c, h0), given what `forward` saved and the cotangents of y and the last h.

    With g_t = C_t gy_t + exp(delta_{t+1} A) g_{t+1}, the cotangent of h_t: that of B_t is the sum over channels of
    g_t delta_t u_t, of C_t that of gy_t h_t, of delta_t A it is g_t exp(delta_t A) h_{t-1}.
    """

    def run(*args):
        return forward(*args, chunk=chunk, save=False)[:2]

    _, pullback = jax.vjp(run, u, delta, a, b, c, entries[0])
    return pullback((gy, gh))


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


def contract(
    x: Inexact[Array, "*axes state channel"], v: Inexact[Array, "*axes channel"], groups: int
) -> Inexact[Array, "*axes state group"]:
    """`gather(x v)`: x times v, summed over the channels of each group."""
    if groups == 1:
        # As a product of matrices; float32 in full also where the default for these is less.
        return jnp.einsum("...nd,...d->...n", x, v, precision="highest")[..., None]
    return gather(x * v[..., None, :], groups)


def doubled(gy: Float[Array, "*axes"], dtype) -> Inexact[Array, "*axes"]:
    """The cotangent of what `read_out` takes, in the state's dtype."""
    gy = gy.astype(dtype)
    return 2 * gy if jnp.iscomplexobj(gy) else gy
