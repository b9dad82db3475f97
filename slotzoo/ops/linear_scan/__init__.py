"""The linear recurrence x_t = a_t x_{t-1} + u_t: the public function, the choice of implementation, the VJP."""

import functools
import importlib
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from slotzoo.errors import ShapeError
from slotzoo.ops import dispatch
from slotzoo.ops.device import compiling_for_gpu
from slotzoo.ops.linear_scan import associative, reference, sequential
from slotzoo.ops.linear_scan.planes import Planes, count, state_dtype


Implementation = Literal["auto", "reference", "sequential", "associative", "pallas"]


def linear_scan(
    a: Float[Array, "..."],
    u: Float[Array, "time *space channel"],
    x0: Float[Array, "*space channel"] | None = None,
    *,
    reverse: bool = False,
    reset: Bool[Array, "time"] | Bool[Array, "time *space"] | None = None,
    planes: Planes = "real",
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> Float[Array, "time *space channel"]:
    """x_t = a_t x_{t-1} + u_t for all t, elementwise over space and channels.

    **Arguments**
    - `a`: the decay, `(channel,)` if constant, or `(time, *space, channel)` where any axis of space may be 1.
    - `u`: what enters at each step.
    - `x0`: the state before the first step; zero if None.
    - `reverse`: run from the last step to the first, x_t = a_t x_{t+1} + u_t; `x0` enters at the last step.
    - `reset`: where True, the state that comes in is dropped: x_t = u_t. Per step, or per step and place.
    - `planes`: `"complex"` if the last axis of `a`, `u`, `x0` and of the result holds a complex state as the
      halves `[re | im]`, so that `channel` is twice the number of complex channels.
    - `implementation`: `"reference"` is one `jax.lax.scan`, `"sequential"` the same loop laid out for CPUs,
      `"associative"` a `jax.lax.associative_scan`, `"pallas"` a kernel for NVIDIA GPUs from Hopper on. `"auto"`
      takes the fastest that can run on the platform that the program is compiled for.
    - `interpret`: run the kernel of `"pallas"` in Pallas's interpreter, anywhere and slowly (for tests).

    **Returns** all states x, in the dtype of `u`. The state itself is float32 at least, whatever the inputs.

    Differentiable once, in reverse mode, in all array arguments: every implementation shares one VJP rule, in
    which the cotangent of `u` is the same recurrence run the other way with conj(a).

    **Raises** `ShapeError` if shapes do not fit together, `ConfigError` if a named implementation cannot run.
    """
    time, *space, channel = u.shape
    if channel % count(planes):
        raise ShapeError(
            f"planes='complex' needs an even last axis, the halves [re | im]; u has shape {u.shape}."
        )
    dtype = state_dtype(u)
    rows = math.prod(space)
    a = _decay(a, reset, u.shape)
    state = jnp.zeros((rows, channel), dtype) if x0 is None else jnp.reshape(x0, (rows, channel)).astype(dtype)
    if u.size == 0:
        return u
    options = _Options(planes, reverse, implementation, interpret)
    u_ = u.reshape(time, rows, channel)
    if implementation == "pallas":
        dispatch.require_kernel("linear_scan", _unfit(u_, dtype, planes), interpret=interpret)
    return _scan(options, a, u_, state).reshape(u.shape)


def _decay(a: Array, reset: Array | None, shape: tuple[int, ...]) -> Array:
    """`a` as (channel,) or (time, 1 | rows, channel), with the resets in it: x_t = 0 x_{t-1} + u_t."""
    time, *space, channel = shape
    varying = (time, *space, channel)
    fits = a.shape == (channel,) or (
        a.ndim == len(varying) and all(n in (1, m) for n, m in zip(a.shape[1:-1], space, strict=True))
    )
    if not fits or a.shape[-1] != channel or (a.ndim > 1 and a.shape[0] != time):
        raise ShapeError(
            f"a has shape {a.shape}; for u of shape {shape} it is ({channel},), or {varying} where any axis of "
            "space may be 1."
        )
    if reset is not None:
        if a.ndim == 1:
            a = a.reshape((1,) * (len(shape) - 1) + (channel,))
        dropped = reset.reshape(reset.shape + (1,) * (len(shape) - reset.ndim))
        a = jnp.where(dropped, jnp.zeros_like(a), a)
    elif a.ndim == 1:
        return a
    if math.prod(a.shape[1:-1]) != 1:
        a = jnp.broadcast_to(a, varying)
    return a.reshape(time, math.prod(a.shape[1:-1]), channel)


def _kernel() -> Any:
    # Imported when first needed: it brings a compiler with it, which takes half a second.
    return importlib.import_module("slotzoo.ops.linear_scan.pallas_gpu")


def _unfit(u: Array, dtype: Any, planes: Planes) -> str | None:
    return _kernel().unfit(u, dtype, planes)


class _Options(NamedTuple):
    planes: Planes
    reverse: bool
    implementation: Implementation
    interpret: bool


def _primal(options: _Options, a: Array, u: Array, x0: Array) -> Array:
    return _run("forward", options, a, u, x0)


def _scan_forward(options: _Options, a: Array, u: Array, x0: Array):
    # u is not needed again, and x is kept anyway by whatever comes after the scan. Its name lets a remat policy
    # (`jax.checkpoint_policies.save_only_these_names`) keep it instead of running the scan twice.
    x = checkpoint_name(_run("forward", options, a, u, x0), "linear_scan")
    return x, (a, x, x0)


def _scan_backward(options: _Options, residuals, gy: Array):
    return _run("backward", options, *residuals, gy)


_scan: Any = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_scan.defvjp(_scan_forward, _scan_backward)


def _run(direction: Literal["forward", "backward"], options: _Options, *args: Array):
    """The chosen implementation's `direction` on each device's part of `args`."""

    kernel = options.implementation == "pallas" or (
        compiling_for_gpu() and _unfit(args[1], args[2].dtype, options.planes) is None
    )

    def of(module: Any, **extra: bool) -> dispatch.Form:
        fn = getattr(module, direction)
        return functools.partial(fn, planes=options.planes, reverse=options.reverse, **extra)

    forms = {"reference": of(reference), "sequential": of(sequential), "associative": of(associative)}
    if kernel:
        forms["pallas"] = of(_kernel(), interpret=options.interpret)
    choose = functools.partial(dispatch.choose, cpu="sequential", other="associative", kernel=kernel)
    return choose(forms, options.implementation)(*args)
