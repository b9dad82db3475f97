"""The state-space dual of Mamba-2: the public functions and the choice of implementation."""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops import dispatch
from slotzoo.ops.selective_scan import step_length
from slotzoo.ops.ssd import chunked, reference


Implementation = Literal["auto", "reference", "associative", "chunked"]
CHUNK = 64  # steps at a time, where the caller does not say


class Scanned(NamedTuple):
    """What comes out of a scan, and the state to go on with."""

    y: Float[Array, "time head dim"]
    state: Float[Array, "head dim state"]


class Stepped(NamedTuple):
    """What comes out of one step, and the state to go on with."""

    y: Float[Array, "head dim"]
    state: Float[Array, "head dim state"]


def ssd(
    x: Float[Array, "time head dim"],
    dt: Float[Array, "time head"],
    A: Float[Array, "head"],
    B: Float[Array, "time group state"],
    C: Float[Array, "time group state"],
    *,
    D: Float[Array, "head"] | Float[Array, "head dim"] | None = None,
    z: Float[Array, "time head dim"] | None = None,
    dt_bias: Float[Array, "head"] | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Float[Array, "head dim state"] | None = None,
    chunk: int | None = None,
    implementation: Implementation = "auto",
) -> Scanned:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T and y_t = (h_t C_t + D x_t) silu(z_t), for all t and heads.

    **Arguments**
    - `x`: what enters, and `dt`: how long each step is, for each head; `dt_bias` is added to it first, then
      `dt_softplus` keeps it positive, then it is clipped to `dt_limit`.
    - `A`: one rate for each head, negative.
    - `B`, `C`: each group serves head / group neighbouring heads.
    - `D`: what skips the state, for each head or each of its channels; `z`: the gate. None leaves them out.
    - `initial_state`: the state before the first step; zero if None.
    - `chunk`: how many steps are taken at once; None takes a clip of up to 64 steps at once, a longer one in
      chunks of equal length below that.
    - `implementation`: `"reference"` is one `jax.lax.scan`; `"chunked"` matrix products within chunks, one after the
      other, each computed again in the backward pass; `"associative"` all chunks at once, their states joined by a
      `jax.lax.associative_scan`. `"auto"` takes the second on a CPU and the third elsewhere.

    **Returns** `(y, state)`: y in the dtype of `x`, and the last state. States and decays are float32 at least,
    whatever the inputs; products of matrices are in the dtype of `x` with sums in float32.

    Differentiable in all array arguments, through the initial and the last state too.

    Source: Dao and Gu, Transformers are SSMs, ICML 2024, section 6.
    **Raises** `ShapeError` if shapes do not fit together, `ConfigError` if an option is out of range.
    """
    time = x.shape[0]
    dtype = _state_dtype(x)
    _check(x.shape, B.shape, C.shape)
    if chunk is not None and chunk < 1:
        raise ConfigError(f"ssd(chunk={chunk}) must be 1 or more.")
    if time == 0:
        zero = jnp.zeros((*x.shape[1:], B.shape[2]), dtype)
        return Scanned(x, zero if initial_state is None else initial_state.astype(dtype))
    length = _length(dt, dt_bias, dt_softplus, dt_limit, dtype)
    h0 = None if initial_state is None else initial_state.astype(dtype)
    of = lambda form: functools.partial(form, chunk=_chunk(time) if chunk is None else chunk)
    forms = {
        "reference": reference.forward,
        "chunked": of(chunked.forward),
        "associative": of(chunked.forward_parallel),
    }
    form = dispatch.choose(forms, implementation, cpu="chunked", other="associative", kernel=False)
    y, h = form(x, length, A.astype(dtype), B, C, h0)
    return Scanned(_gated(y, x, D, z), h)


def ssd_step(
    x: Float[Array, "head dim"],
    dt: Float[Array, "head"],
    A: Float[Array, "head"],
    B: Float[Array, "group state"],
    C: Float[Array, "group state"],
    state: Float[Array, "head dim state"],
    *,
    D: Float[Array, "head"] | Float[Array, "head dim"] | None = None,
    z: Float[Array, "head dim"] | None = None,
    dt_bias: Float[Array, "head"] | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> Stepped:
    """One step of `ssd`: arguments as there without the axis of time, and the state that enters.

    The state may have been kept in a narrower dtype; it comes back in float32 at least.
    """
    dtype = _state_dtype(x)
    _check(x[None].shape, B[None].shape, C[None].shape)
    length = _length(dt, dt_bias, dt_softplus, dt_limit, dtype)
    y, h = reference.step(x, length, A.astype(dtype), B, C, state.astype(dtype))
    return Stepped(_gated(y, x, D, z), h)


def _state_dtype(x: Array) -> Any:
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def _length(dt: Array, bias: Array | None, softplus: bool, limit: tuple[float, float], dtype: Any) -> Array:
    length = step_length(dt, bias, softplus, dtype)
    return length if limit == (0.0, math.inf) and softplus else jnp.clip(length, *limit)


def _check(x: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...]) -> None:
    if b != c or b[0] != x[0] or b[1] < 1 or x[1] % b[1]:
        raise ShapeError(
            f"B and C have shapes {b} and {c}; for {x[0]} steps of {x[1]} heads both are ({x[0]}, group, state) "
            f"where group divides {x[1]}."
        )


def _chunk(time: int) -> int:
    """Chunks of equal length, so that little is filled up."""
    return -(-time // -(-time // CHUNK))


def _gated(y: Array, x: Array, D: Array | None, z: Array | None) -> Array:
    """(y + D x) silu(z) in float32 at least, returned in the dtype of `x`."""
    if D is not None:
        skip = D.astype(y.dtype).reshape((1,) * (x.ndim - 2) + (x.shape[-2], -1))
        y = y + skip * x.astype(y.dtype)
    if z is not None:
        y = y * jax.nn.silu(z.astype(y.dtype))
    return y.astype(x.dtype)
