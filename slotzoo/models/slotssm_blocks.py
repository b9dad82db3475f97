"""The body of SlotSSM: blocks that read the frame, carry each slot through time, and let slots exchange.

    slots += read(slots, tokens)
    slots += mixer(norm(slots))
    slots += attention(norm(slots))
    slots += ffn(norm(slots))

Reading and exchange happen within a frame; only the mixer looks across frames, each slot by itself. Queries of the
first block are constants, so all frames are computed at once. Source: Jiang et al., NeurIPS 2024, section 3.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.models.slotssm_config import Cross, SlotSSMConfig
from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.inverted_attention import InvertedAttention, attention_map
from slotzoo.nn.linear import Linear
from slotzoo.nn.mamba import Mamba, Mamba2
from slotzoo.nn.mixer import AbstractMixer
from slotzoo.nn.norm import LayerNorm
from slotzoo.nn.recurrent_mixers import AttentionMixer, GRUMixer, RIMMixer
from slotzoo.nn.torch_init import TORCH_UNIFORM, torch_biases
from slotzoo.nn.vit import FeedForward


EPS = 1e-5


class SlotReader(eqx.Module):
    """What slots read from the tokens of their frame: by inverted attention, by attention, or by attention to
    themselves and the tokens together ("self").
    """

    slot_norm: LayerNorm
    token_norm: LayerNorm
    token_proj: Linear
    attention: InvertedAttention | MultiHeadAttention
    kind: Cross = eqx.field(static=True)

    def __init__(self, token_dim: int, dim: int, *, heads: int, kind: Cross, key: PRNGKeyArray):
        proj_key, attention_key, *bias_keys = jax.random.split(key, 4)
        proj = Linear(token_dim, dim, init=TORCH_UNIFORM, key=proj_key)
        self.token_proj = torch_biases(proj, key=bias_keys[0])
        self.slot_norm, self.token_norm = LayerNorm(dim, eps=EPS), LayerNorm(dim, eps=EPS)
        attention = (
            InvertedAttention(dim, heads=heads, key=attention_key)
            if kind == "inverted"
            else _attention(dim, heads, attention_key)
        )
        self.attention = torch_biases(attention, key=bias_keys[1])
        self.kind = kind

    def __call__(
        self, slots: Float[Array, "slot dim"], tokens: Float[Array, "token token_dim"]
    ) -> tuple[Float[Array, "slot dim"], Float[Array, "head slot token"]]:
        """What is added to the slots, and the share of each token that went to each slot."""
        query, context = self.slot_norm(slots), self.token_norm(self.token_proj(tokens))
        if isinstance(self.attention, InvertedAttention):
            return self.attention(query, context)
        if self.kind == "self":
            context = jnp.concatenate([query, context])
        shares = attention_map(self.attention, query, context)[..., -len(tokens) :]
        return self.attention(query, context), shares


class SlotBlock(eqx.Module):
    """One block: read, carry on, exchange, and a feed-forward network where there is one."""

    reader: SlotReader | None
    mixer_norm: LayerNorm
    mixer: AbstractMixer
    slot_norm: LayerNorm
    slot_attention: MultiHeadAttention
    ffn_norm: LayerNorm | None
    ffn: FeedForward | None

    def __init__(
        self,
        dim: int,
        token_dim: int,
        *,
        mixer: AbstractMixer,
        cross: Cross | None,
        cross_heads: int,
        slot_heads: int,
        ffn: bool,
        key: PRNGKeyArray,
    ):
        """`cross`: how the frame is read; None does not read it."""
        reader_key, attention_key, bias_key, ffn_key = jax.random.split(key, 4)
        self.reader = (
            None if cross is None else SlotReader(token_dim, dim, heads=cross_heads, kind=cross, key=reader_key)
        )
        self.mixer_norm, self.mixer = LayerNorm(dim, eps=EPS), mixer
        self.slot_norm = LayerNorm(dim, eps=EPS)
        self.slot_attention = torch_biases(_attention(dim, slot_heads, attention_key), key=bias_key)
        self.ffn_norm = LayerNorm(dim, eps=EPS) if ffn else None
        self.ffn = FeedForward(dim, 4 * dim, key=ffn_key) if ffn else None

    def __call__(
        self,
        slots: Float[Array, "time slot dim"],
        tokens: Float[Array, "time token token_dim"] | None,
        state: Any = None,
    ) -> tuple[Float[Array, "time slot dim"], Float[Array, "time head slot token"] | None, Any]:
        """Slots of all frames, the shares of their tokens, and the mixer's state after the last one."""
        slots, shares = jax.vmap(self._read)(slots, tokens)
        mixed, state = self.mixer(self.mixer_norm(slots), state)
        return jax.vmap(self._exchange)(slots + mixed), shares, state

    def step(
        self, slots: Float[Array, "slot dim"], tokens: Float[Array, "token token_dim"] | None, state: Any
    ) -> tuple[Float[Array, "slot dim"], Float[Array, "head slot token"] | None, Any]:
        """The same for one frame."""
        slots, shares = self._read(slots, tokens)
        mixed, state = self.mixer.step(self.mixer_norm(slots), state)
        return self._exchange(slots + mixed), shares, state

    def _read(self, slots: Array, tokens: Array | None) -> tuple[Array, Array | None]:
        if self.reader is None or tokens is None:
            return slots, None
        update, shares = self.reader(slots, tokens)
        return slots + update, shares

    def _exchange(self, slots: Array) -> Array:
        slots = slots + self.slot_attention(self.slot_norm(slots))
        if self.ffn is None or self.ffn_norm is None:
            return slots
        return slots + self.ffn(self.ffn_norm(slots))


class Regroup(eqx.Module):
    """Another number of slots: learned ones that read the former by attention."""

    start: Float[Array, "slot dim"]
    norm: LayerNorm
    attention: MultiHeadAttention

    def __init__(self, slots: int, dim: int, *, heads: int, key: PRNGKeyArray):
        start_key, attention_key, bias_key = jax.random.split(key, 3)
        self.start = jax.random.normal(start_key, (slots, dim))
        self.norm = LayerNorm(dim, eps=EPS)
        self.attention = torch_biases(_attention(dim, heads, attention_key), key=bias_key)

    def __call__(self, slots: Float[Array, "slot dim"]) -> Float[Array, "new dim"]:
        start = self.start.astype(slots.dtype)
        return start + self.attention(self.norm(start), self.norm(slots))


class Carried(NamedTuple):
    """What comes out of the blocks: slots, each block's shares of the tokens, each mixer's state."""

    slots: Float[Array, "*time slot dim"]
    attention: tuple[Float[Array, "*time head slot token"] | None, ...]
    state: tuple[Any, ...]


class SlotStack(eqx.Module):
    """Learned slots, the same for every frame, through all blocks."""

    start: Float[Array, "slot dim"]
    regroups: tuple[Regroup | None, ...]
    blocks: tuple[SlotBlock, ...]
    slots: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, config: SlotSSMConfig, *, key: PRNGKeyArray):
        c = config
        start_key, key = jax.random.split(key)
        self.start = jax.random.normal(start_key, (c.slots[0], c.dim))
        blocks, regroups = [], []
        for i, (slots, block_key) in enumerate(zip(c.slots, jax.random.split(key, c.blocks), strict=True)):
            mixer_key, regroup_key, block_key = jax.random.split(block_key, 3)
            blocks.append(
                SlotBlock(
                    c.dim,
                    c.token_dim,
                    mixer=make_mixer(c, slots, key=mixer_key),
                    cross=c.cross if i == 0 or c.cross_blocks == "all" else None,
                    cross_heads=c.cross_heads,
                    slot_heads=c.slot_heads,
                    ffn=c.ffn,
                    key=block_key,
                )
            )
            changed = i > 0 and slots != c.slots[i - 1]
            regroups.append(Regroup(slots, c.dim, heads=c.slot_heads, key=regroup_key) if changed else None)
        self.blocks, self.regroups, self.slots = tuple(blocks), tuple(regroups), c.slots

    def init_state(self) -> tuple[Any, ...]:
        """The state of every block before the first frame."""
        return tuple(block.mixer.init_state(n) for block, n in zip(self.blocks, self.slots, strict=True))

    def __call__(
        self, tokens: Float[Array, "time token token_dim"], state: tuple[Any, ...] | None = None
    ) -> Carried:
        """All frames at once; `state` as after the frames before, or None at the beginning."""
        states = [None] * len(self.blocks) if state is None else state
        start = self.start.astype(tokens.dtype)
        slots = jnp.broadcast_to(start, (len(tokens), *start.shape))
        shares, after = [], []
        for regroup, block, before in zip(self.regroups, self.blocks, states, strict=True):
            slots = slots if regroup is None else jax.vmap(regroup)(slots)
            slots, share, now = block(slots, tokens, before)
            shares.append(share)
            after.append(now)
        return Carried(slots, tuple(shares), tuple(after))

    def step(self, tokens: Float[Array, "token token_dim"], state: tuple[Any, ...]) -> Carried:
        """The same for one frame."""
        slots = self.start.astype(tokens.dtype)
        shares, after = [], []
        for regroup, block, before in zip(self.regroups, self.blocks, state, strict=True):
            slots = slots if regroup is None else regroup(slots)
            slots, share, now = block.step(slots, tokens, before)
            shares.append(share)
            after.append(now)
        return Carried(slots, tuple(shares), tuple(after))


class SlotClassifier(eqx.Module):
    """Class logits from slots: a learned query reads them by attention, a linear layer judges."""

    query: Float[Array, "one dim"]
    norm: LayerNorm
    attention: MultiHeadAttention
    out: Linear

    def __init__(self, dim: int, classes: int, *, heads: int, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.query = jax.random.normal(keys[0], (1, dim))
        self.norm = LayerNorm(dim, eps=EPS)
        self.attention = torch_biases(_attention(dim, heads, keys[1]), key=keys[2])
        self.out = Linear(dim, classes, init=TORCH_UNIFORM, key=keys[3])

    def __call__(self, slots: Float[Array, "slot dim"]) -> Float[Array, " class"]:
        read = self.attention(self.query.astype(slots.dtype), self.norm(slots))
        return self.out(read)[0]


def make_mixer(c: SlotSSMConfig, slots: int, *, key: PRNGKeyArray) -> AbstractMixer:
    """The mixer that a configuration asks for."""
    match c.mixer:
        case "mamba1":
            return Mamba(c.dim, state=c.ssm_state, conv_width=c.conv_width, expand=c.expand, key=key)
        case "mamba2":
            return Mamba2(
                c.dim,
                state=c.ssm_state,
                head_dim=c.ssm_head_dim,
                conv_width=c.conv_width,
                expand=c.expand,
                key=key,
            )
        case "attention":
            return AttentionMixer(c.dim, heads=c.mixer_heads, length=c.max_frames, key=key)
        case "gru":
            return GRUMixer(c.dim, expand=c.expand, key=key)
        case "rim":
            return RIMMixer(c.dim, slots=slots, active=c.active, heads=c.mixer_heads, expand=c.expand, key=key)


def _attention(dim: int, heads: int, key: PRNGKeyArray) -> MultiHeadAttention:
    return MultiHeadAttention(dim, heads=heads, use_bias=True, use_out_bias=True, init=TORCH_UNIFORM, key=key)
