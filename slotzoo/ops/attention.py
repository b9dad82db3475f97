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
from slotzoo.ops.order import late
from slotzoo.ops.turned import turned


Implementation = Literal["auto", "xla", "cudnn"]
AT_ONCE = (
    64  # the fewest queries of causal attention in a block: of 256, five eighths of all pairs are computed
)
BLOCKS = 8  # and the most blocks of them, each of which is compiled: nine sixteenths of all pairs
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


class _Rows(NamedTuple):
    """Queries that are worked on at a time, and how many tokens they may see."""

    start: int
    stop: int
    tokens: int

    def visible(self, mask: Array | None, causal: bool) -> Array | None:
        if mask is not None:
            mask = mask[..., self.start : self.stop, : self.tokens]
            mask = mask if mask.ndim == 3 else mask[None]
        if not causal:
            return mask
        earlier = jnp.arange(self.tokens)[None, :] <= jnp.arange(self.start, self.stop)[:, None]
        return earlier[None] if mask is None else mask & earlier[None]


class _Options(NamedTuple):
    scale: float
    causal: bool
    dropout: float

    def rows(self, query: Array, key: Array) -> list[_Rows]:
        """All queries at once, or blocks of them: of what a causal mask hides most is then not computed."""
        queries, tokens = query.shape[1], key.shape[1]
        if not self.causal:
            return [_Rows(0, queries, tokens)]
        count = max(AT_ONCE, -(-queries // BLOCKS))
        starts = range(0, max(queries, 1), count)
        return [_Rows(i, min(i + count, queries), min(i + count, queries, tokens)) for i in starts]

    def logits(self, query: Array, key: Array) -> Array:
        scaled = (self.scale * query.astype(jnp.float32)).astype(query.dtype)
        return jnp.einsum("hqd,hkd->hqk", scaled, key, preferred_element_type=jnp.float32)

    def dropped(self, weights: Array, key: PRNGKeyArray | None) -> Array:
        """Zero where dropped; what is kept is not divided by the share that is."""
        if key is None:
            return weights
        return jnp.where(keep_mask(key, self.dropout, weights.shape), weights, 0.0)


def _primal(options: _Options, query: Array, key: Array, value: Array, mask: Any, dropout_key: Any) -> Array:
    return _forward(options, query, key, value, mask, dropout_key)[0]


def _forward(options: _Options, query: Array, key: Array, value: Array, mask: Any, dropout_key: Any):
    parts = []
    for rows, own in _each(options, query, key, dropout_key):
        logits = options.logits(query[:, rows.start : rows.stop], key[:, : rows.tokens])
        visible = rows.visible(mask, options.causal)
        if visible is not None:
            logits = jnp.where(visible, logits, HIDDEN)
        largest = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - largest)
        if mask is not None and visible is not None:  # without a mask a query sees a token at least
            weights = jnp.where(visible, weights, 0.0)
        total = weights.sum(-1, keepdims=True)
        total = jnp.where(total > 0, total, 1.0)
        weights = options.dropped(weights, own).astype(value.dtype)
        seen = value[:, : rows.tokens]
        out = jnp.einsum("hqk,hkd->hqd", weights, seen, preferred_element_type=jnp.float32)
        out = (out / (total * (1 - options.dropout))).astype(value.dtype)
        parts.append((out, largest + jnp.log(total)))
    out, normaliser = (jnp.concatenate(part, 1) for part in zip(*parts, strict=True))
    return out, (query, key, value, mask, dropout_key, out, normaliser)


def _backward(options: _Options, kept, gradient: Array):
    query, key, value, mask, dropout_key, out, normaliser = kept
    query = late(query, gradient)
    # sum_k w_k dw_k is the product of output and gradient: no sum over the weights is needed.
    mean = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    gradient = (gradient.astype(jnp.float32) / (1 - options.dropout)).astype(gradient.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    parts, d_key, d_value = [], jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    for rows, own in _each(options, query, key, dropout_key):
        at = slice(rows.start, rows.stop)
        asked, given, seen, read = query[:, at], gradient[:, at], key[:, : rows.tokens], value[:, : rows.tokens]
        weights = jnp.exp(options.logits(asked, seen) - normaliser[:, at])
        visible = rows.visible(mask, options.causal)
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        d_weights = product("hqd,hkd->hqk", given, read)
        left = options.dropped(weights, own)
        d_logits = (left * d_weights - weights * mean[:, at]).astype(query.dtype)
        # The narrow factor is the one to turn over: XLA's CPU compiler has no fast program for the other.
        d_value = _added(d_value, product("hdq,hqk->hdk", turned(given), left.astype(given.dtype)))
        d_key = _added(d_key, product("hdq,hqk->hdk", turned(asked), d_logits))
        parts.append(product("hqk,hkd->hqd", d_logits, seen))
    d_query = options.scale * jnp.concatenate(parts, 1)
    return (
        d_query.astype(query.dtype),
        (options.scale * d_key).astype(key.dtype),
        d_value.astype(value.dtype),
        None,
        None,
    )


def _each(options: _Options, query: Array, key: Array, dropout_key: Any) -> list[tuple[_Rows, Any]]:
    """The blocks of queries, each with its key of dropout."""
    rows = options.rows(query, key)
    if dropout_key is None or len(rows) == 1:
        return [(each, dropout_key) for each in rows]
    return list(zip(rows, jax.random.split(dropout_key, len(rows)), strict=True))


def _added(total: Array, sums: Array) -> Array:
    """Sums over queries, (head, dim, token), added to those of the first tokens."""
    missing = total.shape[1] - sums.shape[2]
    return total + jnp.pad(turned(sums), ((0, 0), (0, missing), (0, 0)))


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
