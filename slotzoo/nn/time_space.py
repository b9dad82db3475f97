"""The predictor of STATM: slots look at one another, and each at what it was in the frames before.

The memory is a ring of keys and values, as many frames as `length`. A slot's key and value do not change once
they are made, so nothing is projected twice; and attention over time knows no order, so the ring need not be turned.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.mlp import DeepMLP
from slotzoo.nn.norm import LayerNorm
from slotzoo.nn.predictor import AbstractPredictor
from slotzoo.nn.slot_transformer import slot_heads


Block = Literal[1, 2, 3, 4, 5]


class SlotMemory(NamedTuple):
    """Keys and values of the last frames' slots; rows beyond `frames` wait to be written."""

    key: Float[Array, "length slot head dim"]
    value: Float[Array, "length slot head dim"]
    frames: Int[Array, ""]  # so far, those that were written over included


class TimeSpacePredictor(AbstractPredictor):
    """Attention over space S (between slots) and over time T (to the memory, which holds q itself), and an MLP M:

    1. `s = LN(q + S(q))`, `y = LN(s + T(s))`
    2. `y = LN(q + S(q)) + LN(q + T(q))`, the published choice
    3. `t = LN(q + T(q))`, `y = LN(t + S(t))`
    4. `y = LN(q + S(q) + T(q))`
    5. as 2, where a slot looks at all slots of all frames

    and `LN(y + M(y))` in the end. With `pre_norm` the norms stand in front: `q + S(LN(q))` and so on; what is
    remembered is normalised too, but in 1. Source: Li et al., Reasoning-Enhanced Object-Centric Learning for Videos
    (STATM), section 3.
    """

    space: MultiHeadAttention
    time: MultiHeadAttention
    mlp: DeepMLP
    norms: tuple[LayerNorm, ...]
    dim: int = eqx.field(static=True)
    length: int = eqx.field(static=True)
    block: Block = eqx.field(static=True)
    pre_norm: bool = eqx.field(static=True)
    carried: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        qkv_dim: int,
        mlp_dim: int,
        heads: int,
        length: int,
        block: Block = 2,
        pre_norm: bool = False,
        carried: bool = True,
        key: PRNGKeyArray,
    ):
        """`length`: frames that are remembered; `carried`: from one call of the model to the next."""
        if length < 1:
            raise ConfigError(f"STATM: its memory must hold at least one frame, got buffer={length}.")
        space_key, time_key, mlp_key = jax.random.split(key, 3)
        self.space = slot_heads(dim, qkv_dim, heads, key=space_key)
        self.time = slot_heads(dim, qkv_dim, heads, key=time_key)
        self.mlp = DeepMLP(dim, mlp_dim, key=mlp_key)
        if pre_norm:
            count = 3 if block == 1 else 4
        else:
            count = 2 if block == 4 else 3
        self.norms = tuple(LayerNorm(dim) for _ in range(count))
        self.dim, self.length, self.block, self.pre_norm = dim, length, block, pre_norm
        self.carried = carried

    def init_memory(self, num_slots: int) -> SlotMemory:
        """Nothing remembered."""
        empty = jnp.zeros((self.length, num_slots, self.time.heads, self.time.head_dim))
        return SlotMemory(empty, empty, jnp.zeros((), jnp.int32))

    def __call__(
        self, slots: Float[Array, "slot {self.dim}"], memory: SlotMemory
    ) -> tuple[Float[Array, "slot {self.dim}"], SlotMemory]:
        memory = self._remembering(slots, memory)
        q, (first, second, *others) = slots, self.norms
        space = self.space
        time = lambda x: self._look_back(x, memory)
        if self.pre_norm:
            match self.block:
                case 1:
                    s = q + space(first(q))
                    y = s + time(second(s))
                case 3:
                    t = q + time(first(q))
                    y = t + space(others[0](t))
                case 4:
                    y = q + space(first(q)) + time(second(q))
                case _:
                    y = (q + space(first(q))) + (q + time(second(q)))
            return y + self.mlp(self.norms[-1](y)), memory
        match self.block:
            case 1:
                s = first(q + space(q))
                y = second(s + time(s))
            case 3:
                t = first(q + time(q))
                y = second(t + space(t))
            case 4:
                y = first(q + space(q) + time(q))
            case _:
                y = first(q + space(q)) + second(q + time(q))
        return self.norms[-1](y + self.mlp(y)), memory

    def _remembering(self, slots: Array, memory: SlotMemory) -> SlotMemory:
        """The memory with these slots in the place of the oldest."""
        if self.pre_norm and self.block != 1:
            # The norm of the memory comes after that of the query, wherever the two stand.
            slots = self.norms[1 if self.block == 3 else 2](slots)
        zero = jnp.int32(0)
        at = (memory.frames % self.length, zero, zero, zero)
        put = lambda ring, new: jax.lax.dynamic_update_slice(ring, new[None].astype(ring.dtype), at)
        key, value = self.time.project(slots)
        return SlotMemory(put(memory.key, key), put(memory.value, value), memory.frames + 1)

    def _look_back(self, x: Array, memory: SlotMemory) -> Array:
        seen = jnp.arange(self.length) < memory.frames
        if self.block == 5:
            flat = lambda ring: ring.reshape(-1, *ring.shape[2:])
            mask = jnp.broadcast_to(jnp.repeat(seen, len(x))[None], (len(x), self.length * len(x)))
            return self.time.attend(x, flat(memory.key), flat(memory.value), mask=mask)
        own = lambda q, key, value: self.time.attend(q[None], key, value, mask=seen[None])[0]
        return jax.vmap(own, in_axes=(0, 1, 1))(x, memory.key, memory.value)
