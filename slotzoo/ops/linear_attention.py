"""Attention that is linear in the number of tokens: products of non-negative features in place of a softmax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


CHUNK = 128  # tokens whose products with each other are computed at once


class LinearState(NamedTuple):
    """What tokens so far come to: `sum_t k_t v_t` and `sum_t k_t`."""

    values: Float[Array, "head feature dim"]
    weights: Float[Array, "head feature"]


def empty_state(heads: int, features: int, dim: int) -> LinearState:
    """The state before the first token."""
    return LinearState(jnp.zeros((heads, features, dim)), jnp.zeros((heads, features)))


def linear_attention(
    query: Float[Array, "query head feature"],
    key: Float[Array, "token head feature"],
    value: Float[Array, "token head dim"],
    *,
    frame: int | None = None,
    state: LinearState | None = None,
    stabiliser: float = 0.0,
) -> tuple[Float[Array, "query head dim"], LinearState]:
    """`y_q = sum_t (query_q . key_t) value_t / sum_t (query_q . key_t)`, for each head by itself.

    The sums run over all tokens, or with `frame` (tokens per frame; 1 is causal attention) over those of the
    query's own frame and all earlier ones: then by chunks, in linear time, with one state per chunk kept for the
    backward pass. `state` holds tokens before the first; the state after the last one is returned.
    Denominators of at most `stabiliser` are raised by twice its value, as the Performer's authors do. In float32;
    the result has the dtype of `value`.

    Source: Katharopoulos et al., Transformers are RNNs, ICML 2020, section 3.
    """
    state = empty_state(key.shape[1], key.shape[2], value.shape[2]) if state is None else state
    q, k, v = (x.astype(jnp.float32) for x in (query, key, value))
    if frame is None:
        state = _added(state, k, v)
        return _quotient(*_read(q, state), stabiliser).astype(value.dtype), state
    chunk = max(1, CHUNK // frame) * frame
    if len(q) <= chunk:
        state, y = _chunk(state, q, k, v, frame, stabiliser)
        return y.astype(value.dtype), state
    rest = -len(q) % chunk
    # Features of zero add nothing.
    split = lambda x: jnp.pad(x, ((0, rest), (0, 0), (0, 0))).reshape(-1, chunk, *x.shape[1:])

    def body(state: LinearState, now: tuple[Array, Array, Array]):
        return _chunk(state, *now, frame, stabiliser)

    state, y = lax.scan(jax.checkpoint(body), state, (split(q), split(k), split(v)))
    return y.reshape(-1, *y.shape[2:])[: len(q)].astype(value.dtype), state


def _chunk(
    state: LinearState, q: Array, k: Array, v: Array, frame: int, stabiliser: float
) -> tuple[LinearState, Array]:
    number = jnp.arange(len(q)) // frame
    products = jnp.einsum("qhm,khm->hqk", q, k)
    products = jnp.where((number[:, None] >= number[None, :])[None], products, 0.0)
    values, weights = _read(q, state)
    values = values + jnp.einsum("hqk,khd->qhd", products, v)
    weights = weights + products.sum(-1).T
    return _added(state, k, v), _quotient(values, weights, stabiliser)


def _read(q: Array, state: LinearState) -> tuple[Array, Array]:
    return jnp.einsum("qhm,hmd->qhd", q, state.values), jnp.einsum("qhm,hm->qh", q, state.weights)


def _added(state: LinearState, k: Array, v: Array) -> LinearState:
    return LinearState(state.values + jnp.einsum("khm,khd->hmd", k, v), state.weights + k.sum(0))


def _quotient(values: Array, weights: Array, stabiliser: float) -> Array:
    # A padded query has no weight at all: its quotient is not read, and must not be NaN in the backward pass.
    weights = jnp.where(jnp.abs(weights) <= stabiliser, weights + 2 * stabiliser, weights)
    weights = jnp.where(weights == 0, 1.0, weights)
    return values / weights[..., None]
