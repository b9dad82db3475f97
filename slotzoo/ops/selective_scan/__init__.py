"""The selective scan of Mamba-1: the public functions and the choice of implementation."""

import functools
import importlib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from slotzoo.errors import ShapeError
from slotzoo.ops import dispatch
from slotzoo.ops.device import compiling_for_gpu
from slotzoo.ops.selective_scan import chunked, reference, sequential


Implementation = Literal["auto", "reference", "sequential", "associative", "chunked", "pallas"]
CHUNK = 16  # steps whose states the backward pass computes again, from the one that is kept
CHUNK_PARALLEL = 64  # the same where a chunk is one parallel scan: fewer, larger programs on a GPU


class Scanned(NamedTuple):
    """What comes out of a scan, and the state to go on with."""

    y: Float[Array, "time channel"]
    state: Inexact[Array, "channel state"]


class Stepped(NamedTuple):
    """What comes out of one step, and the state to go on with."""

    y: Float[Array, "channel"]
    state: Inexact[Array, "channel state"]


def selective_scan(
    u: Float[Array, "time channel"],
    delta: Float[Array, "time channel"],
    A: Inexact[Array, "channel state"],
    B: Inexact[Array, "..."],
    C: Inexact[Array, "..."],
    *,
    D: Float[Array, "channel"] | None = None,
    z: Float[Array, "time channel"] | None = None,
    delta_bias: Float[Array, "channel"] | None = None,
    delta_softplus: bool = False,
    initial_state: Inexact[Array, "channel state"] | None = None,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> Scanned:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = (C_t h_t + D u_t) silu(z_t), for all t.

    **Arguments**
    - `u`: what enters, and `delta`: how long each step is, for each channel; `delta_bias` is added to it first,
      then `delta_softplus` keeps it positive.
    - `A`: the rates, with a negative real part. Complex rates stand for conjugate pairs: the state is complex and
      y takes twice the real part of C h.
    - `B`, `C`: `(time, state)`, or `(time, group, state)` where each group serves channel / group neighbouring
      channels. An axis of time of length 1 says that it is constant: constant `B` of each channel is
      `(1, channel, state)`. Complex or real with complex `A`, real with real `A`.
    - `D`: what skips the state; `z`: the gate. None leaves them out.
    - `initial_state`: the state before the first step; zero if None.
    - `implementation`: `"reference"` is one `jax.lax.scan`, `"sequential"` the same loop laid out for CPUs,
      `"associative"` a `jax.lax.associative_scan`, `"chunked"` the same within chunks of time,
      `"pallas"` a kernel for NVIDIA GPUs from Hopper on, for real `A`. `"auto"` takes the fastest that can run on
      the platform that the program is compiled for.
    - `interpret`: run the kernel of `"pallas"` in Pallas's interpreter, anywhere and slowly (for tests).

    **Returns** `(y, state)`: y in the dtype of `u`, and the last state. The state is float32 at least (complex64
    with complex `A`), whatever the inputs.

    Differentiable once, in reverse mode, in all array arguments. But for `"reference"` and `"associative"` nothing of
    the size time x channel x state is made: the gradient keeps the state at the start of each chunk of time and
    computes the others again.

    Source: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023, algorithm 2.
    **Raises** `ShapeError` if shapes do not fit together, `ConfigError` if a named implementation cannot run.
    """
    time = u.shape[0]
    dtype = _state_dtype(u, A)
    b, c = (_laid_out(name, m, time, A, dtype) for name, m in (("B", B), ("C", C)))
    h0 = jnp.zeros(A.T.shape, dtype) if initial_state is None else initial_state.T.astype(dtype)
    length = step_length(delta, delta_bias, delta_softplus, dtype)
    if u.size == 0:
        return Scanned(u, h0.T)
    args = (u, length, A.T.astype(dtype), b, c, h0)
    if implementation == "pallas":
        dispatch.require_kernel("selective_scan", _unfit(args), interpret=interpret)
    y, h = _scan(_Options(implementation, interpret), *args)
    return Scanned(_gated(y, u, D, z), h.T)


def selective_step(
    u: Float[Array, "channel"],
    delta: Float[Array, "channel"],
    A: Inexact[Array, "channel state"],
    B: Inexact[Array, "..."],
    C: Inexact[Array, "..."],
    state: Inexact[Array, "channel state"],
    *,
    D: Float[Array, "channel"] | None = None,
    z: Float[Array, "channel"] | None = None,
    delta_bias: Float[Array, "channel"] | None = None,
    delta_softplus: bool = False,
) -> Stepped:
    """One step of `selective_scan`: arguments as there without the axis of time, and the state that enters.

    `B` and `C` are `(state,)`, or `(group, state)`. The state may have been kept in a narrower dtype; it comes back
    in float32 at least. A step is fastest where the state lies as (state, channel) from one to the next, `state.T` of
    that given and `.T` of what comes back kept: the transposes then cancel.
    """
    dtype = _state_dtype(u, A)
    b, c = (_laid_out(name, m[None], 1, A, dtype)[0] for name, m in (("B", B), ("C", C)))
    length = step_length(delta, delta_bias, delta_softplus, dtype)
    # Transposed once, not element by element wherever a vmapped step reads it.
    a = lax.optimization_barrier(A.T.astype(dtype))
    y, h = reference.step(u, length, a, b, c, state.T.astype(dtype))
    return Stepped(_gated(y, u, D, z), h.T)


def step_length(
    delta: Float[Array, "*axes"],
    bias: Float[Array, "..."] | None,
    softplus: bool,
    dtype: Any,
) -> Float[Array, "*axes"]:
    """`softplus(delta + bias)` in the real counterpart of `dtype`; the bias has the last axes of `delta`."""
    real = jnp.finfo(dtype).dtype
    delta = delta.astype(real)
    if bias is not None:
        delta = delta + bias.astype(real).reshape((1,) * (delta.ndim - bias.ndim) + bias.shape)
    return jax.nn.softplus(delta) if softplus else delta


def _state_dtype(u: Array, A: Array) -> Any:
    """float32 (decays near 1 are lost in bfloat16), float64 for float64; complex of that size for complex A."""
    double = u.dtype == jnp.float64
    if jnp.iscomplexobj(A):
        return jnp.dtype(jnp.complex128 if double else jnp.complex64)
    return jnp.dtype(jnp.float64 if double else jnp.float32)


def _laid_out(name: str, m: Array, time: int, A: Array, dtype: Any) -> Array:
    """`B` or `C` as (time or 1, state, group)."""
    channel, state = A.shape
    if m.ndim == 2:
        m = m[:, None]
    fits = m.ndim == 3 and m.shape[0] in (1, time) and m.shape[2] == state
    if not fits or m.shape[1] < 1 or channel % m.shape[1]:
        raise ShapeError(
            f"{name} has shape {m.shape}; for {time} steps of {channel} channels with {state} states each it is "
            f"({time}, {state}), or ({time}, group, {state}) where group divides {channel}; time may be 1 if it "
            "is constant."
        )
    if jnp.iscomplexobj(m) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ShapeError(f"{name} is complex but A is real: both are complex, or both real.")
    return jnp.swapaxes(m, 1, 2).astype(dtype)


def _gated(y: Array, u: Array, D: Array | None, z: Array | None) -> Array:
    """(y + D u) silu(z) in float32 at least, returned in the dtype of `u`."""
    real = jnp.float64 if u.dtype == jnp.float64 else jnp.float32
    y = y.astype(real)
    if D is not None:
        skip = D.astype(real)
        y = y + (skip if u.ndim == 1 else skip[None]) * u.astype(real)
    if z is not None:
        y = y * jax.nn.silu(z.astype(real))
    return y.astype(u.dtype)


def _kernel() -> Any:
    # Imported when first needed: it brings a compiler with it, which takes half a second.
    return importlib.import_module("slotzoo.ops.selective_scan.pallas_gpu")


def _unfit(args: tuple[Array, ...]) -> str | None:
    u, _, a, b, c, *_ = args
    return _kernel().unfit(u, a, b, c)


class _Options(NamedTuple):
    implementation: Implementation
    interpret: bool


def _primal(options: _Options, *args: Array) -> tuple[Array, Array]:
    return _run("forward", options, *args, save=False)[:2]


def _forward(options: _Options, *args: Array):
    y, h, entries = _run("forward", options, *args, save=True)
    return (y, h), (*args[:5], entries)


def _backward(options: _Options, residuals: tuple[Array, ...], cotangents: tuple[Array, Array]):
    return _run("backward", options, *residuals, *cotangents)


_scan: Any = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_scan.defvjp(_forward, _backward)


def _run(direction: Literal["forward", "backward"], options: _Options, *args: Array, **extra: bool) -> Any:
    """The chosen implementation's `direction` on each device's part of `args`."""
    time = args[0].shape[0]

    kernel = options.implementation == "pallas" or (compiling_for_gpu() and _unfit(args) is None)
    # Where the choice is made when the program is lowered, all forms keep the same states.
    shared = _kernel().CHUNK if kernel else CHUNK_PARALLEL if compiling_for_gpu() else None

    def of(module: Any, chunk: int, **more: bool) -> dispatch.Form:
        return functools.partial(getattr(module, direction), chunk=min(chunk, time), **extra, **more)

    forms = {
        "reference": of(reference, time),
        "sequential": of(sequential, shared or CHUNK),
        "associative": of(chunked, time),
        "chunked": of(chunked, shared or CHUNK_PARALLEL),
    }
    if kernel:
        forms["pallas"] = of(_kernel(), _kernel().CHUNK, interpret=options.interpret)
    found = dispatch.choose(forms, options.implementation, cpu="sequential", other="chunked", kernel=kernel)
    return found(*args)
