"""Mixers that SlotSSM is compared with: attention over the past, a gated unit, independent mechanisms."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.nn.attention import KVCache, MultiHeadAttention
from slotzoo.nn.gru import GRUCell
from slotzoo.nn.linear import Linear
from slotzoo.nn.mixer import AbstractMixer
from slotzoo.nn.torch_init import TORCH_UNIFORM
from slotzoo.nn.transformer import sinusoids


class AttentionMixer(AbstractMixer):
    """Each slot attends to itself in all frames so far, whose number is added as sines: the mixer of a SlotTransformer.

    Time and memory grow with the square of the frames; a stream has room for `length` of them, NaN comes after.
    """

    attention: MultiHeadAttention
    dim: int = eqx.field(static=True)
    length: int = eqx.field(static=True)

    def __init__(self, dim: int, *, heads: int, length: int, key: PRNGKeyArray):
        self.attention = MultiHeadAttention(
            dim, heads=heads, use_bias=True, use_out_bias=True, init=TORCH_UNIFORM, key=key
        )
        self.dim, self.length = dim, length

    def init_state(self, slots: int) -> KVCache:
        """Empty caches, one for every slot, that count their frames together."""
        cache = self.attention.init_cache(self.length, self.attention.query.weight.dtype)
        key, value = (jnp.broadcast_to(a, (slots, *a.shape)) for a in (cache.key, cache.value))
        return KVCache(key, value, cache.position)

    def __call__(
        self, x: Float[Array, "time slot {self.dim}"], state: KVCache | None = None
    ) -> tuple[Float[Array, "time slot {self.dim}"], KVCache]:
        """**Raises** ShapeError for more frames at once than `length`."""
        if len(x) > self.length:
            raise ShapeError(
                f"attention over time was made for {self.length} frames, {len(x)} do not fit; make max_frames larger."
            )
        first = state is None
        state = self.init_state(x.shape[1]) if state is None else state
        places = sinusoids(state.position + jnp.arange(len(x)), self.dim).astype(x.dtype)
        x = x + places[:, None, :]
        axes = KVCache(0, 0, None)  # pyright: ignore[reportArgumentType]  (axes, not arrays)
        y, cache = jax.vmap(self.attention.extend, (1, axes), (1, axes))(x, state)
        if first:
            # Among themselves: no look at the empty places of the cache.
            y = jax.vmap(lambda s: self.attention(s, causal=True), 1, 1)(x)
        return y, cache

    def step(
        self, x: Float[Array, "slot {self.dim}"], state: KVCache
    ) -> tuple[Float[Array, "slot {self.dim}"], KVCache]:
        y, state = self(x[None], state)
        return y[0], state


class GRUMixer(AbstractMixer):
    """A gated recurrent unit for each slot, with shared weights: the mixer of a SlotRNN. Frames one after the other."""

    cell: GRUCell
    out: Linear
    dim: int = eqx.field(static=True)

    def __init__(self, dim: int, *, expand: float = 1.0, key: PRNGKeyArray):
        """The state has `expand * dim` channels."""
        cell_key, out_key = jax.random.split(key)
        inner = int(expand * dim)
        self.cell = GRUCell(dim, inner, key=cell_key)
        self.out = Linear(inner, dim, init=TORCH_UNIFORM, key=out_key)
        self.dim = dim

    def init_state(self, slots: int) -> Float[Array, "{slots} inner"]:
        return jnp.zeros((slots, self.cell.hidden_size))

    def __call__(
        self, x: Float[Array, "time slot {self.dim}"], state: Any = None
    ) -> tuple[Float[Array, "time slot {self.dim}"], Float[Array, "slot inner"]]:
        state = self.init_state(x.shape[1]) if state is None else state

        def one(state: Array, x: Array) -> tuple[Array, Array]:
            state = self.cell(x, state)
            return state, state

        state, states = jax.lax.scan(one, state, x)
        return self.out(states.astype(x.dtype)), state

    def step(
        self, x: Float[Array, "slot {self.dim}"], state: Float[Array, "slot inner"]
    ) -> tuple[Float[Array, "slot {self.dim}"], Float[Array, "slot inner"]]:
        state = self.cell(x, state)
        return self.out(state.astype(x.dtype)), state


class RIMMixer(AbstractMixer):
    """Recurrent independent mechanisms: each slot has its own gated unit, few of them act in a frame.

    A mechanism weighs its input against nothing, `s_n = sigmoid(query_n(h_n) . key(x_n))`; the `active` ones with the
    largest `s_n` take `s_n value(x_n)` in and then read from all mechanisms by attention, the others keep their state.

    Source: Goyal et al., Recurrent Independent Mechanisms, ICLR 2021, section 2; the input of a mechanism is its slot.
    """

    query: Float[Array, "slot inner dim"]
    key: Linear
    value: Linear
    cells: GRUCell
    communication: MultiHeadAttention
    out: Linear
    dim: int = eqx.field(static=True)
    slots: int = eqx.field(static=True)
    active: int = eqx.field(static=True)

    def __init__(
        self, dim: int, *, slots: int, active: int, heads: int, expand: float = 1.0, key: PRNGKeyArray
    ):
        """**Raises** ConfigError unless `active` is one to all of the `slots`."""
        if not 1 <= active <= slots:
            raise ConfigError(f"RIM: active={active} of {slots} mechanisms; choose 1 to {slots}.")
        keys = jax.random.split(key, 6)
        inner = int(expand * dim)
        self.query = TORCH_UNIFORM(keys[0], (slots, inner, dim), jnp.float32)
        self.key = Linear(dim, dim, bias=False, init=TORCH_UNIFORM, key=keys[1])
        self.value = Linear(dim, dim, bias=False, init=TORCH_UNIFORM, key=keys[2])
        self.cells = eqx.filter_vmap(lambda k: GRUCell(dim, inner, key=k))(jax.random.split(keys[3], slots))
        self.communication = MultiHeadAttention(
            inner, heads=heads, use_bias=True, use_out_bias=True, init=TORCH_UNIFORM, key=keys[4]
        )
        self.out = Linear(inner, dim, init=TORCH_UNIFORM, key=keys[5])
        self.dim, self.slots, self.active = dim, slots, active

    def init_state(self, slots: int) -> Float[Array, "{slots} inner"]:
        """**Raises** ShapeError for another number of slots than there are mechanisms."""
        if slots != self.slots:
            raise ShapeError(f"RIM: {self.slots} mechanisms were made, they cannot serve {slots} slots.")
        return jnp.zeros((slots, self.out.in_size))

    def __call__(
        self, x: Float[Array, "time slot {self.dim}"], state: Any = None
    ) -> tuple[Float[Array, "time slot {self.dim}"], Float[Array, "slot inner"]]:
        state = self.init_state(x.shape[1]) if state is None else state
        keys, values = self.key(x), self.value(x)

        def one(state: Array, entering: tuple[Array, Array]) -> tuple[Array, Array]:
            state = self._next(state, *entering)
            return state, state

        state, states = jax.lax.scan(one, state, (keys, values))
        return self.out(states.astype(x.dtype)), state

    def step(
        self, x: Float[Array, "slot {self.dim}"], state: Float[Array, "slot inner"]
    ) -> tuple[Float[Array, "slot {self.dim}"], Float[Array, "slot inner"]]:
        state = self._next(state, self.key(x), self.value(x))
        return self.out(state.astype(x.dtype)), state

    def _next(self, state: Array, key: Array, value: Array) -> Array:
        """The states after one frame, float32."""
        query = jnp.einsum("ni,nid->nd", state, self.query.astype(state.dtype))
        logits = (query * key.astype(state.dtype)).sum(-1) * self.dim**-0.5
        share = jax.nn.sigmoid(logits)
        acts = logits >= jax.lax.top_k(logits, self.active)[0][-1]
        entering = share[:, None] * value.astype(state.dtype)
        moved = eqx.filter_vmap(lambda cell, x, h: cell(x, h))(self.cells, entering, state)
        told = jnp.where(acts[:, None], moved, state)
        told = told + self.communication(told)
        return jnp.where(acts[:, None], told, state)
