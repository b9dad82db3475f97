"""The vision transformers of SlotSSM: patches to tokens, and slots to patches as masked autoencoders do.

The encoder's layers normalise after each residual sum, the decoder's before each branch: two generations of
transformers in one model, kept so for the released checkpoints.
"""

import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.activations import Activation, activation as function, kept_relu
from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.conv import Conv
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import LayerNorm
from slotzoo.nn.torch_init import TORCH_UNIFORM, torch_biases


EPS = 1e-5


class FeedForward(eqx.Module):
    """`W_2 act(W_1 x + b_1) + b_2`, drawn as PyTorch draws linear layers."""

    first: Linear
    second: Linear
    activation: Activation = eqx.field(static=True)

    def __init__(self, dim: int, width: int, *, activation: Activation = "gelu_exact", key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        first = Linear(dim, width, init=TORCH_UNIFORM, key=keys[0])
        second = Linear(width, dim, init=TORCH_UNIFORM, key=keys[1])
        self.first, self.second = torch_biases(first, key=keys[2]), torch_biases(second, key=keys[3])
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        act = kept_relu if self.activation == "relu" else function(self.activation)
        return self.second(act(self.first(x)))


class ViTLayer(eqx.Module):
    """Self-attention and a feed-forward network, both residual: `norm(x + f(x))`, or `x + f(norm(x))` ("pre")."""

    attention: MultiHeadAttention
    attention_norm: LayerNorm
    ffn: FeedForward
    ffn_norm: LayerNorm
    order: Literal["pre", "post"] = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        mlp_dim: int,
        order: Literal["pre", "post"],
        activation: Activation,
        key: PRNGKeyArray,
    ):
        """Queries, keys and values are Glorot-uniform as one matrix, their biases zero."""
        attention_key, ffn_key = jax.random.split(key)
        self.attention = MultiHeadAttention(
            dim,
            heads=heads,
            use_bias=True,
            use_out_bias=True,
            init=variance_scaling(0.5, "fan_in", "uniform"),
            out_init=TORCH_UNIFORM,
            key=attention_key,
        )
        self.ffn = FeedForward(dim, mlp_dim, activation=activation, key=ffn_key)
        self.attention_norm, self.ffn_norm = LayerNorm(dim, eps=EPS), LayerNorm(dim, eps=EPS)
        self.order = order

    def __call__(self, x: Float[Array, "token dim"]) -> Float[Array, "token dim"]:
        if self.order == "post":
            x = self.attention_norm(x + self.attention(x))
            return self.ffn_norm(x + self.ffn(x))
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Encoded(NamedTuple):
    """What a vision transformer makes of a picture: a token per patch, row by row, and its class tokens."""

    tokens: Float[Array, "patch out"]
    class_tokens: Float[Array, "class out"]


class ViTEncoder(eqx.Module):
    """Patches, projected and given learned positions, through post-norm layers and a last projection.

    Positions start as sines and cosines of column and row. With `noisy` class tokens, Gaussian noise of a learned
    size is added to them.
    """

    patches: Conv
    positions: Float[Array, "token dim"]
    class_tokens: Float[Array, "class dim"]
    class_log_scale: Float[Array, "class dim"] | None
    layers: tuple[ViTLayer, ...]
    out: Linear
    size: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        patch: int,
        dim: int,
        layers: int,
        heads: int,
        mlp_dim: int | None = None,
        out_dim: int | None = None,
        class_tokens: int = 1,
        noisy: bool = False,
        activation: Activation = "gelu_exact",
        same_start: bool = False,
        key: PRNGKeyArray,
    ):
        """`mlp_dim` is `4 dim` unless given, `out_dim` is `dim`. `same_start`: all layers begin with equal weights,
        as those that PyTorch copies do.

        **Raises** ConfigError for pictures that patches do not tile.
        """
        _check_tiles(size, patch, "encoder")
        patch_key, out_key, bias_key, key = jax.random.split(key, 4)
        self.patches = torch_biases(
            Conv(channels, dim, patch, stride=patch, padding="VALID", init=TORCH_UNIFORM, key=patch_key),
            key=bias_key,
        )
        side = size // patch
        empty = np.zeros((class_tokens, dim), np.float32)
        self.positions = jnp.asarray(np.concatenate([empty, grid_positions(side, side, dim)]))
        self.class_tokens = jnp.asarray(empty)
        self.class_log_scale = jnp.asarray(empty) if noisy and class_tokens else None
        self.layers = _layers(
            layers,
            same_start,
            key,
            dim=dim,
            heads=heads,
            mlp_dim=mlp_dim or 4 * dim,
            order="post",
            activation=activation,
        )
        weight_key, bias_key = jax.random.split(out_key)
        out = Linear(dim, out_dim or dim, init=TORCH_UNIFORM, key=weight_key)
        self.out = torch_biases(out, key=bias_key)
        self.size, self.channels, self.patch = size, channels, patch

    def __call__(
        self,
        image: Float[Array, "{self.size} {self.size} {self.channels}"],
        *,
        noise: Float[Array, "class dim"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Encoded:
        """Encode one picture; the standard normal `noise` of noisy class tokens, or a `key` to draw it with."""
        weight = self.patches.weight
        # A convolution whose windows do not overlap is a matrix product, gradient included.
        tokens = patchify(image, self.patch) @ weight.reshape(-1, weight.shape[-1]).astype(image.dtype)
        assert self.patches.bias is not None
        tokens = tokens + self.patches.bias.astype(tokens.dtype)[None, :]
        first = self.class_tokens.astype(tokens.dtype)
        if self.class_log_scale is not None:
            if noise is None:
                if key is None:
                    raise ConfigError("the encoder's class tokens are noisy: it needs `noise` or a `key`.")
                noise = jax.random.normal(key, first.shape)
            first = first + (noise * jnp.exp(self.class_log_scale.astype(jnp.float32))).astype(first.dtype)
        x = jnp.concatenate([first, tokens]) + self.positions.astype(tokens.dtype)
        for layer in self.layers:
            x = layer(x)
        x = self.out(x)
        return Encoded(x[len(first) :], x[: len(first)])


class ViTDecoder(eqx.Module):
    """Slots, and one learned token at every place of a grid, through pre-norm layers; each place paints a patch.

    Positions are fixed: sines and cosines of column and row, nothing for slots. What is painted is not bounded.
    """

    project: Linear
    mask_token: Float[Array, " dim"]
    layers: tuple[ViTLayer, ...]
    norm: LayerNorm
    out: Linear
    size: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(
        self,
        slot_dim: int,
        *,
        size: int,
        channels: int,
        patch: int,
        dim: int,
        layers: int,
        heads: int,
        mlp_dim: int | None = None,
        activation: Activation = "relu",
        same_start: bool = False,
        key: PRNGKeyArray,
    ):
        """As the encoder's. **Raises** ConfigError for pictures that patches do not tile."""
        _check_tiles(size, patch, "decoder")
        keys = jax.random.split(key, 5)
        project = Linear(slot_dim, dim, init=TORCH_UNIFORM, key=keys[0])
        out = Linear(dim, patch * patch * channels, init=TORCH_UNIFORM, key=keys[2])
        self.project, self.out = torch_biases(project, key=keys[1]), torch_biases(out, key=keys[3])
        self.mask_token = jnp.zeros(dim)
        self.layers = _layers(
            layers,
            same_start,
            keys[4],
            dim=dim,
            heads=heads,
            mlp_dim=mlp_dim or 4 * dim,
            order="pre",
            activation=activation,
        )
        self.norm = LayerNorm(dim, eps=EPS)
        self.size, self.channels, self.patch, self.dim = size, channels, patch, dim

    def __call__(
        self, slots: Float[Array, "slot slot_dim"]
    ) -> Float[Array, "{self.size} {self.size} {self.channels}"]:
        """Paint one picture."""
        side = self.size // self.patch
        x = self.project(slots)
        places = jnp.asarray(grid_positions(side, side, self.dim)).astype(x.dtype)
        x = jnp.concatenate([x, self.mask_token.astype(x.dtype)[None, :] + places])
        for layer in self.layers:
            x = layer(x)
        return unpatchify(self.out(self.norm(x[len(slots) :])), self.patch, self.channels)


def patchify(image: Float[Array, "height width channel"], patch: int) -> Float[Array, "place patch_channel"]:
    """The `patch x patch` squares of a picture row by row, each flattened with the channel fastest."""
    height, width, channels = image.shape
    x = image.reshape(height // patch, patch, width // patch, patch, channels)
    return jnp.swapaxes(x, 1, 2).reshape(-1, patch * patch * channels)


def unpatchify(
    tokens: Float[Array, "place patch_channel"], patch: int, channels: int
) -> Float[Array, "height width channel"]:
    """The square picture whose `patchify` is `tokens`."""
    side = math.isqrt(len(tokens))
    x = jnp.swapaxes(tokens.reshape(side, side, patch, patch, channels), 1, 2)
    return x.reshape(side * patch, side * patch, channels)


def grid_positions(height: int, width: int, dim: int) -> np.ndarray:
    """`(height width, dim)`: sines and cosines of the column in the first half of the channels, of the row in the
    second, at frequencies `10000^(-4 i / dim)`; row by row. Source: He et al., Masked Autoencoders, CVPR 2022.

    **Raises** ConfigError where `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ConfigError(f"positions in a plane need a multiple of 4 channels, got {dim}.")
    rates = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [place.reshape(-1, 1) * rates for place in (columns, rows)]
    return np.concatenate([part(a) for a in angles for part in (np.sin, np.cos)], axis=1).astype(np.float32)


def _layers(count: int, same_start: bool, key: PRNGKeyArray, **sizes) -> tuple[ViTLayer, ...]:
    keys = [key] * count if same_start else jax.random.split(key, count)
    return tuple(ViTLayer(**sizes, key=layer_key) for layer_key in keys)


def _check_tiles(size: int, patch: int, part: str) -> None:
    if patch < 1 or size < patch or size % patch:
        raise ConfigError(f"ViT {part}: pictures of {size} pixels cannot be tiled by patches of {patch}.")
