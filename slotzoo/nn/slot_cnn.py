"""The convolutional side of SlotSSM: an encoder of residual blocks, and a spatial broadcast decoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.broadcast_decoder import DecodedSlots
from slotzoo.nn.conv import Conv, ConvTranspose
from slotzoo.nn.norm import GroupNorm, LayerNorm
from slotzoo.nn.torch_init import TORCH_UNIFORM, TORCH_UNIFORM_TRANSPOSED, torch_biases


EPS = 1e-5


class PreNormBlock(eqx.Module):
    """`relu(x + conv(norm(relu(conv(norm(x))))))`: norms over all channels at once, before the convolutions."""

    norm_1: GroupNorm
    conv_1: Conv
    norm_2: GroupNorm
    conv_2: Conv

    def __init__(self, channels: int, kernel: int, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.norm_1, self.norm_2 = GroupNorm(1, channels, eps=EPS), GroupNorm(1, channels, eps=EPS)
        self.conv_1 = _conv(channels, channels, kernel, keys[0], keys[1])
        self.conv_2 = _conv(channels, channels, kernel, keys[2], keys[3])

    def __call__(
        self, x: Float[Array, "*batch height width channel"]
    ) -> Float[Array, "*batch height width channel"]:
        y = jax.nn.relu(self.conv_1(self.norm_1(x)))
        return jax.nn.relu(x + self.conv_2(self.norm_2(y)))


class CNNEncoder(eqx.Module):
    """A convolution that shrinks the picture `stride` times, norm and GELU, residual blocks, norm, a 1 x 1 layer."""

    first: Conv
    first_norm: GroupNorm
    blocks: tuple[tuple[PreNormBlock, ...], ...]
    last_norm: GroupNorm
    last: Conv
    in_channels: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        stride: int = 2,
        kernel: int = 5,
        layers: int = 3,
        blocks_per_layer: int = 2,
        key: PRNGKeyArray,
    ):
        """`layers` times `blocks_per_layer` blocks. **Raises** ConfigError for an even kernel."""
        if kernel % 2 == 0:
            raise ConfigError(f"CNN encoder: kernel={kernel} must be odd.")
        keys = jax.random.split(key, 5)
        self.first = _conv(in_channels, width, stride, keys[0], keys[1], stride=stride, padding="VALID")
        self.first_norm = GroupNorm(1, width, eps=EPS)
        self.blocks = tuple(
            tuple(PreNormBlock(width, kernel, key=k) for k in jax.random.split(layer_key, blocks_per_layer))
            for layer_key in jax.random.split(keys[2], layers)
        )
        self.last_norm = GroupNorm(1, width, eps=EPS)
        self.last = _conv(width, out_channels, 1, keys[3], keys[4])
        self.in_channels, self.stride = in_channels, stride

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out out"]:
        x = self.first_norm(self.first(x), activation="gelu_exact")
        for layer in self.blocks:
            for block in layer:
                x = block(x)
        return self.last(self.last_norm(x))


class UpsamplingBlock(eqx.Module):
    """A transposed convolution that doubles the size, norm over all channels, GELU."""

    conv: ConvTranspose
    norm: GroupNorm

    def __init__(self, in_channels: int, out_channels: int, *, key: PRNGKeyArray):
        self.conv = _doubling(in_channels, out_channels, key)
        self.norm = GroupNorm(1, out_channels, eps=EPS)

    def __call__(
        self, x: Float[Array, "*batch height width in"]
    ) -> Float[Array, "*batch height_2 width_2 out"]:
        return self.norm(self.conv(x), activation="gelu_exact")


class NormedBroadcastDecoder(eqx.Module):
    """`x = sum_s softmax_s(alpha_s) picture_s`: each normalised slot repeated over a grid, positions added to its
    channels (columns to the first half, rows to the second, from -1 to 1), and painted by upsampling blocks.

    Up to 8 times the grid are reached by blocks and a last convolution; beyond, the last layer doubles the size too.
    `remat` paints slot by slot, and again for the gradient: a fraction of the memory.
    """

    norm: LayerNorm
    blocks: tuple[UpsamplingBlock, ...]
    last: Conv | ConvTranspose
    slot_dim: int = eqx.field(static=True)
    grid: int = eqx.field(static=True)
    size: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        slot_dim: int,
        channels: int,
        *,
        grid: int,
        size: int,
        width: int,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """**Raises** ConfigError unless `size` is `grid` times 2, 4, 8, 16 ..., and `slot_dim` even."""
        factor = size // grid if grid > 0 else 0
        if factor < 2 or grid * factor != size or factor & (factor - 1):
            raise ConfigError(
                f"broadcast decoder: a grid of {grid} cannot be doubled to {size} pixels; choose size / 2, / 4, / 8 ..."
            )
        if slot_dim % 2:
            raise ConfigError(f"broadcast decoder: slots need an even number of channels, got {slot_dim}.")
        doublings = factor.bit_length() - 1
        blocks = doublings if doublings <= 3 else doublings - 1
        last_key, bias_key, *keys = jax.random.split(key, 2 + blocks)
        self.norm = LayerNorm(slot_dim, eps=EPS)
        inputs = (slot_dim, *[width] * (blocks - 1))
        self.blocks = tuple(UpsamplingBlock(a, width, key=k) for a, k in zip(inputs, keys, strict=True))
        self.last = (
            _conv(width, channels + 1, 5, last_key, bias_key)
            if blocks == doublings
            else _doubling(width, channels + 1, last_key)
        )
        self.slot_dim, self.grid, self.size, self.channels, self.remat = slot_dim, grid, size, channels, remat

    def __call__(self, slots: Float[Array, "slot {self.slot_dim}"]) -> DecodedSlots:
        """Decode and mix."""
        if self.remat:
            maps = jax.lax.map(jax.checkpoint(lambda slot: self._paint(slot)), slots)
        else:
            maps = self._paint(slots)
        pictures, alpha = maps[..., :-1], maps[..., -1]
        masks = jax.nn.softmax(alpha.astype(jnp.float32), axis=0)
        mixed = (masks[..., None] * pictures.astype(jnp.float32)).sum(0)
        return DecodedSlots(mixed.astype(pictures.dtype), masks, pictures)

    def _paint(self, slots: Float[Array, "*slot dim"]) -> Float[Array, "*slot height width channels"]:
        x = self.norm(slots)[..., None, None, :]
        places = jnp.asarray(_plane(self.grid, self.slot_dim)).astype(x.dtype)
        x = x + places.reshape((1,) * (x.ndim - 3) + places.shape)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def _plane(side: int, dim: int) -> np.ndarray:
    """`(side, side, dim)`: the column in the first half of the channels, the row in the second, from -1 to 1."""
    line = np.linspace(-1, 1, side, dtype=np.float32)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return np.stack([columns] * (dim // 2) + [rows] * (dim // 2), axis=-1)


def _conv(inputs: int, outputs: int, kernel: int, key: PRNGKeyArray, bias_key: PRNGKeyArray, **options) -> Conv:
    return torch_biases(Conv(inputs, outputs, kernel, init=TORCH_UNIFORM, key=key, **options), key=bias_key)


def _doubling(inputs: int, outputs: int, key: PRNGKeyArray) -> ConvTranspose:
    """PyTorch's 5 x 5 transposed convolution of stride 2 with padding 2 and output padding 1."""
    weight_key, bias_key = jax.random.split(key)
    layer = ConvTranspose(
        inputs,
        outputs,
        5,
        stride=2,
        padding=((2, 3), (2, 3)),
        init=TORCH_UNIFORM_TRANSPOSED,
        key=weight_key,
    )
    return torch_biases(layer, key=bias_key)
