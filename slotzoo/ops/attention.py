"""Softmax attention: one function, XLA's or cuDNN's program behind it."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from slotzoo.ops.device import compiling_for_gpu, oldest_capability


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
    Softmax in float32; the result has the dtype of `value`.

    `"auto"` takes cuDNN's fused kernel on GPUs that have it (Ampere or newer), in half precision, without
    dropout and mask, for heads of at most 128 channels in steps of 8; XLA otherwise.

    Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2. **Raises** ValueError where
    `"cudnn"` is asked for what it cannot do.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    dropped = dropout > 0 and dropout_key is not None
    hindrance = _no_cudnn(query, key, value, masked=mask is not None, dropped=dropped)
    if implementation == "cudnn" and hindrance:
        raise ValueError(f'attention(implementation="cudnn"): {hindrance}.')
    if implementation == "cudnn" or (implementation == "auto" and not hindrance and _has_cudnn()):
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, scale=factor, implementation="cudnn"
        )
    logits = jnp.einsum(
        "qhd,khd->hqk", query * factor, key.astype(query.dtype), preferred_element_type=jnp.float32
    )
    visible = None if mask is None else jnp.broadcast_to(mask, logits.shape) if mask.ndim == 3 else mask[None]
    if causal:
        earlier = jnp.tril(jnp.ones(logits.shape[1:], bool))[None]
        visible = earlier if visible is None else visible & earlier
    if visible is not None:
        logits = jnp.where(visible, logits, HIDDEN)
    weights = jax.nn.softmax(logits, axis=-1)
    if mask is not None and visible is not None:
        weights = jnp.where(visible.any(-1, keepdims=True), weights, 0.0)
    if dropout > 0 and dropout_key is not None:
        keep = jax.random.bernoulli(dropout_key, 1 - dropout, weights.shape)
        weights = jnp.where(keep, weights / (1 - dropout), 0.0)
    return jnp.einsum("hqk,khd->qhd", weights.astype(value.dtype), value)


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
    capability = oldest_capability()
    return compiling_for_gpu() and (capability is None or capability >= 8.0)
