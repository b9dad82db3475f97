"""SLATE's discrete variational autoencoder: an image as a grid of tokens, one for 4 x 4 pixels."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, glorot_uniform, he_uniform
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.nn.conv import Conv
from slotzoo.nn.norm import GroupNorm


PATCH = 4  # pixels of an image along one side of a token


def gumbel_softmax(
    logits: Float[Array, "*grid code"],
    gumbel: Float[Array, "*grid code"],
    temperature: Float[Array, ""] | float,
) -> Float[Array, "*grid code"]:
    """`softmax((logits + gumbel) / temperature)` over the codes, in float32.

    Source: Jang, Gu, Poole: Categorical Reparameterization with Gumbel-Softmax, ICLR 2017.
    """
    return jax.nn.softmax((logits.astype(jnp.float32) + gumbel) / temperature, axis=-1)


def straight_through(soft: Float[Array, "*grid code"]) -> Float[Array, "*grid code"]:
    """The one-hot vector of the largest entry, with the gradient of `soft`."""
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1], dtype=soft.dtype)
    return hard + soft - jax.lax.stop_gradient(soft)


class ConvBlock(eqx.Module):
    """`relu(norm(conv(x)))`: a convolution without bias and a GroupNorm of one group."""

    conv: Conv
    norm: GroupNorm

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, key: PRNGKeyArray, stride: int = 1
    ):
        self.conv = _conv(
            in_channels, out_channels, kernel_size, stride, bias=False, init=he_uniform(), key=key
        )
        self.norm = GroupNorm(1, out_channels, eps=1e-5)

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "height2 width2 out"]:
        return self.norm(self.conv(x), activation="relu")


class DVAEEncoder(eqx.Module):
    """Log-probabilities of the codes: a 4 x 4 convolution of stride 4, six 1 x 1 blocks, a 1 x 1 convolution."""

    blocks: tuple[ConvBlock, ...]
    out: Conv

    def __init__(self, channels: int, codes: int, width: int, *, key: PRNGKeyArray):
        first_key, out_key, *keys = jax.random.split(key, 8)
        first = ConvBlock(channels, width, PATCH, stride=PATCH, key=first_key)
        self.blocks = (first, *(ConvBlock(width, width, 1, key=k) for k in keys))
        self.out = _conv(width, codes, 1, 1, bias=True, init=glorot_uniform(), key=out_key)

    def __call__(self, image: Float[Array, "height width channel"]) -> Float[Array, "height_4 width_4 code"]:
        return jax.nn.log_softmax(self.logits(image), axis=-1)

    def logits(self, image: Float[Array, "height width channel"]) -> Float[Array, "height_4 width_4 code"]:
        """The log-probabilities up to a number for each place, float32."""
        x = image
        for block in self.blocks:
            x = block(x)
        return self.out(x).astype(jnp.float32)


class Upsampler(eqx.Module):
    """Blocks of kernel size 3, 1, 1, 1 whose last is four times as wide, folded into twice the size."""

    blocks: tuple[ConvBlock, ...]

    def __init__(self, width: int, *, key: PRNGKeyArray):
        sizes = ((3, width), (1, width), (1, width), (1, 4 * width))
        self.blocks = tuple(
            ConvBlock(width, out, size, key=k)
            for (size, out), k in zip(sizes, jax.random.split(key, len(sizes)), strict=True)
        )

    def __call__(self, x: Float[Array, "height width channel"]) -> Float[Array, "2*height 2*width channel"]:
        for block in self.blocks[:-1]:
            x = block(x)
        x = _pixels_first(self.blocks[-1])(x)
        height, width, channels = x.shape
        cells = x.reshape(height, width, 2, 2, channels // 4)
        return cells.transpose(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, channels // 4)


class DVAEDecoder(eqx.Module):
    """A 1 x 1 block over the codes, two upsamplers, a 1 x 1 convolution."""

    first: ConvBlock
    upsamplers: tuple[Upsampler, ...]
    out: Conv

    def __init__(self, channels: int, codes: int, width: int, *, key: PRNGKeyArray):
        first_key, *keys, out_key = jax.random.split(key, 4)
        self.first = ConvBlock(codes, width, 1, key=first_key)
        self.upsamplers = tuple(Upsampler(width, key=k) for k in keys)
        self.out = _conv(width, channels, 1, 1, bias=True, init=glorot_uniform(), key=out_key)

    def __call__(self, z: Float[Array, "height width code"]) -> Float[Array, "4*height 4*width channel"]:
        return self._rest(self.first(z))

    def tokens(self, codes: Int[Array, "height width"]) -> Float[Array, "4*height 4*width channel"]:
        """The same for one-hot vectors: the first convolution is a look-up of its rows."""
        rows = self.first.conv.weight[0, 0]
        return self._rest(self.first.norm(rows[codes], activation="relu"))

    def _rest(self, x: Array) -> Array:
        for upsampler in self.upsamplers:
            x = upsampler(x)
        return self.out(x)


class DiscreteVAE(eqx.Module):
    """`decode(z)` of `z ~ Categorical(encode(image))`, relaxed in training.

    Images in [0, 1], sides a multiple of 4. Source: Singh et al., ICLR 2022, section 3.1 and appendix.
    """

    encoder: DVAEEncoder
    decoder: DVAEDecoder

    def __init__(self, channels: int, codes: int, *, width: int = 64, key: PRNGKeyArray):
        encoder_key, decoder_key = jax.random.split(key)
        self.encoder = DVAEEncoder(channels, codes, width, key=encoder_key)
        self.decoder = DVAEDecoder(channels, codes, width, key=decoder_key)

    def encode(self, image: Float[Array, "height width channel"]) -> Float[Array, "height_4 width_4 code"]:
        """Log-probabilities of the codes at each place, float32."""
        return self.encoder(image)

    def decode(self, z: Float[Array, "height width code"]) -> Float[Array, "4*height 4*width channel"]:
        """The image of relaxed or one-hot codes: about [0, 1], not clipped."""
        return self.decoder(z)

    def decode_tokens(self, codes: Int[Array, "height width"]) -> Float[Array, "4*height 4*width channel"]:
        """The image of whole tokens: about [0, 1], not clipped."""
        return self.decoder.tokens(codes)


def _pixels_first(block: ConvBlock) -> ConvBlock:
    """The block whose channel `4 c + 2 i + j`, pixel `(i, j)` of a cell in channel `c`, is `(2 i + j) C + c` instead.

    All channels of a pixel are then moved to their place at once. The norm has one group and does not mind.
    """
    where = lambda block: (block.conv.weight, block.norm.scale, block.norm.bias)
    moved = (
        jnp.swapaxes(p.reshape(*p.shape[:-1], p.shape[-1] // 4, 4), -1, -2).reshape(p.shape)
        for p in where(block)
    )
    return eqx.tree_at(where, block, tuple(moved))


def _conv(
    in_channels: int,
    out_channels: int,
    size: int,
    stride: int,
    *,
    bias: bool,
    init: Initializer,
    key: PRNGKeyArray,
) -> Conv:
    edge = (size - 1) // 2 if stride == 1 else 0
    padding = ((edge, edge), (edge, edge))
    return Conv(in_channels, out_channels, size, stride=stride, padding=padding, bias=bias, init=init, key=key)
