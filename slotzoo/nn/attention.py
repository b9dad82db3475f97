"""Multi-head attention, with a cache of keys and values for generation one token after the other."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.nn.linear import Linear
from slotzoo.ops.attention import attention


class KVCache(NamedTuple):
    """Keys and values of the tokens so far: the first `position` rows count, the others wait to be written."""

    key: Float[Array, "length head dim"]
    value: Float[Array, "length head dim"]
    position: Int[Array, ""]


class MultiHeadAttention(eqx.Module):
    """`out(attention(query(x), key(context), value(context)))` over `heads` heads; the context is `x` if not given.

    Three ways to use it, with the same parameters: whole sequences (`__call__`), causally token by token
    (`init_cache`, `extend`), and over a context that stays (`project` once, `attend` often).
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)

    def __init__(
        self,
        query_dim: int,
        context_dim: int | None = None,
        *,
        heads: int,
        head_dim: int | None = None,
        out_dim: int | None = None,
        use_bias: bool = False,
        use_out_bias: bool = False,
        init: Initializer = lecun_normal(),
        out_init: Initializer | None = None,
        key: PRNGKeyArray,
    ):
        """`head_dim` is `query_dim / heads` unless given, `out_dim` is `query_dim`; zero biases.

        **Raises** ConfigError where `query_dim` cannot be split into the heads.
        """
        if head_dim is None and query_dim % heads:
            raise ConfigError(
                f"attention: {query_dim} channels cannot be split into heads={heads} of equal size."
            )
        self.heads, self.head_dim = heads, head_dim or query_dim // heads
        inner = self.heads * self.head_dim
        context_dim = query_dim if context_dim is None else context_dim
        query_key, key_key, value_key, out_key = jax.random.split(key, 4)
        self.query = Linear(query_dim, inner, bias=use_bias, init=init, key=query_key)
        self.key = Linear(context_dim, inner, bias=use_bias, init=init, key=key_key)
        self.value = Linear(context_dim, inner, bias=use_bias, init=init, key=value_key)
        self.out = Linear(inner, out_dim or query_dim, bias=use_out_bias, init=out_init or init, key=out_key)

    def __call__(
        self,
        x: Float[Array, "query dim"],
        context: Float[Array, "token context_dim"] | None = None,
        *,
        mask: Bool[Array, "query token"] | Bool[Array, "head query token"] | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "query out"]:
        """All queries at once. `mask` is True where one may look; a `key` turns the `dropout` of weights on."""
        keys, values = self.project(x if context is None else context)
        return self.attend(x, keys, values, mask=mask, causal=causal, dropout=dropout, key=key)

    def project(
        self, context: Float[Array, "token context_dim"]
    ) -> tuple[Float[Array, "token head dim"], Float[Array, "token head dim"]]:
        """The keys and values of a context."""
        return self._split(self.key(context)), self._split(self.value(context))

    def attend(
        self,
        x: Float[Array, "query dim"],
        keys: Float[Array, "token head head_dim"],
        values: Float[Array, "token head head_dim"],
        *,
        mask: Bool[Array, "query token"] | Bool[Array, "head query token"] | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "query out"]:
        """What the queries of `x` read from keys and values that `project` made."""
        y = attention(
            self._split(self.query(x)),
            keys,
            values,
            mask=mask,
            causal=causal,
            dropout=dropout,
            dropout_key=key,
        )
        return self.out(y.reshape(len(x), -1))

    def init_cache(self, length: int, dtype: DTypeLike = jnp.float32) -> KVCache:
        """An empty cache for sequences of at most `length` tokens."""
        empty = jnp.zeros((length, self.heads, self.head_dim), dtype)
        return KVCache(empty, empty, jnp.zeros((), jnp.int32))

    def extend(
        self, x: Float[Array, "new dim"], cache: KVCache, *, seen: Bool[Array, "new token"] | None = None
    ) -> tuple[Float[Array, "new out"], KVCache]:
        """Self-attention of tokens that follow those in the cache: equal to the last rows of
        `self(everything so far, causal=True)`, or, with `seen`, to those under that mask.

        Shapes do not change, so this can be the body of a `jax.lax.scan`. How many tokens came before is not known
        when this is compiled: beyond the cache's length the result is NaN, as there is no room for what is looked at.
        **Raises** ShapeError where the new tokens alone are too many.
        """
        length = len(cache.key)
        if len(x) > length:
            raise ShapeError(f"the cache was made for {length} tokens, {len(x)} do not fit; make it longer.")
        keys, values = self.project(x)
        at = (cache.position, jnp.int32(0), jnp.int32(0))
        keys = jax.lax.dynamic_update_slice(cache.key, keys.astype(cache.key.dtype), at)
        values = jax.lax.dynamic_update_slice(cache.value, values.astype(cache.value.dtype), at)
        if seen is None:
            seen = jnp.arange(length)[None, :] <= cache.position + jnp.arange(len(x))[:, None]
        y = self.attend(x, keys.astype(x.dtype), values.astype(x.dtype), mask=seen)
        end = cache.position + len(x)
        return jnp.where(end <= length, y, jnp.nan), KVCache(keys, values, end)

    def _split(self, y: Array) -> Array:
        return y.reshape(len(y), self.heads, self.head_dim)
