"""One competition step of slot attention: the public function, the choice of implementation, the VJP."""

import functools
import importlib
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slotzoo.errors import ShapeError
from slotzoo.ops import dispatch
from slotzoo.ops.device import compiling_for_gpu
from slotzoo.ops.slot_attention import reference, xla


Implementation = Literal["auto", "reference", "xla", "pallas"]


class Competition(NamedTuple):
    """What one step gives each slot, and how each token was shared among the slots."""

    updates: Float[Array, "slot vdim"]
    attention: Float[Array, "token slot"]


@overload
def slot_attention(
    query: Float[Array, "slot dim"],
    key: Float[Array, "token dim"],
    value: Float[Array, "token vdim"],
    *,
    epsilon: float = ...,
    sum_epsilon: float = ...,
    scale: float | None = ...,
    heads: int = ...,
    return_attention: Literal[False] = ...,
    implementation: Implementation = ...,
    interpret: bool = ...,
) -> Float[Array, "slot vdim"]: ...


@overload
def slot_attention(
    query: Float[Array, "slot dim"],
    key: Float[Array, "token dim"],
    value: Float[Array, "token vdim"],
    *,
    epsilon: float = ...,
    sum_epsilon: float = ...,
    scale: float | None = ...,
    heads: int = ...,
    return_attention: Literal[True],
    implementation: Implementation = ...,
    interpret: bool = ...,
) -> Competition: ...


def slot_attention(
    query: Float[Array, "slot dim"],
    key: Float[Array, "token dim"],
    value: Float[Array, "token vdim"],
    *,
    epsilon: float = 1e-8,
    sum_epsilon: float = 0.0,
    scale: float | None = None,
    heads: int = 1,
    return_attention: bool = False,
    implementation: Implementation = "auto",
    interpret: bool = False,
) -> Float[Array, "slot vdim"] | Competition:
    """`updates_s = sum_t w_ts value_t / sum_t w_ts` with `w_ts = softmax_s(scale query_s . key_t) + epsilon`.

    The slots compete for every token (the softmax runs over slots), then each takes the mean of the values,
    weighted by what it won. One pass over the tokens: the weights are never stored, not even for the gradient.

    **Arguments**
    - `epsilon`: added to each weight, so that a slot that wins nothing takes the plain mean.
    - `sum_epsilon`: added to the sum of a slot's weights, so that a slot that wins nothing gets nothing (the inverted
      attention of SlotSSM, which has no `epsilon`).
    - `scale`: of the logits; `(dim / heads) ** -0.5` if None.
    - `heads`: `dim` and `vdim` are split into that many heads; the softmax runs over heads and slots jointly, each
      head of a slot takes its own mean of its part of the values (SLATE, appendix; SAVi).
    - `return_attention`: also return the attention, the softmax without epsilon, summed over heads; each
      token's row sums to 1.
    - `implementation`: `"reference"` writes the formula down, `"xla"` is laid out for XLA with a backward
      pass of its own, `"pallas"` a kernel for NVIDIA's Hopper GPUs, for bfloat16. `"auto"` takes the fastest that can
      run on the platform that the program is compiled for.
    - `interpret`: run the kernel of `"pallas"` in Pallas's interpreter, anywhere and slowly (for tests).

    **Returns** the updates in the dtype of `value`; logits, softmax and sums are float32 whatever the inputs.

    Differentiable once, in reverse mode, in all arrays.

    Source: Locatello et al., Object-Centric Learning with Slot Attention, NeurIPS 2020, section 2.1.
    **Raises** `ShapeError` if shapes do not fit together, `ConfigError` if a named implementation cannot run.
    """
    slots, dim = query.shape
    tokens, vdim = value.shape
    if key.shape != (tokens, dim) or min(slots, tokens) < 1:
        raise ShapeError(
            f"slot_attention takes query (slot, dim), key (token, dim) and value (token, vdim), at least one of "
            f"each; got {query.shape}, {key.shape} and {value.shape}."
        )
    if heads < 1 or dim % heads or vdim % heads:
        raise ShapeError(f"slot_attention: {dim} and {vdim} channels cannot be split into {heads} heads.")
    factor = (dim // heads) ** -0.5 if scale is None else scale
    rows = _per_head(query, heads)
    options = _Options(factor, epsilon, implementation, interpret)
    if implementation == "pallas":
        dispatch.require_kernel("slot_attention", _kernel().unfit(rows, key, value), interpret=interpret)
    total, weight = _compete(options, rows, key, value)
    updates = _join_heads(total / (weight + sum_epsilon)[:, None], heads).astype(value.dtype)
    if not return_attention:
        return updates
    return Competition(updates, slot_shares(query, key, scale=scale, heads=heads).T)


def slot_shares(
    query: Float[Array, "slot dim"],
    key: Float[Array, "token dim"],
    *,
    scale: float | None = None,
    heads: int = 1,
) -> Float[Array, "slot token"]:
    """How each token is shared among the slots: the attention of `slot_attention`, by itself, in float32."""
    factor = (query.shape[-1] // heads) ** -0.5 if scale is None else scale
    shares = xla.attention(_per_head(query, heads), key, scale=factor)
    return shares.reshape(heads, len(query), len(key)).sum(0)


def _per_head(query: Array, heads: int) -> Array:
    """`(head x slot, dim)`: a row per head of each slot, zero outside the head's channels.

    So heads are slots that look at some channels only, and no implementation has to know of them.
    """
    if heads == 1:
        return query
    return (query[None] * _head_mask(heads, query.shape[-1], query.dtype)).reshape(-1, query.shape[-1])


def _join_heads(means: Array, heads: int) -> Array:
    """From each row's mean the channels of its own head, `(head x slot, vdim) -> (slot, vdim)`."""
    if heads == 1:
        return means
    each = means.reshape(heads, -1, means.shape[-1])
    return (each * _head_mask(heads, means.shape[-1], means.dtype)).sum(0)


def _head_mask(heads: int, width: int, dtype: Any) -> Array:
    return jnp.repeat(jnp.eye(heads, dtype=dtype), width // heads, axis=1)[:, None]


def _kernel() -> Any:
    # Imported when first needed: it brings a compiler with it, which takes half a second.
    return importlib.import_module("slotzoo.ops.slot_attention.pallas_gpu")


class _Options(NamedTuple):
    scale: float
    epsilon: float
    implementation: Implementation
    interpret: bool


def _primal(options: _Options, query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    return _run("forward", options, query, key, value)


def _forward(options: _Options, query: Array, key: Array, value: Array):
    return _run("forward", options, query, key, value), (query, key, value)


def _backward(options: _Options, residuals: tuple[Array, Array, Array], cotangents: tuple[Array, Array]):
    return _run("backward", options, *residuals, *cotangents)


_compete: Any = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_compete.defvjp(_forward, _backward)


def _run(direction: Literal["forward", "backward"], options: _Options, *args: Array):
    """The chosen implementation's `direction` on each device's part of `args`."""

    kernel = options.implementation == "pallas" or (compiling_for_gpu() and _kernel().unfit(*args[:3]) is None)

    def of(module: Any, **extra: bool) -> dispatch.Form:
        fn = getattr(module, direction)
        return functools.partial(fn, scale=options.scale, epsilon=options.epsilon, **extra)

    forms = {"reference": of(reference), "xla": of(xla)}
    if kernel:
        forms["pallas"] = of(_kernel(), interpret=options.interpret)
    choose = functools.partial(dispatch.choose, cpu="xla", other="xla", kernel=kernel)
    return choose(forms, options.implementation)(*args)
