"""The ConvLSTM (Shi et al., NeurIPS 2015) as ConvSSM has it: no bias, no peepholes.

    i, f, o, g = split(A * [u_t, h_{t-1}])
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)        h_t = sigmoid(o) tanh(c_t)

`*` is a convolution over space. The part of it that reads the inputs is one convolution over all frames; only the
part that reads h is inside the loop. In the backward pass the loop carries no gradient of the kernel either: from
the stored h all gates are computed again at once, and their cotangents, which the reverse loop gives, reach the
kernel through that one large convolution. (XLA's CPU compiler is forty times slower at a kernel's gradient in a
loop.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.conv import conv2d
from slotzoo.nn.recurrence import AbstractRecurrence


class ConvLSTM(AbstractRecurrence):
    """One ConvLSTM layer. A state is `[c | h]`, `planes` channels; what comes out is h."""

    kernel: Float[Array, "kernel kernel both gates"]
    channels: int = eqx.field(static=True)
    planes: int = eqx.field(static=True)

    def __init__(self, channels: int, *, kernel_size: int = 3, key: PRNGKeyArray):
        """He-normal kernel over inputs and h, both of `channels` channels."""
        init = jax.nn.initializers.he_normal()
        self.kernel = init(key, (kernel_size, kernel_size, 2 * channels, 4 * channels), jnp.float32)
        self.channels, self.planes = channels, 2 * channels

    def prepare(self) -> None:
        """Nothing depends on the parameters alone."""
        return None

    def __call__(
        self,
        u: Float[Array, "time height width {self.channels}"],
        state: Float[Array, "height width {self.planes}"] | None = None,
        *,
        prepared: None = None,
    ) -> tuple[Float[Array, "time height width {self.channels}"], Float[Array, "height width {self.planes}"]]:
        """All outputs, one after the other, and the state after the last one. `state` is zero if None."""
        state = self.init_state(*u.shape[1:3]) if state is None else state.astype(jnp.float32)
        if not len(u):
            return u, state
        kernel = self.kernel.astype(u.dtype)
        driven = conv2d(u, kernel[:, :, : self.channels])
        recurrent = kernel[:, :, self.channels :]
        # Values only; gradients take the way below.
        c, h = _unrolled(*jax.tree.map(lax.stop_gradient, (driven, recurrent, state)))
        before = jnp.concatenate([jnp.split(state, 2, -1)[1][None], h[:-1]])
        gates = driven + conv2d(lax.stop_gradient(before).astype(u.dtype), recurrent)
        c, h = _through_time(gates, state, lax.stop_gradient(recurrent), c, h)
        return h.astype(u.dtype), jnp.concatenate([c[-1], h[-1]], -1)

    def step(
        self,
        u: Float[Array, "height width {self.channels}"],
        state: Float[Array, "height width {self.planes}"],
        *,
        prepared: None = None,
    ) -> tuple[Float[Array, "height width {self.channels}"], Float[Array, "height width {self.planes}"]]:
        """One output and the next state."""
        c, h = jnp.split(state, 2, -1)
        # Two convolutions of half as many inputs: XLA's CPU compiler runs these on all cores (`ops.convolution`), the
        # joined one on one, and it need not be joined. A frame of a rollout takes four fifths to two thirds.
        gates = conv2d(u, self.kernel[:, :, : self.channels])
        c, h = _cell(gates + conv2d(h.astype(u.dtype), self.kernel[:, :, self.channels :]), c)
        return h.astype(u.dtype), jnp.concatenate([c, h], -1)


def _cell(gates: Array, c: Array) -> tuple[Array, Array]:
    i, f, o, g = jnp.split(gates.astype(jnp.float32), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def _unrolled(driven: Array, recurrent: Array, state: Array) -> tuple[Array, Array]:
    """All c and h."""

    def body(carry, driven):
        c, h = carry
        c, h = _cell(driven + conv2d(h.astype(driven.dtype), recurrent), c)
        return (c, h), (c, h)

    c, h = jnp.split(state, 2, -1)
    return lax.scan(body, (c, h), driven)[1]


def _primal(gates: Array, state: Array, recurrent: Array, c: Array, h: Array) -> tuple[Array, Array]:
    return c, h


def _forward(gates: Array, state: Array, recurrent: Array, c: Array, h: Array):
    return (c, h), (gates, state, recurrent, c)


def _backward(residuals, cotangents):
    """Backpropagation through time: the cotangents of all gates, and of the state before the first."""
    gates, state, recurrent, c = residuals
    before = jnp.concatenate([jnp.split(state, 2, -1)[0][None], c[:-1]])
    # What takes a cotangent of the gates back to h: a convolution with the kernel turned round.
    back = jnp.flip(recurrent, (0, 1)).swapaxes(2, 3)
    # "SAME" has the larger half of an even kernel's padding behind; on the way back it is in front.
    high, wide = recurrent.shape[:2]
    padding = ((high // 2, (high - 1) // 2), (wide // 2, (wide - 1) // 2))

    def body(carry, now):
        dc_next, dh_next = carry
        gates, c, dc, dh = now
        pull = jax.vjp(_cell, gates, c)[1]
        dgates, dc = pull((dc + dc_next, dh + dh_next))
        return (dc, conv2d(dgates, back, padding=padding).astype(jnp.float32)), dgates

    zero = jnp.zeros_like(c[0])
    (dc, dh), dgates = lax.scan(body, (zero, zero), (gates, before, *cotangents), reverse=True)
    return (
        dgates,
        jnp.concatenate([dc, dh], -1),
        jnp.zeros_like(recurrent),
        jnp.zeros_like(c),
        jnp.zeros_like(c),
    )


_through_time = jax.custom_vjp(_primal)
_through_time.defvjp(_forward, _backward)
