"""The convolutional state-space layer of ConvS5 (Smith et al., NeurIPS 2023, section 3).

    x_t = A x_{t-1} + B * u_t        y_t = head(2 Re(C * x_t), u_t)

`*` is a convolution over space and A is diagonal, so that the recurrence is a pointwise linear scan over time.
A complex array is carried as real planes, the halves `[re | im]` of its channel axis: `B * u` is one real
convolution with twice the outputs, `2 Re(C * x)` one with twice the inputs and the kernel `[2 Re C; -2 Im C]`.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.activations import Activation
from slotzoo.nn.conv import conv2d
from slotzoo.nn.conv_ssm_head import Head, OutputBlock
from slotzoo.nn.discretise import discretise
from slotzoo.nn.hippo import hippo, input_planes, log_steps, output_planes
from slotzoo.nn.recurrence import AbstractRecurrence
from slotzoo.ops import linear_scan


class Discretised(NamedTuple):
    """What the recurrence is computed with; fixed while the parameters are.

    `decay` is `[Re | Im]` of `A = exp(Lambda dt)`, `b` the kernel of `B = (A - 1) / Lambda B~` with the output
    channels `[Re | Im]`, `c` the kernel `[2 Re C; -2 Im C]` that reads the state.
    """

    decay: Float[Array, " planes"]
    b: Float[Array, "kernel_b kernel_b channel planes"]
    c: Float[Array, "kernel_c kernel_c planes channel"]


class ConvSSM(AbstractRecurrence):
    """One convolutional state-space layer over a sequence of feature maps.

    `planes` is the width of a state, twice its number of complex channels: `ssm_size` numbers per place.
    """

    lambda_re: Float[Array, " state"]
    lambda_im: Float[Array, " state"]
    log_step: Float[Array, " state"]
    b: Float[Array, "kernel_b kernel_b channel planes"]
    c: Float[Array, "kernel_c kernel_c planes channel"]
    head: OutputBlock
    channels: int = eqx.field(static=True)
    planes: int = eqx.field(static=True)
    clip_eigenvalues: bool = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        ssm_size: int,
        *,
        blocks: int = 1,
        kernel_b: int = 3,
        kernel_c: int = 3,
        kernel_d: int = 3,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        clip_eigenvalues: bool = False,
        head: Head = "resnet",
        activation: Activation = "gelu",
        groups: int = 32,
        squeeze_excite: bool = False,
        key: PRNGKeyArray,
    ):
        """HiPPO-LegS eigenvalues in `blocks` copies, He-normal B and C in its coordinates.

        - `dt_min`, `dt_max`: range of the time steps, drawn uniformly in the logarithm.
        - `clip_eigenvalues`: keep the real parts below -1e-4, so that no state grows.
        - `head`, `activation`, `groups`, `squeeze_excite`, `kernel_d`: see `OutputBlock`.
        """
        b_key, c_key, step_key, head_key = jax.random.split(key, 4)
        basis = hippo(ssm_size, blocks)
        self.lambda_re = jnp.asarray(np.real(basis.eigenvalues), jnp.float32)
        self.lambda_im = jnp.asarray(np.imag(basis.eigenvalues), jnp.float32)
        self.log_step = log_steps(ssm_size // 2, dt_min, dt_max, key=step_key)

        normal = jax.nn.initializers.he_normal()
        raw = normal(b_key, (channels * kernel_b**2, ssm_size), jnp.float32).T
        re, im = input_planes(raw.reshape(ssm_size, channels, kernel_b, kernel_b), basis)
        self.b = jnp.concatenate([re, im]).transpose(2, 3, 1, 0)
        raw = normal(c_key, (ssm_size * kernel_c**2, channels), jnp.float32)
        raw = raw.reshape(ssm_size, kernel_c, kernel_c, channels).transpose(1, 2, 3, 0)
        self.c = jnp.concatenate(output_planes(raw, basis), -1).swapaxes(2, 3)

        self.head = OutputBlock(
            head, channels, kernel_d, activation, groups=groups, squeeze_excite=squeeze_excite, key=head_key
        )
        self.channels, self.planes = channels, ssm_size
        self.clip_eigenvalues = clip_eigenvalues

    def discretise(self) -> Discretised:
        """Zero-order hold in float32: `A = exp(Lambda dt)`, `B = (A - 1) / Lambda B~`."""
        decay_re, decay_im, gain_re, gain_im = discretise(
            self.lambda_re, self.lambda_im, self.log_step, clip=self.clip_eigenvalues
        )
        b_re, b_im = jnp.split(self.b.astype(jnp.float32), 2, -1)
        c_re, c_im = jnp.split(self.c.astype(jnp.float32), 2, -2)
        gain_re, gain_im = gain_re[None, None, None, :], gain_im[None, None, None, :]
        b = [gain_re * b_re - gain_im * b_im, gain_re * b_im + gain_im * b_re]
        return Discretised(
            jnp.concatenate([decay_re, decay_im]),
            jnp.concatenate(b, -1),
            jnp.concatenate([2 * c_re, -2 * c_im], -2),
        )

    def prepare(self) -> Discretised:
        """The discretised parameters, kernels in the dtype of the weights."""
        kernels = self.discretise()
        return kernels._replace(b=kernels.b.astype(self.b.dtype), c=kernels.c.astype(self.c.dtype))

    def __call__(
        self,
        u: Float[Array, "time height width {self.channels}"],
        state: Float[Array, "height width {self.planes}"] | None = None,
        *,
        prepared: Discretised | None = None,
    ) -> tuple[Float[Array, "time height width {self.channels}"], Float[Array, "height width {self.planes}"]]:
        """All outputs, parallel over time, and the state after the last one. `state` is zero if None."""
        kernels = self.discretise() if prepared is None else prepared
        if state is None:
            state = self.init_state(*u.shape[1:3])
        x = self.states(u, state, prepared=kernels)
        y = self.head(conv2d(x, kernels.c), u)
        return y, x[-1].astype(jnp.float32) if len(x) else state

    def states(
        self,
        u: Float[Array, "time height width {self.channels}"],
        state: Float[Array, "height width {self.planes}"] | None = None,
        *,
        prepared: Discretised | None = None,
    ) -> Float[Array, "time height width {self.planes}"]:
        """The states `[Re x | Im x]` after each input."""
        kernels = self.discretise() if prepared is None else prepared
        return linear_scan(kernels.decay, conv2d(u, kernels.b), state, planes="complex")

    def step(
        self,
        u: Float[Array, "height width {self.channels}"],
        state: Float[Array, "height width {self.planes}"],
        *,
        prepared: Discretised | None = None,
    ) -> tuple[Float[Array, "height width {self.channels}"], Float[Array, "height width {self.planes}"]]:
        """One output and the next state."""
        kernels = self.discretise() if prepared is None else prepared
        a_re, a_im = (v[None, None, :] for v in jnp.split(kernels.decay, 2))
        x_re, x_im = jnp.split(state, 2, -1)
        turned = jnp.concatenate([a_re * x_re - a_im * x_im, a_re * x_im + a_im * x_re], -1)
        state = turned + conv2d(u, kernels.b).astype(jnp.float32)
        return self.head(conv2d(state.astype(u.dtype), kernels.c), u), state
