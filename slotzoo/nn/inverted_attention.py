"""Inverted attention: queries and heads compete for every token, then each query averages what it won."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.torch_init import TORCH_UNIFORM
from slotzoo.ops.attention import HIDDEN
from slotzoo.ops.slot_attention import slot_attention


class Attended(NamedTuple):
    """What each query read, and its share of every token, before the shares of a query are made to sum to 1."""

    values: Float[Array, "query dim"]
    attention: Float[Array, "head query token"]


class InvertedAttention(eqx.Module):
    """`out(sum_t w_hqt value_t)` with `w = softmax_hq(query_hq . key_ht / sqrt(dim))`, divided by `sum_t w + 1e-5`.

    The softmax runs over heads and queries jointly: every token gives its whole self away once. One pass and no
    recurrence: slot attention's competition without its iterations.

    Source: Jiang et al., Slot State Space Models, NeurIPS 2024, section 3.3; Wu et al., Inverted-Attention
    Transformers, 2023.
    """

    project: MultiHeadAttention
    normalise: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 1,
        head_dim: int | None = None,
        use_bias: bool = True,
        normalise: bool = True,
        key: PRNGKeyArray,
    ):
        """PyTorch's uniform kernels, zero biases. Without `normalise` a query takes the sum of what it won."""
        self.project = MultiHeadAttention(
            dim,
            heads=heads,
            head_dim=head_dim,
            use_bias=use_bias,
            use_out_bias=use_bias,
            init=TORCH_UNIFORM,
            key=key,
        )
        self.normalise = normalise

    def __call__(
        self,
        x: Float[Array, "query dim"],
        context: Float[Array, "token dim"],
        values: Float[Array, "token dim"] | None = None,
        *,
        mask: Bool[Array, "query token"] | None = None,
        bias: Float[Array, "query token"] | None = None,
    ) -> Attended:
        """`values` are read in place of `context` where given. `mask` is True where a query may look (a token that none
        may see is nobody's); `bias` adds to the logits.
        """
        p = self.project
        values = p.value(context if values is None else values)
        shares = self._shares(x, context, mask, bias)
        if mask is None and bias is None and self.normalise:
            # The attention is computed apart, and by those only who use it: the op never stores it.
            query, keys = p.query(x), p.key(context)
            read = slot_attention(query, keys, values, epsilon=0.0, sum_epsilon=1e-5, heads=p.heads)
        else:
            weights = shares
            if self.normalise:
                weights = weights / (weights.sum(-1, keepdims=True) + 1e-5)
            values = values.reshape(len(context), p.heads, p.head_dim)
            read = jnp.einsum("hqt,thd->qhd", weights.astype(values.dtype), values).reshape(len(x), -1)
        return Attended(p.out(read), shares)

    def _shares(self, x: Array, context: Array, mask: Array | None, bias: Array | None) -> Array:
        p = self.project
        query = p.query(x).reshape(len(x), p.heads, p.head_dim) * p.head_dim**-0.5
        keys = p.key(context).reshape(len(context), p.heads, p.head_dim)
        logits = jnp.einsum("qhd,thd->hqt", query, keys, preferred_element_type=jnp.float32)
        if bias is not None:
            logits = logits + bias[None].astype(logits.dtype)
        if mask is not None:
            logits = jnp.where(mask[None], logits, HIDDEN)
        shares = jax.nn.softmax(logits.reshape(-1, len(context)), axis=0).reshape(logits.shape)
        return shares if mask is None else jnp.where(mask[None], shares, 0.0)


def attention_map(
    attention: MultiHeadAttention,
    x: Float[Array, "query dim"],
    context: Float[Array, "token dim"],
    *,
    mask: Bool[Array, "query token"] | None = None,
) -> Float[Array, "head query token"]:
    """The weights with which plain attention reads the context, float32: they sum to 1 over the tokens."""
    query = attention.query(x).reshape(len(x), attention.heads, attention.head_dim)
    keys = attention.key(context).reshape(len(context), attention.heads, attention.head_dim)
    logits = jnp.einsum("qhd,thd->hqt", query, keys, preferred_element_type=jnp.float32)
    logits = logits * attention.head_dim**-0.5
    if mask is not None:
        logits = jnp.where(mask[None], logits, HIDDEN)
    return jax.nn.softmax(logits, axis=-1)
