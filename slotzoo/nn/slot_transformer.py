"""The transformer block of SAVi: between slots from frame to frame, and over the tokens of SAVi++'s encoder."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.mlp import DeepMLP
from slotzoo.nn.norm import LayerNorm


def slot_heads(dim: int, qkv_dim: int, heads: int, *, key: PRNGKeyArray) -> MultiHeadAttention:
    """Attention as Flax has it: biases everywhere, LeCun-normal kernels, `qkv_dim` channels inside."""
    if heads < 1 or qkv_dim % heads:
        raise ConfigError(f"attention: {qkv_dim} channels cannot be split into heads={heads} of equal size.")
    return MultiHeadAttention(
        dim, heads=heads, head_dim=qkv_dim // heads, use_bias=True, use_out_bias=True, key=key
    )


class SlotTransformerBlock(eqx.Module):
    """`x <- LN(x + attention(x))`, `x <- LN(x + attention(x, context))`, `x <- LN(x + MLP(x))`; or, with `pre_norm`,
    `x <- x + attention(LN(x))` and so on, the context as it is.

    No positions: it is equivariant in the tokens. Source: Kipf et al., ICLR 2022, section 3.3.
    """

    attention: MultiHeadAttention
    cross: MultiHeadAttention | None
    mlp: DeepMLP
    norms: tuple[LayerNorm, ...]
    dim: int = eqx.field(static=True)
    pre_norm: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        qkv_dim: int,
        mlp_dim: int,
        heads: int,
        pre_norm: bool = False,
        cross: bool = False,
        key: PRNGKeyArray,
    ):
        """`cross`: with attention to a context."""
        self_key, cross_key, mlp_key = jax.random.split(key, 3)
        self.attention = slot_heads(dim, qkv_dim, heads, key=self_key)
        self.cross = slot_heads(dim, qkv_dim, heads, key=cross_key) if cross else None
        self.mlp = DeepMLP(dim, mlp_dim, key=mlp_key)
        self.norms = tuple(LayerNorm(dim) for _ in range(3 if cross else 2))
        self.dim, self.pre_norm = dim, pre_norm

    def __call__(
        self, x: Float[Array, "token {self.dim}"], context: Float[Array, "other {self.dim}"] | None = None
    ) -> Float[Array, "token {self.dim}"]:
        """All tokens at once; `context` where the block was made with `cross`."""
        if (context is None) != (self.cross is None):
            raise ConfigError("transformer block: a context goes with cross=True, and with nothing else.")
        layers: list[Callable[[Array], Array]] = [self.attention]
        if self.cross is not None and context is not None:
            cross, seen = self.cross, context
            layers.append(lambda y: cross(y, seen))
        layers.append(self.mlp)
        for layer, norm in zip(layers, self.norms, strict=True):
            x = x + layer(norm(x)) if self.pre_norm else norm(x + layer(x))
        return x


class SlotTransformer(eqx.Module):
    """`layers` blocks one after the other, and no norm at the end."""

    blocks: tuple[SlotTransformerBlock, ...]
    dim: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        layers: int,
        qkv_dim: int,
        mlp_dim: int,
        heads: int,
        pre_norm: bool = True,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """`remat`: the backward pass keeps only the input of each block."""
        self.blocks = tuple(
            SlotTransformerBlock(dim, qkv_dim=qkv_dim, mlp_dim=mlp_dim, heads=heads, pre_norm=pre_norm, key=k)
            for k in jax.random.split(key, layers)
        )
        self.dim, self.remat = dim, remat

    def __call__(self, x: Float[Array, "token {self.dim}"]) -> Float[Array, "token {self.dim}"]:
        for block in self.blocks:
            x = (eqx.filter_checkpoint(block) if self.remat else block)(x)
        return x
