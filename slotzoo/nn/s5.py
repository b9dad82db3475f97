"""The S5 layer (Smith, Warrington, Linderman, ICLR 2023): a diagonal state-space model over vectors.

    x_t = A x_{t-1} + B u_t        y_t = gate(2 Re(C x_t) + D u_t)

A complex array is carried as the halves `[re | im]` of its last axis. Axes between time and channels are places
with a state each, so that the layer also serves maps: there it is ConvS5 with 1 x 1 kernels.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.activations import activation
from slotzoo.nn.discretise import Method, discretise
from slotzoo.nn.hippo import Hippo, hippo, input_planes, log_steps, output_planes
from slotzoo.nn.linear import Linear
from slotzoo.nn.recurrence import AbstractRecurrence
from slotzoo.ops import linear_scan


OutputInit = Literal["trunc_standard_normal", "lecun_normal", "complex_normal"]
Gate = Literal["full_glu", "half_glu1", "half_glu2", "gelu", "none"]


class S5Discretised(NamedTuple):
    """What the recurrence is computed with: `[Re | Im]` of the decay, `B` and the readout `[2 Re C; -2 Im C]`."""

    decay: Float[Array, " planes"]
    b: Float[Array, "channel planes"]
    c: Float[Array, "direction planes channel"]


class S5(AbstractRecurrence):
    """One S5 layer. `planes` is the width of a state, twice its number of complex numbers."""

    lambda_re: Float[Array, " state"]
    lambda_im: Float[Array, " state"]
    log_step: Float[Array, " state"]
    b: Float[Array, "channel planes"]
    c: Float[Array, "direction planes channel"]
    d: Float[Array, " channel"]
    out1: Linear | None
    out2: Linear | None
    channels: int = eqx.field(static=True)
    planes: int = eqx.field(static=True)
    discretisation: Method = eqx.field(static=True)
    conjugate: bool = eqx.field(static=True)
    bidirectional: bool = eqx.field(static=True)
    clip_eigenvalues: bool = eqx.field(static=True)
    step_rescale: float = eqx.field(static=True)
    gate: Gate = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        ssm_size: int,
        *,
        blocks: int = 1,
        discretisation: Method = "zoh",
        conjugate: bool = True,
        bidirectional: bool = False,
        output_init: OutputInit = "trunc_standard_normal",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        clip_eigenvalues: bool = False,
        step_rescale: float = 1.0,
        gate: Gate = "half_glu1",
        key: PRNGKeyArray,
    ):
        """HiPPO-LegS eigenvalues in `blocks` copies, LeCun-normal B in its coordinates, normal D.

        - `conjugate`: keep one of each pair of conjugate states, and double what is read; else all `ssm_size`.
        - `bidirectional`: a second scan runs from the end, with a C of its own (no `step` then).
        - `output_init`: of C: rows or the whole LeCun-normal in HiPPO's coordinates, or normal in the diagonal ones.
        - `step_rescale`: multiplies the time steps, as for data sampled at another rate.
        - `gate`, with g = gelu: "half_glu1" `g(y) sigmoid(out2 g(y))` (ConvSSM's), "half_glu2"
          `y sigmoid(out2 g(y))`, "full_glu" `out1 g(y) sigmoid(out2 g(y))`, "gelu" `g(y)`, "none" `y`.
        """
        b_key, c_key, d_key, step_key, gate_key_1, gate_key_2 = jax.random.split(key, 6)
        basis = hippo(ssm_size, blocks, conjugate=conjugate)
        states = len(basis.eigenvalues)
        self.lambda_re = jnp.asarray(np.real(basis.eigenvalues), jnp.float32)
        self.lambda_im = jnp.asarray(np.imag(basis.eigenvalues), jnp.float32)
        self.log_step = log_steps(states, dt_min, dt_max, key=step_key)
        # The authors' layout, whose first axis is taken for the fan-in.
        raw = jax.nn.initializers.lecun_normal()(b_key, (ssm_size, channels), jnp.float32)
        self.b = jnp.concatenate(input_planes(raw, basis)).T
        directions = jax.random.split(c_key, 2 if bidirectional else 1)
        self.c = jnp.stack([_output(output_init, channels, ssm_size, states, basis, key=k) for k in directions])
        self.d = jax.random.normal(d_key, (channels,))
        glu = gate in ("full_glu", "half_glu1", "half_glu2")
        self.out1 = Linear(channels, channels, key=gate_key_1) if gate == "full_glu" else None
        self.out2 = Linear(channels, channels, key=gate_key_2) if glu else None
        self.channels, self.planes = channels, 2 * states
        self.discretisation, self.conjugate, self.bidirectional = discretisation, conjugate, bidirectional
        self.clip_eigenvalues, self.step_rescale, self.gate = clip_eigenvalues, step_rescale, gate

    def discretise(self) -> S5Discretised:
        """The recurrence's coefficients in float32; see `slotzoo.nn.discretise`."""
        a_re, a_im, gain_re, gain_im = discretise(
            self.lambda_re,
            self.lambda_im,
            self.log_step,
            method=self.discretisation,
            clip=self.clip_eigenvalues,
            rescale=self.step_rescale,
        )
        b_re, b_im = jnp.split(self.b.astype(jnp.float32), 2, -1)
        c_re, c_im = jnp.split(self.c.astype(jnp.float32), 2, -2)
        gain_re, gain_im = gain_re[None, :], gain_im[None, :]
        b = [gain_re * b_re - gain_im * b_im, gain_re * b_im + gain_im * b_re]
        c = jnp.concatenate([c_re, -c_im], -2)
        return S5Discretised(
            jnp.concatenate([a_re, a_im]), jnp.concatenate(b, -1), 2 * c if self.conjugate else c
        )

    def prepare(self) -> S5Discretised:
        """The discretised parameters, matrices in the dtype of the weights."""
        matrices = self.discretise()
        return matrices._replace(b=matrices.b.astype(self.b.dtype), c=matrices.c.astype(self.c.dtype))

    def __call__(
        self,
        u: Float[Array, "time *space {self.channels}"],
        state: Float[Array, "*space {self.planes}"] | None = None,
        *,
        prepared: S5Discretised | None = None,
    ) -> tuple[Float[Array, "time *space {self.channels}"], Float[Array, "*space {self.planes}"]]:
        """All outputs, parallel over time, and the state after the last one (of the scan that runs forwards)."""
        matrices = self.discretise() if prepared is None else prepared
        state = jnp.zeros((*u.shape[1:-1], self.planes)) if state is None else state
        driven = u @ matrices.b.astype(u.dtype)
        x = linear_scan(matrices.decay, driven, state, planes="complex")
        y = x @ matrices.c[0].astype(u.dtype)
        if self.bidirectional:
            back = linear_scan(matrices.decay, driven, planes="complex", reverse=True)
            y = y + back @ matrices.c[1].astype(u.dtype)
        return self._gated(y, u), x[-1].astype(jnp.float32) if len(x) else state

    def step(
        self,
        u: Float[Array, "*space {self.channels}"],
        state: Float[Array, "*space {self.planes}"],
        *,
        prepared: S5Discretised | None = None,
    ) -> tuple[Float[Array, "*space {self.channels}"], Float[Array, "*space {self.planes}"]]:
        """One output and the next state. **Raises** `ConfigError` for a layer that also runs backwards."""
        if self.bidirectional:
            raise ConfigError("an S5 layer with bidirectional=True sees the future: it cannot go step by step.")
        matrices = self.discretise() if prepared is None else prepared
        places = (1,) * (u.ndim - 1)
        a_re, a_im = (v.reshape(*places, -1) for v in jnp.split(matrices.decay, 2))
        x_re, x_im = jnp.split(state, 2, -1)
        turned = jnp.concatenate([a_re * x_re - a_im * x_im, a_re * x_im + a_im * x_re], -1)
        state = turned + (u @ matrices.b.astype(u.dtype)).astype(jnp.float32)
        return self._gated(state.astype(u.dtype) @ matrices.c[0].astype(u.dtype), u), state

    def _gated(self, y: Array, u: Array) -> Array:
        y = y + self.d.astype(u.dtype).reshape((1,) * (u.ndim - 1) + (-1,)) * u
        if self.gate == "none":
            return y
        g = activation("gelu")(y)
        if self.out2 is None:
            return g
        gates = jax.nn.sigmoid(self.out2(g))
        if self.out1 is not None:
            return self.out1(g) * gates
        return (y if self.gate == "half_glu2" else g) * gates


def _output(
    kind: OutputInit, channels: int, size: int, states: int, basis: Hippo, *, key: PRNGKeyArray
) -> Array:
    """C of one direction as planes."""
    if kind == "complex_normal":
        return 0.5**0.5 * jax.random.normal(key, (2 * states, channels))
    # The draws are complex; drawn row by row the fan-in is that of a row, else that of the whole.
    fan_in = size if kind == "trunc_standard_normal" else size * channels
    std = fan_in**-0.5 / 0.87962566103423978
    re, im = std * jax.random.truncated_normal(key, -2, 2, (2, channels, size))
    (re_re, re_im), (im_re, im_im) = output_planes(re, basis), output_planes(im, basis)
    return jnp.concatenate([re_re - im_im, re_im + im_re], -1).T
