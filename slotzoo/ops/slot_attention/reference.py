"""The formula as it is written: softmax over slots, weighted sums over tokens, derivatives by JAX."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def forward(
    query: Float[Array, "row dim"],
    key: Float[Array, "token dim"],
    value: Float[Array, "token vdim"],
    *,
    scale: float,
    epsilon: float,
) -> tuple[Float[Array, "row vdim"], Float[Array, "row"]]:
    """`sum_t w_tr value_t` and `sum_t w_tr`, in float32; `w_tr = softmax_r(scale query_r . key_t) + epsilon`."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    logits = scale * jnp.einsum("td,rd->tr", key, query)
    weights = jax.nn.softmax(logits, axis=1) + epsilon
    return jnp.einsum("tr,tv->rv", weights, value), weights.sum(axis=0)


def backward(
    query: Float[Array, "row dim"],
    key: Float[Array, "token dim"],
    value: Float[Array, "token vdim"],
    total: Float[Array, "row vdim"],
    weight: Float[Array, "row"],
    *,
    scale: float,
    epsilon: float,
) -> tuple[Float[Array, "row dim"], Float[Array, "token dim"], Float[Array, "token vdim"]]:
    """Cotangents of (query, key, value), given those of both sums."""
    _, pullback = jax.vjp(lambda *args: forward(*args, scale=scale, epsilon=epsilon), query, key, value)
    return pullback((total, weight))
