"""The transformer stacks of SLATE (Singh, Deng, Ahn: Illiterate DALL-E Learns to Compose, ICLR 2022).

Pre-norm blocks without biases in the attention. The first block is different: it goes on with its normalised
input, `x = norm(x); x + attention(x)`, where the others compute `x + attention(norm(x))`.
"""

from typing import NamedTuple

import equinox as eqx
import jax
from jax.nn.initializers import glorot_uniform, he_uniform, variance_scaling
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.attention import KVCache, MultiHeadAttention
from slotzoo.nn.dropout import dropout
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import LayerNorm


EPS = 1e-5


class FeedForward(eqx.Module):
    """`dropout(relu(x W_in + b_in) W_out + b_out)`, four times as wide inside."""

    inner: Linear
    outer: Linear

    def __init__(self, dim: int, *, gain: float, key: PRNGKeyArray):
        inner_key, outer_key = jax.random.split(key)
        self.inner = Linear(dim, 4 * dim, init=he_uniform(), key=inner_key)
        self.outer = Linear(4 * dim, dim, init=_glorot(gain), key=outer_key)

    def __call__(
        self, x: Float[Array, "token dim"], *, rate: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "token dim"]:
        return dropout(self.outer(jax.nn.relu(self.inner(x))), rate, key)


class EncoderBlock(eqx.Module):
    """Self-attention of all tokens, then the feed-forward network, both residual."""

    attention_norm: LayerNorm
    attention: MultiHeadAttention
    ffn_norm: LayerNorm
    ffn: FeedForward
    dropout: float = eqx.field(static=True)
    first: bool = eqx.field(static=True)

    def __init__(self, dim: int, *, heads: int, dropout: float, gain: float, first: bool, key: PRNGKeyArray):
        attention_key, ffn_key = jax.random.split(key)
        self.attention_norm, self.ffn_norm = LayerNorm(dim, eps=EPS), LayerNorm(dim, eps=EPS)
        self.attention = _attention(dim, heads, gain, attention_key)
        self.ffn = FeedForward(dim, gain=gain, key=ffn_key)
        self.dropout, self.first = dropout, first

    def __call__(
        self, x: Float[Array, "token dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "token dim"]:
        weights_key, out_key, ffn_key = _keys(key, 3)
        normal = self.attention_norm(x)
        y = self.attention(normal, dropout=self.dropout, key=weights_key)
        x = (normal if self.first else x) + dropout(y, self.dropout, out_key)
        return x + self.ffn(self.ffn_norm(x), rate=self.dropout, key=ffn_key)


class TransformerEncoder(eqx.Module):
    """A stack of `EncoderBlock`, then a layer norm. Part of the authors' code; SLATE itself does not use it."""

    blocks: tuple[EncoderBlock, ...]
    norm: LayerNorm

    def __init__(self, dim: int, blocks: int, *, heads: int, dropout: float = 0.0, key: PRNGKeyArray):
        self.blocks = tuple(
            EncoderBlock(
                dim, heads=heads, dropout=dropout, gain=(2 * blocks) ** -0.5, first=i == 0, key=block_key
            )
            for i, block_key in enumerate(jax.random.split(key, blocks))
        )
        self.norm = LayerNorm(dim, eps=EPS)

    def __call__(
        self, x: Float[Array, "token dim"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "token dim"]:
        """All tokens see all tokens; a `key` turns dropout on."""
        for block, block_key in zip(self.blocks, _keys(key, len(self.blocks)), strict=True):
            x = block(x, key=block_key)
        return self.norm(x)


class DecoderBlock(eqx.Module):
    """Causal self-attention, attention over the context (the slots), the feed-forward network, all residual."""

    self_attention_norm: LayerNorm
    self_attention: MultiHeadAttention
    cross_attention_norm: LayerNorm
    cross_attention: MultiHeadAttention
    ffn_norm: LayerNorm
    ffn: FeedForward
    dropout: float = eqx.field(static=True)
    first: bool = eqx.field(static=True)

    def __init__(self, dim: int, *, heads: int, dropout: float, gain: float, first: bool, key: PRNGKeyArray):
        self_key, cross_key, ffn_key = jax.random.split(key, 3)
        self.self_attention_norm, self.cross_attention_norm, self.ffn_norm = (
            LayerNorm(dim, eps=EPS) for _ in range(3)
        )
        self.self_attention = _attention(dim, heads, gain, self_key)
        self.cross_attention = _attention(dim, heads, gain, cross_key)
        self.ffn = FeedForward(dim, gain=gain, key=ffn_key)
        self.dropout, self.first = dropout, first

    def __call__(
        self,
        x: Float[Array, "token dim"],
        context: Float[Array, "slot dim"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "token dim"]:
        rate = self.dropout
        weights_key, out_key, cross_weights_key, cross_out_key, ffn_key = _keys(key, 5)
        normal = self.self_attention_norm(x)
        y = self.self_attention(normal, causal=True, dropout=rate, key=weights_key)
        x = (normal if self.first else x) + dropout(y, rate, out_key)
        y = self.cross_attention(self.cross_attention_norm(x), context, dropout=rate, key=cross_weights_key)
        x = x + dropout(y, rate, cross_out_key)
        return x + self.ffn(self.ffn_norm(x), rate=rate, key=ffn_key)

    def extend(
        self, x: Float[Array, "new dim"], cache: KVCache, context: "Context"
    ) -> tuple[Float[Array, "new dim"], KVCache]:
        """The rows of new tokens, given the cache of those before; no dropout."""
        normal = self.self_attention_norm(x)
        y, cache = self.self_attention.extend(normal, cache)
        x = (normal if self.first else x) + y
        x = x + self.cross_attention.attend(self.cross_attention_norm(x), context.key, context.value)
        return x + self.ffn(self.ffn_norm(x)), cache


class Context(NamedTuple):
    """Keys and values of the slots in one block: computed once, read by every token."""

    key: Float[Array, "slot head dim"]
    value: Float[Array, "slot head dim"]


class DecoderState(NamedTuple):
    """What generation carries along: for each block the tokens so far, and what it knows of the slots."""

    caches: tuple[KVCache, ...]
    contexts: tuple[Context, ...]


class TransformerDecoder(eqx.Module):
    """A stack of `DecoderBlock`, then a layer norm: token `t` sees the tokens up to `t` and all of the context.

    `init_state` and `extend` compute the same token by token, at a cost that grows with the square of the
    length, in place of the cube.
    """

    blocks: tuple[DecoderBlock, ...]
    norm: LayerNorm

    def __init__(self, dim: int, blocks: int, *, heads: int, dropout: float = 0.0, key: PRNGKeyArray):
        self.blocks = tuple(
            DecoderBlock(
                dim, heads=heads, dropout=dropout, gain=(3 * blocks) ** -0.5, first=i == 0, key=block_key
            )
            for i, block_key in enumerate(jax.random.split(key, blocks))
        )
        self.norm = LayerNorm(dim, eps=EPS)

    def __call__(
        self,
        x: Float[Array, "token dim"],
        context: Float[Array, "slot dim"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "token dim"]:
        """All tokens at once; a `key` turns dropout on."""
        for block, block_key in zip(self.blocks, _keys(key, len(self.blocks)), strict=True):
            x = block(x, context, key=block_key)
        return self.norm(x)

    def init_state(self, context: Float[Array, "slot dim"], length: int) -> DecoderState:
        """The state before the first of at most `length` tokens."""
        return DecoderState(
            tuple(block.self_attention.init_cache(length, context.dtype) for block in self.blocks),
            tuple(Context(*block.cross_attention.project(context)) for block in self.blocks),
        )

    def extend(
        self, x: Float[Array, "new dim"], state: DecoderState
    ) -> tuple[Float[Array, "new dim"], DecoderState]:
        """The rows of tokens that follow those in `state`."""
        caches = []
        for block, cache, context in zip(self.blocks, state.caches, state.contexts, strict=True):
            x, cache = block.extend(x, cache, context)
            caches.append(cache)
        return self.norm(x), state._replace(caches=tuple(caches))


def _attention(dim: int, heads: int, gain: float, key: PRNGKeyArray) -> MultiHeadAttention:
    return MultiHeadAttention(dim, heads=heads, init=glorot_uniform(), out_init=_glorot(gain), key=key)


def _glorot(gain: float) -> jax.nn.initializers.Initializer:
    return variance_scaling(gain**2, "fan_avg", "uniform")


def _keys(key: PRNGKeyArray | None, count: int) -> list[PRNGKeyArray] | list[None]:
    return [None] * count if key is None else list(jax.random.split(key, count))
