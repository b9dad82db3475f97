"""Softmax attention: one function, XLA's or cuDNN's program behind it.

XLA's has a backward pass of its own, which computes the weights again: what is kept grows with the number of tokens,
not with its square, and on a CPU a gradient takes half the time of automatic differentiation.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.ops.device import compiling_for_gpu, oldest_capability
from slotzoo.ops.dropout import keep_mask


Implementation = Literal["auto", "xla", "cudnn"]
HIDDEN = -1e30  # the logit of what may not be seen; minus infinity would make NaN of rows that see nothing


def attention(
    query: Float[Array, "query head dim"],
    key: Float[Array, "token head dim"],
    value: Float[Array, "token head vdim"],
    *,
    mask: Bool[Array, "query token"] | Bool[Array, "head query token"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "query head vdim"]:
    """`y_q = sum_t softmax_t(scale query_q . key_t) value_t`, for each head by itself.

    `mask` is True where a query may see a token (the same for all heads, or one per head); a query that may see
    nothing gets zeros. With `causal` query `q` sees the tokens up to `q`. `scale` is `dim ** -0.5` unless
    given. `dropout` zeroes weights and divides the others by `1 - dropout`; it acts where `dropout_key` is given.
    Softmax in float32; the result has the dtype of `value`. Differentiable once, in reverse mode.

    `"auto"` takes cuDNN's fused kernel on GPUs that have it (Ampere or newer), in half precision, without
    dropout and mask, for heads of at most 128 channels in steps of 8; XLA otherwise.

    Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2. **Raises** ConfigError where
    `"cudnn"` is asked for what it cannot do.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    dropped = dropout > 0 and dropout_key is not None
    hindrance = _no_cudnn(query, key, value, masked=mask is not None, dropped=dropped)
    if implementation == "cudnn" and hindrance:
        raise ConfigError(f'attention(implementation="cudnn"): {hindrance}.')
    if implementation == "cudnn" or (implementation == "auto" and not hindrance and _has_cudnn()):
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, scale=factor, implementation="cudnn"
        )
    options = _Options(factor, causal, dropout if dropped else 0.0)
    heads_first = (jnp.swapaxes(x, 0, 1) for x in (query, key.astype(query.dtype), value))
    return jnp.swapaxes(_attend(options, *heads_first, mask, dropout_key if dropped else None), 0, 1)


class _Options(NamedTuple):
    scale: float
    causal: bool
    dropout: float

    def logits(self, query: Array, key: Array) -> Array:
        return self.scale * jnp.einsum("hqd,hkd->hqk", query, key, preferred_element_type=jnp.float32)

    def visible(self, mask: Array | None, queries: int, tokens: int) -> Array | None:
        if self.causal:
            earlier = jnp.tril(jnp.ones((queries, tokens), bool))
            mask = earlier if mask is None else mask & earlier.reshape((1,) * (mask.ndim - 2) + earlier.shape)
        return mask if mask is None or mask.ndim == 3 else mask[None]

    def dropped(self, weights: Array, key: PRNGKeyArray | None) -> Array:
        if key is None:
            return weights
        return jnp.where(keep_mask(key, self.dropout, weights.shape), weights / (1 - self.dropout), 0.0)


def _primal(options: _Options, query: Array, key: Array, value: Array, mask: Any, dropout_key: Any) -> Array:
    return _forward(options, query, key, value, mask, dropout_key)[0]


def _forward(options: _Options, query: Array, key: Array, value: Array, mask: Any, dropout_key: Any):
    logits = options.logits(query, key)
    visible = options.visible(mask, *logits.shape[1:])
    if visible is not None:
        logits = jnp.where(visible, logits, HIDDEN)
    largest = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    if visible is not None:
        weights = jnp.where(visible, weights, 0.0)
    total = weights.sum(-1, keepdims=True)
    total = jnp.where(total > 0, total, 1.0)
    weights = options.dropped(weights, dropout_key).astype(value.dtype)
    out = jnp.einsum("hqk,hkd->hqd", weights, value, preferred_element_type=jnp.float32)
    out = (out / total).astype(value.dtype)
    return out, (query, key, value, mask, dropout_key, out, largest + jnp.log(total))


def _backward(options: _Options, kept, gradient: Array):
    query, key, value, mask, dropout_key, out, normaliser = kept
    weights = jnp.exp(options.logits(query, key) - normaliser)
    visible = options.visible(mask, *weights.shape[1:])
    if visible is not None:
        weights = jnp.where(visible, weights, 0.0)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_value = product("hqk,hqd->hkd", options.dropped(weights, dropout_key).astype(gradient.dtype), gradient)
    d_weights = options.dropped(product("hqd,hkd->hqk", gradient, value), dropout_key)
    # sum_k w_k dw_k is the product of output and gradient: no sum over the weights is needed.
    mean = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_logits = (options.scale * weights * (d_weights - mean)).astype(query.dtype)
    d_query = product("hqk,hkd->hqd", d_logits, key).astype(query.dtype)
    d_key = product("hqk,hqd->hkd", d_logits, query).astype(key.dtype)
    return d_query, d_key, d_value.astype(value.dtype), None, None


_attend: Any = jax.custom_vjp(_primal, nondiff_argnums=(0,))
_attend.defvjp(_forward, _backward)


def _no_cudnn(query: Array, key: Array, value: Array, *, masked: bool, dropped: bool) -> str:
    """Why cuDNN's kernel cannot serve, or an empty string."""
    if any(x.dtype not in (jnp.bfloat16, jnp.float16) for x in (query, key, value)):
        return "the kernel wants bfloat16 or float16"
    if masked or dropped:
        return "masks other than the causal one, and dropout, are XLA's"
    if query.shape[-1] % 8 or value.shape[-1] != query.shape[-1] or query.shape[-1] > 128:
        return "heads must have the same number of channels in query, key and value, a multiple of 8 up to 128"
    return ""


def _has_cudnn() -> bool:
    # jax asks cuDNN for its version while tracing: for a GPU that is only described the program is XLA's.
    capability = oldest_capability()
    return compiling_for_gpu() and capability is not None and capability >= 8.0
