"""The Transformer of TECO and of its baselines (Yan et al., ICML 2023): pre-norm layers between two projections.

    x = project_in(x) + positions;   x += attention(norm(x));   x += mlp(norm(x));   norm(gelu(project_out(x)))

It runs over all tokens at once or, with a cache, over the tokens of one frame after the other.
"""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal, variance_scaling
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.nn.activations import activation
from slotzoo.nn.attention import KVCache, MultiHeadAttention
from slotzoo.nn.dropout import dropout
from slotzoo.nn.favor import FavorAttention, FavorOptions, FavorState
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import LayerNorm


Positions = Literal["sinusoidal", "broadcast", "none"]
# One per layer: keys and values, or what a Performer keeps of them.
TransformerState = tuple[KVCache, ...] | tuple[FavorState, ...]


class TransformerLayer(eqx.Module):
    """`x + attention(norm(x))`, then `x + wo(h sigmoid(1.702 h))` with `h = wi(norm(x))`."""

    norm_1: LayerNorm
    attention: MultiHeadAttention | FavorAttention
    norm_2: LayerNorm
    wi: Linear
    wo: Linear
    dropout: float = eqx.field(static=True)
    attention_dropout: float = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        heads: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        favor: FavorOptions | None = None,
        key: PRNGKeyArray,
    ):
        """`favor`: attention by random features, in linear time."""
        attention_key, in_key, out_key = jax.random.split(key, 3)
        init = variance_scaling(1.0, "fan_in", "normal")
        self.norm_1, self.norm_2 = LayerNorm(dim), LayerNorm(dim)
        if favor is None:
            self.attention = MultiHeadAttention(
                dim, heads=heads, use_bias=True, use_out_bias=True, init=init, key=attention_key
            )
        else:
            self.attention = FavorAttention(dim, heads=heads, options=favor, init=init, key=attention_key)
        self.wi = Linear(dim, mlp_dim, init=init, key=in_key)
        self.wo = Linear(mlp_dim, dim, init=init, key=out_key)
        self.dropout, self.attention_dropout = dropout, attention_dropout

    def __call__(
        self,
        x: Float[Array, "token dim"],
        *,
        mask: Bool[Array, "token token"] | None = None,
        frame: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "token dim"]:
        """All tokens at once; `mask`, `frame` and `key` as in `Transformer`."""
        keys = [None] * 4 if key is None else list(jax.random.split(key, 4))
        h = self.norm_1(x)
        if isinstance(self.attention, FavorAttention):
            h = self.attention(h, frame=frame)
        else:
            h = self.attention(h, mask=mask, causal=frame == 1, dropout=self.attention_dropout, key=keys[0])
        return self._mlp(x + dropout(h, self.dropout, keys[1]), keys[2:])

    def extend(
        self,
        x: Float[Array, "new dim"],
        state: KVCache | FavorState,
        *,
        seen: Bool[Array, "new length"] | None,
        frame: int,
    ) -> tuple[Float[Array, "new dim"], KVCache | FavorState]:
        """Tokens that follow those in the state, in frames of `frame`; `seen` is True where in the cache they look."""
        h = self.norm_1(x)
        if isinstance(self.attention, FavorAttention):
            assert isinstance(state, FavorState)
            h, state = self.attention.extend(h, state, frame=frame)
        else:
            assert isinstance(state, KVCache)
            h, state = self.attention.extend(h, state, seen=seen)
        return self._mlp(x + h, [None, None]), state

    def _mlp(self, x: Array, keys: Sequence[PRNGKeyArray | None]) -> Array:
        h = self.wi(self.norm_2(x))
        # One mask for all tokens, as in the seed.
        h = dropout(h * jax.nn.sigmoid(1.702 * h), self.dropout, keys[0], shared=True)
        return x + dropout(self.wo(h), self.dropout, keys[1])


class Transformer(eqx.Module):
    """`layers` Transformer layers over tokens of `in_dim` channels, `dim` channels wide inside and at the end.

    Positions are added after the first projection: "sinusoidal" ones of the token's number (sines in the first
    half of the channels, cosines in the second), learned ones per axis of a grid ("broadcast"), or none.
    """

    project_in: Linear
    tables: tuple[Float[Array, "place width"], ...]
    layers: tuple[TransformerLayer, ...]
    project_out: Linear
    norm: LayerNorm
    dim: int = eqx.field(static=True)
    positions: Positions = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        mlp_dim: int,
        heads: int,
        layers: int,
        positions: Positions,
        grid: tuple[int, ...] = (),
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        favor: FavorOptions | None = None,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """`grid`: with "broadcast" positions, the sizes of the grid that the tokens are the flattened form of.

        `favor`: attention by random features, in linear time; `remat`: the backward pass keeps only the input of
        each layer.
        """
        in_key, out_key, table_key, *keys = jax.random.split(key, 3 + layers)
        self.project_in = Linear(in_dim, dim, key=in_key)
        self.project_out = Linear(dim, dim, key=out_key)
        self.norm = LayerNorm(dim)
        self.layers = tuple(
            TransformerLayer(
                dim,
                mlp_dim,
                heads,
                dropout=dropout,
                attention_dropout=attention_dropout,
                favor=favor,
                key=layer_key,
            )
            for layer_key in keys
        )
        # Channels that the axes cannot share equally go to the first ones.
        axes = len(grid) if positions == "broadcast" else 0
        widths = [dim // axes + (i < dim % axes) for i in range(axes)]
        table_keys = jax.random.split(table_key, axes) if axes else ()
        self.tables = tuple(
            normal(0.02)(table_key, (size, width), jnp.float32)
            for table_key, size, width in zip(table_keys, grid[:axes], widths, strict=True)
        )
        self.dim, self.positions, self.dropout, self.remat = dim, positions, dropout, remat

    def __call__(
        self,
        x: Float[Array, "token in"],
        *,
        mask: Bool[Array, "token token"] | None = None,
        frame: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "token dim"]:
        """All tokens at once.

        `mask` is True where one may look (a Performer has none). With `frame` tokens per frame they look at their
        own frame and all earlier ones. A `key` turns dropout on.
        """
        keys = [None] * (2 + len(self.layers))
        keys = keys if key is None else list(jax.random.split(key, len(keys)))
        if frame is not None and frame > 1 and mask is None and not self.unbounded:
            mask = frame_mask(len(x) // frame, frame)
        x = self.project_in(x)
        x = dropout(self._placed(x, jnp.int32(0)), self.dropout, keys[0])
        for layer, layer_key in zip(self.layers, keys[1:], strict=False):
            run = eqx.filter_checkpoint(layer) if self.remat else layer
            x = run(x, mask=mask, frame=frame, key=layer_key)
        return dropout(self._after(x), self.dropout, keys[-1])

    @property
    def unbounded(self) -> bool:
        """Whether the state holds any number of tokens: it is a Performer."""
        return isinstance(self.layers[0].attention, FavorAttention)

    def init_cache(self, length: int) -> TransformerState:
        """The state of every layer before the first token: room for `length` tokens, or a Performer's sums."""
        dtype = self.project_in.weight.dtype
        states = []
        for layer in self.layers:
            if isinstance(layer.attention, FavorAttention):
                states.append(layer.attention.init_state())
            else:
                states.append(layer.attention.init_cache(length, dtype))
        return tuple(states)

    def extend(
        self, x: Float[Array, "new in"], states: TransformerState, *, frame: int | None = None
    ) -> tuple[Float[Array, "new dim"], TransformerState]:
        """Tokens that follow those in the states: the last rows of a call with `frame`.

        They are one frame, or several of `frame` tokens each. Shapes do not change, so this can be the body of a
        `jax.lax.scan`. Tokens beyond a cache's length come out as NaN.
        """
        start, new = states[0].position, len(x)
        frame = new if frame is None else frame
        seen = None
        if isinstance(states[0], KVCache):
            last = start + (jnp.arange(new) // frame + 1) * frame
            seen = jnp.arange(len(states[0].key))[None, :] < last[:, None]
        x = self._placed(self.project_in(x), start)
        filled = []
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer.extend(x, state, seen=seen, frame=frame)
            filled.append(state)
        return self._after(x), tuple(filled)

    def _placed(self, x: Array, start: Int[Array, ""]) -> Array:
        if self.positions == "sinusoidal":
            return x + sinusoids(start + jnp.arange(len(x)), self.dim).astype(x.dtype)
        if self.positions == "broadcast":
            shape = tuple(len(table) for table in self.tables)
            parts = []
            for axis, table in enumerate(self.tables):
                along = [1] * len(shape) + [table.shape[1]]
                along[axis] = len(table)
                parts.append(jnp.broadcast_to(table.reshape(along), (*shape, table.shape[1])))
            return x + jnp.concatenate(parts, -1).reshape(-1, self.dim).astype(x.dtype)
        return x

    def _after(self, x: Array) -> Array:
        return self.norm(activation("gelu")(self.project_out(x)))


def sinusoids(positions: Int[Array, " token"], dim: int) -> Float[Array, "token {dim}"]:
    """`[sin(p / 10000^(2 i / dim)) | cos(the same)]` for i below `dim / 2`."""
    rates = jnp.asarray(10000.0 ** (-2 * np.arange(dim // 2) / dim), jnp.float32)
    angles = positions.astype(jnp.float32)[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def frame_mask(frames: int, tokens: int) -> Bool[Array, "all all"]:
    """True where a token may look: at every token of its own frame and of all earlier ones (`tokens` per frame)."""
    number = jnp.arange(frames * tokens) // tokens
    return number[:, None] >= number[None, :]
