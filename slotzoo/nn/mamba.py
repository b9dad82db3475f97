"""Mamba and Mamba-2 mixers, each slot a sequence of its own.

Both project to `expand` times the width, run a short causal convolution and a state-space model whose step size, input
and output depend on the token, gate the result, and project back. Sources: Gu and Dao, Mamba: Linear-Time Sequence
Modeling with Selective State Spaces, 2023, section 3.4; Dao and Gu, Transformers are SSMs, ICML 2024, section 7.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.activations import activation
from slotzoo.nn.linear import Linear
from slotzoo.nn.mixer import AbstractMixer
from slotzoo.nn.torch_init import TORCH_UNIFORM, torch_biases
from slotzoo.ops.selective_scan import selective_scan, selective_step
from slotzoo.ops.ssd import ssd, ssd_step


# Ends in a division, so that XLA stores it: what ends in a product it would compute again, convolution and all, for
# every entry of the state that a step of Mamba-2 reads it for.
SILU = activation("swish")
Convolve = Callable[[Array, Array], tuple[Array, Array]]


class MambaState(NamedTuple):
    """What a mixer keeps of the past: the last inputs of its convolution, the newest last, and the states (float32):
    of Mamba-1 (slot, state, channel), as its steps run fastest, of Mamba-2 (slot, head, head_dim, state).
    """

    conv: Float[Array, "slot past channel"]
    ssm: Float[Array, "slot ..."]


class CausalConv(eqx.Module):
    """`y_t = bias + sum_k weight_k x_{t - width + 1 + k}` in each channel: the last tap is for the current input."""

    weight: Float[Array, "tap channel"]
    bias: Float[Array, " channel"] | None
    width: int = eqx.field(static=True)

    def __init__(
        self, channels: int, width: int, *, bias: bool = True, bound: float | None = None, key: PRNGKeyArray
    ):
        """Uniform within `1 / sqrt(width)`; the weights within `bound` where it is given."""
        weight_key, bias_key = jax.random.split(key)
        usual = 1 / math.sqrt(width)
        limit = usual if bound is None else bound
        self.weight = jax.random.uniform(weight_key, (width, channels), minval=-limit, maxval=limit)
        self.bias = jax.random.uniform(bias_key, (channels,), minval=-usual, maxval=usual) if bias else None
        self.width = width

    def __call__(
        self, x: Float[Array, "time slot channel"], past: Float[Array, "slot past channel"]
    ) -> tuple[Float[Array, "time slot channel"], Float[Array, "slot past channel"]]:
        """The outputs, and the `width - 1` inputs that the next ones need."""
        time = len(x)
        whole = jnp.concatenate([jnp.moveaxis(past, 1, 0).astype(x.dtype), x])
        weight = self.weight.astype(x.dtype)
        y = sum(whole[k : k + time] * weight[k][None, None, :] for k in range(1, self.width))
        y = y + whole[:time] * weight[0][None, None, :]
        if self.bias is not None:
            y = y + self.bias.astype(x.dtype)[None, None, :]
        return y, jnp.moveaxis(whole[time:], 0, 1).astype(past.dtype)

    def step(
        self, x: Float[Array, "slot channel"], past: Float[Array, "slot past channel"]
    ) -> tuple[Float[Array, "slot channel"], Float[Array, "slot past channel"]]:
        """The same for one input, without an axis of time to move."""
        whole = jnp.concatenate([past.astype(x.dtype), x[:, None]], axis=1)
        y = sum(whole[:, k] * self.weight[k].astype(x.dtype)[None, :] for k in range(1, self.width))
        y = y + whole[:, 0] * self.weight[0].astype(x.dtype)[None, :]
        if self.bias is not None:
            y = y + self.bias.astype(x.dtype)[None, :]
        return y, whole[:, 1:].astype(past.dtype)


class GatedRMSNorm(eqx.Module):
    """`scale * rms(x silu(z))`, or `scale * rms(x) silu(z)` with `norm_first`; `rms` divides by the root mean square
    of each of `groups` parts of the channels. Statistics in float32.
    """

    scale: Float[Array, " channel"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    norm_first: bool = eqx.field(static=True)

    def __init__(self, channels: int, *, groups: int = 1, eps: float = 1e-5, norm_first: bool = False):
        if channels % groups:
            raise ConfigError(f"gated norm: {channels} channels cannot be split into groups={groups}.")
        self.scale = jnp.ones(channels)
        self.groups, self.eps, self.norm_first = groups, eps, norm_first

    def __call__(
        self, x: Float[Array, "*batch channel"], z: Float[Array, "*batch channel"]
    ) -> Float[Array, "*batch channel"]:
        y, gate = x.astype(jnp.float32), jax.nn.silu(z.astype(jnp.float32))
        if not self.norm_first:
            y = y * gate
        parts = y.reshape(*y.shape[:-1], self.groups, -1)
        parts = parts * jax.lax.rsqrt(jnp.square(parts).mean(-1, keepdims=True) + self.eps)
        y = parts.reshape(y.shape) * self.scale.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
        return (y * gate if self.norm_first else y).astype(x.dtype)


class Mamba(AbstractMixer):
    """Mamba-1: `h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t`, `y_t = (C_t h_t + D x_t) silu(z_t)`.

    `A` is a negative diagonal of `state` entries per channel, `delta`, `B` and `C` are read off `x_t`.
    """

    in_proj: Linear
    conv: CausalConv
    x_proj: Linear
    dt_proj: Linear
    a_log: Float[Array, "channel state"]
    d: Float[Array, " channel"]
    out_proj: Linear
    dim: int = eqx.field(static=True)
    inner: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    state: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        state: int = 16,
        conv_width: int = 4,
        expand: float = 2.0,
        dt_rank: int | None = None,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_range: tuple[float, float] = (1e-3, 0.1),
        dt_floor: float = 1e-4,
        bias: bool = False,
        conv_bias: bool = True,
        key: PRNGKeyArray,
    ):
        """`expand * dim` is rounded down to whole channels. `dt_rank` is `ceil(dim / 16)` unless given.

        Projections as PyTorch draws them; `A = -(1 ... state)` for every channel; step sizes start log-uniform in
        `dt_range`, at least `dt_floor`.
        """
        keys = jax.random.split(key, 7)
        self.dim, self.inner, self.state = dim, int(expand * dim), state
        self.rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        if min(self.inner, self.rank, state, conv_width) < 1:
            raise ConfigError(
                f"Mamba: every size must be at least 1; got dim={dim}, expand={expand}, state={state}, "
                f"conv_width={conv_width}, dt_rank={dt_rank}."
            )
        self.in_proj = _linear(dim, 2 * self.inner, bias, keys[0])
        self.conv = CausalConv(self.inner, conv_width, bias=conv_bias, key=keys[1])
        self.x_proj = _linear(self.inner, self.rank + 2 * state, False, keys[2])
        spread = dt_scale * self.rank**-0.5
        dt_proj = Linear(self.rank, self.inner, init=TORCH_UNIFORM, key=keys[3])
        weight = (
            jnp.full_like(dt_proj.weight, spread)
            if dt_init == "constant"
            else jax.random.uniform(keys[3], dt_proj.weight.shape, minval=-spread, maxval=spread)
        )
        steps = _step_bias(keys[4], self.inner, dt_range, dt_floor)
        self.dt_proj = eqx.tree_at(lambda layer: (layer.weight, layer.bias), dt_proj, (weight, steps))
        self.a_log = jnp.log(jnp.broadcast_to(jnp.arange(1, state + 1, dtype=jnp.float32), (self.inner, state)))
        self.d = jnp.ones(self.inner)
        self.out_proj = _linear(self.inner, dim, bias, keys[5])

    def init_state(self, slots: int) -> MambaState:
        past = jnp.zeros((slots, self.conv.width - 1, self.inner), self.in_proj.weight.dtype)
        return MambaState(past, jnp.zeros((slots, self.state, self.inner)))

    def __call__(
        self, x: Float[Array, "time slot {self.dim}"], state: MambaState | None = None
    ) -> tuple[Float[Array, "time slot {self.dim}"], MambaState]:
        state = self.init_state(x.shape[1]) if state is None else state
        h, z, delta, b, c, past = self._inputs(x, state.conv, self.conv)

        def scan(h, z, delta, b, c, start):
            y, last = selective_scan(
                h,
                delta,
                self._a,
                b,
                c,
                D=self.d.astype(jnp.float32),
                z=z,
                delta_bias=self._delta_bias,
                delta_softplus=True,
                initial_state=start.T,
            )
            return y, last.T

        y, ssm = jax.vmap(scan, (1, 1, 1, 1, 1, 0), (1, 0))(h, z, delta, b, c, state.ssm)
        return self.out_proj(y), MambaState(past, ssm)

    def step(
        self, x: Float[Array, "slot {self.dim}"], state: MambaState
    ) -> tuple[Float[Array, "slot {self.dim}"], MambaState]:
        h, z, delta, b, c, past = self._inputs(x, state.conv, self.conv.step)

        def one(h, z, delta, b, c, start):
            y, last = selective_step(
                h,
                delta,
                self._a,
                b,
                c,
                start.T,
                D=self.d.astype(jnp.float32),
                z=z,
                delta_bias=self._delta_bias,
                delta_softplus=True,
            )
            return y, last.T

        y, ssm = jax.vmap(one)(h, z, delta, b, c, state.ssm)
        return self.out_proj(y), MambaState(past, ssm)

    @property
    def _a(self) -> Array:
        return -jnp.exp(self.a_log.astype(jnp.float32))

    @property
    def _delta_bias(self) -> Array:
        assert self.dt_proj.bias is not None
        return self.dt_proj.bias.astype(jnp.float32)

    def _inputs(
        self, x: Array, past: Array, convolve: Convolve
    ) -> tuple[Array, Array, Array, Array, Array, Array]:
        """What the scan takes: x, z, delta without its bias, B, C; and the inputs that the convolution keeps."""
        h, z = jnp.split(self.in_proj(x), 2, axis=-1)
        h, past = convolve(h, past)
        h = SILU(h)
        dt, b, c = jnp.split(self.x_proj(h), [self.rank, self.rank + self.state], axis=-1)
        return h, z, dt @ self.dt_proj.weight.astype(dt.dtype), b, c, past


class Mamba2(AbstractMixer):
    """Mamba-2: per head `h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t^T`, `y_t = h_t C_t + D x_t`, then a gated norm.

    `A` is one negative number per head; `B` and `C` are shared by the heads of a group. With `ssm_dim` below
    `expand * dim` the remaining channels are a gated linear branch without a state.
    """

    in_proj: Linear
    conv: CausalConv
    dt_bias: Float[Array, " head"]
    a_log: Float[Array, " head"]
    d: Float[Array, " head"] | Float[Array, "head head_dim"]
    norm: GatedRMSNorm | None
    out_proj: Linear
    dim: int = eqx.field(static=True)
    ssm_dim: int = eqx.field(static=True)
    linear_dim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    state: int = eqx.field(static=True)
    dt_limit: tuple[float, float] = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        state: int = 128,
        head_dim: int = 64,
        conv_width: int = 4,
        expand: float = 2.0,
        groups: int = 1,
        ssm_dim: int | None = None,
        d_per_channel: bool = False,
        norm: bool = True,
        norm_before_gate: bool = False,
        dt_range: tuple[float, float] = (1e-3, 0.1),
        dt_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        a_range: tuple[float, float] = (1.0, 16.0),
        conv_init: float | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        chunk: int | None = None,
        key: PRNGKeyArray,
    ):
        """`A` is drawn uniformly from minus `a_range`, step sizes log-uniformly from `dt_range`, clipped to `dt_limit`
        whenever they are used. `conv_init` bounds the uniform weights of the convolution. `chunk`: of the scan.

        **Raises** ConfigError where the channels cannot be split into heads and groups.
        """
        keys = jax.random.split(key, 5)
        inner = int(expand * dim)
        self.dim, self.state, self.groups, self.head_dim = dim, state, groups, head_dim
        self.ssm_dim = inner if ssm_dim is None else ssm_dim
        self.linear_dim = inner - self.ssm_dim
        if self.ssm_dim < 1 or self.linear_dim < 0 or self.ssm_dim % head_dim:
            raise ConfigError(
                f"Mamba-2: {self.ssm_dim} of {inner} channels (expand {expand} x dim {dim}) cannot be split into heads "
                f"of {head_dim}; choose another head_dim or dim."
            )
        self.heads = self.ssm_dim // head_dim
        if groups < 1 or self.heads % groups:
            raise ConfigError(f"Mamba-2: {self.heads} heads cannot be split into groups={groups}.")
        mixed = self.ssm_dim + 2 * groups * state
        outputs = 2 * self.linear_dim + self.ssm_dim + mixed + self.heads
        self.in_proj = _linear(dim, outputs, bias, keys[0])
        self.conv = CausalConv(mixed, conv_width, bias=conv_bias, bound=conv_init, key=keys[1])
        self.dt_bias = _step_bias(keys[2], self.heads, dt_range, dt_floor)
        low, high = a_range
        self.a_log = jnp.log(jax.random.uniform(keys[3], (self.heads,), minval=low, maxval=high))
        self.d = jnp.ones((self.heads, head_dim) if d_per_channel else self.heads)
        self.norm = GatedRMSNorm(self.ssm_dim, groups=groups, norm_first=norm_before_gate) if norm else None
        self.out_proj = _linear(inner, dim, bias, keys[4])
        self.dt_limit, self.chunk = dt_limit, chunk

    def init_state(self, slots: int) -> MambaState:
        past = jnp.zeros((slots, *_past(self.conv)), self.in_proj.weight.dtype)
        return MambaState(past, jnp.zeros((slots, self.heads, self.head_dim, self.state)))

    def __call__(
        self, x: Float[Array, "time slot {self.dim}"], state: MambaState | None = None
    ) -> tuple[Float[Array, "time slot {self.dim}"], MambaState]:
        state = self.init_state(x.shape[1]) if state is None else state
        linear, z, h, b, c, dt, past = self._inputs(x, state.conv, self.conv)

        def scan(h, dt, b, c, start):
            y, last = ssd(
                h,
                dt,
                self._a,
                b,
                c,
                D=self.d.astype(jnp.float32),
                dt_bias=self.dt_bias.astype(jnp.float32),
                dt_softplus=True,
                dt_limit=self.dt_limit,
                initial_state=start,
                chunk=self.chunk,
            )
            return y, last

        y, ssm = jax.vmap(scan, (1, 1, 1, 1, 0), (1, 0))(h, dt, b, c, state.ssm)
        return self._output(y, z, linear), MambaState(past, ssm)

    def step(
        self, x: Float[Array, "slot {self.dim}"], state: MambaState
    ) -> tuple[Float[Array, "slot {self.dim}"], MambaState]:
        linear, z, h, b, c, dt, past = self._inputs(x, state.conv, self.conv.step)

        def one(h, dt, b, c, start):
            y, last = ssd_step(
                h,
                dt,
                self._a,
                b,
                c,
                start,
                D=self.d.astype(jnp.float32),
                dt_bias=self.dt_bias.astype(jnp.float32),
                dt_softplus=True,
                dt_limit=self.dt_limit,
            )
            return y, last

        y, ssm = jax.vmap(one)(h, dt, b, c, state.ssm)
        return self._output(y, z, linear), MambaState(past, ssm)

    @property
    def _a(self) -> Array:
        return -jnp.exp(self.a_log.astype(jnp.float32))

    def _inputs(
        self, x: Array, past: Array, convolve: Convolve
    ) -> tuple[Array | None, Array, Array, Array, Array, Array, Array]:
        """The branch without a state, z, what the scan takes, and the inputs that the convolution keeps."""
        mixed = self.ssm_dim + 2 * self.groups * self.state
        sizes = [self.linear_dim, self.linear_dim, self.ssm_dim, mixed]
        edges = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        gate, linear, z, xbc, dt = jnp.split(self.in_proj(x), edges, axis=-1)
        xbc, past = convolve(xbc, past)
        width = self.groups * self.state
        h, b, c = jnp.split(SILU(xbc), [self.ssm_dim, self.ssm_dim + width], axis=-1)
        h = h.reshape(*h.shape[:-1], self.heads, self.head_dim)
        b, c = (y.reshape(*y.shape[:-1], self.groups, self.state) for y in (b, c))
        return (jax.nn.silu(gate) * linear if self.linear_dim else None), z, h, b, c, dt, past

    def _output(self, y: Array, z: Array, linear: Array | None) -> Array:
        y = y.reshape(*y.shape[:-2], self.ssm_dim).astype(z.dtype)
        y = y * jax.nn.silu(z) if self.norm is None else self.norm(y, z)
        return self.out_proj(y if linear is None else jnp.concatenate([linear, y], axis=-1))


def _linear(inputs: int, outputs: int, bias: bool, key: PRNGKeyArray) -> Linear:
    weight_key, bias_key = jax.random.split(key)
    return torch_biases(Linear(inputs, outputs, bias=bias, init=TORCH_UNIFORM, key=weight_key), key=bias_key)


def _step_bias(key: PRNGKeyArray, size: int, between: tuple[float, float], floor: float) -> Array:
    """The bias whose softplus is a step size, log-uniform `between` two values and at least `floor`."""
    low, high = (math.log(value) for value in between)
    steps = jnp.maximum(jnp.exp(jax.random.uniform(key, (size,), minval=low, maxval=high)), floor)
    return steps + jnp.log(-jnp.expm1(-steps))


def _past(conv: CausalConv) -> tuple[int, int]:
    return conv.width - 1, conv.weight.shape[1]
