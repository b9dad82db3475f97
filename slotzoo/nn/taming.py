"""Encoder and decoder of the VQ-GAN (Esser et al., CVPR 2021): residual blocks, attention at chosen sizes.

Layout, order of blocks and paddings are those of taming-transformers, so that its weights can be loaded.
All functions take one image, `height width channel`.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.conv import Conv, upsample_nearest
from slotzoo.nn.norm import GroupNorm


class ResidualBlock(eqx.Module):
    """`x + conv(swish(norm(conv(swish(norm(x))))))`; a 1 x 1 convolution on the shortcut if channels differ."""

    norm_in: GroupNorm
    conv_in: Conv
    norm_out: GroupNorm
    conv_out: Conv
    shortcut: Conv | None

    def __init__(self, d_in: int, d_out: int, *, groups: int, key: PRNGKeyArray):
        key_in, key_out, key_cut = jax.random.split(key, 3)
        self.norm_in = GroupNorm(groups, d_in)
        self.conv_in = Conv(d_in, d_out, 3, key=key_in)
        self.norm_out = GroupNorm(groups, d_out)
        self.conv_out = Conv(d_out, d_out, 3, key=key_out)
        self.shortcut = Conv(d_in, d_out, 1, key=key_cut) if d_in != d_out else None

    def __call__(self, x: Float[Array, "height width d_in"]) -> Float[Array, "height width d_out"]:
        h = self.conv_in(self.norm_in(x, activation="swish"))
        h = self.conv_out(self.norm_out(h, activation="swish"))
        return h + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(eqx.Module):
    """`x + out(softmax(q k^T / sqrt(channels)) v)`: one head over all positions of the image."""

    norm: GroupNorm
    query: Conv
    key: Conv
    value: Conv
    out: Conv

    def __init__(self, channels: int, *, groups: int, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.norm = GroupNorm(groups, channels)
        self.query, self.key, self.value, self.out = (Conv(channels, channels, 1, key=k) for k in keys)

    def __call__(self, x: Float[Array, "height width channel"]) -> Float[Array, "height width channel"]:
        h = self.norm(x)
        q, k, v = (f(h).reshape(-1, x.shape[-1]) for f in (self.query, self.key, self.value))
        logits = jnp.matmul(q, k.T, preferred_element_type=jnp.float32) * x.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return x + self.out((weights @ v).reshape(x.shape))


class Downsample(eqx.Module):
    """Half the size: a row and a column of zeros at the bottom and right, then a 3 x 3 convolution."""

    conv: Conv

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        self.conv = Conv(channels, channels, 3, stride=2, padding=((0, 1), (0, 1)), key=key)

    def __call__(
        self, x: Float[Array, "height width channel"]
    ) -> Float[Array, "half_height half_width channel"]:
        return self.conv(x)


class Upsample(eqx.Module):
    """Twice the size: every pixel repeated 2 x 2, then a 3 x 3 convolution."""

    conv: Conv

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        self.conv = Conv(channels, channels, 3, key=key)

    def __call__(self, x: Float[Array, "height width channel"]) -> Float[Array, "2*height 2*width channel"]:
        return self.conv(upsample_nearest(x))


class Level(eqx.Module):
    """The blocks of one resolution, each followed by attention if the level has it, and the change of size."""

    blocks: tuple[ResidualBlock, ...]
    attentions: tuple[AttentionBlock, ...]
    resample: Downsample | Upsample | None

    def __init__(
        self,
        d_in: int,
        d_out: int,
        blocks: int,
        *,
        attention: bool,
        resample: type[Downsample] | type[Upsample] | None,
        groups: int,
        key: PRNGKeyArray,
    ):
        keys = jax.random.split(key, 2 * blocks + 1)
        widths = (d_in,) + (d_out,) * (blocks - 1)
        self.blocks = tuple(
            ResidualBlock(w, d_out, groups=groups, key=k) for w, k in zip(widths, keys[:blocks], strict=True)
        )
        self.attentions = tuple(
            AttentionBlock(d_out, groups=groups, key=k)
            for k in (keys[blocks : 2 * blocks] if attention else ())
        )
        self.resample = None if resample is None else resample(d_out, key=keys[-1])

    def __call__(self, x: Float[Array, "height width d_in"]) -> Float[Array, "height2 width2 d_out"]:
        for i, block in enumerate(self.blocks):
            x = block(x)
            x = self.attentions[i](x) if self.attentions else x
        return x if self.resample is None else self.resample(x)


class Middle(eqx.Module):
    """Residual block, attention, residual block, at the smallest size."""

    block_in: ResidualBlock
    attention: AttentionBlock | None
    block_out: ResidualBlock

    def __init__(self, channels: int, *, attention: bool, groups: int, key: PRNGKeyArray):
        key_in, key_attention, key_out = jax.random.split(key, 3)
        self.block_in = ResidualBlock(channels, channels, groups=groups, key=key_in)
        self.attention = AttentionBlock(channels, groups=groups, key=key_attention) if attention else None
        self.block_out = ResidualBlock(channels, channels, groups=groups, key=key_out)

    def __call__(self, x: Float[Array, "height width channel"]) -> Float[Array, "height width channel"]:
        x = self.block_in(x)
        x = x if self.attention is None else self.attention(x)
        return self.block_out(x)


class Layout(NamedTuple):
    """What encoder and decoder share. `widths` and `attention` go from the largest size to the smallest."""

    base: int  # channels of the encoder's first convolution
    widths: tuple[int, ...]  # channels of every level
    attention: tuple[bool, ...]  # whether the blocks of a level are followed by attention
    middle_attention: bool
    blocks: int  # residual blocks of a level; the decoder has one more
    groups: int  # of every GroupNorm
    patch: int  # side of the square of pixels that is folded into one position first


class Encoder(eqx.Module):
    """Image to latents: levels of falling size and growing width, the middle, one 3 x 3 convolution."""

    conv_in: Conv
    levels: tuple[Level, ...]
    middle: Middle
    norm: GroupNorm
    conv_out: Conv
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        d_in: int,
        d_out: int,
        layout: Layout,
        *,
        key: PRNGKeyArray,
    ):
        widths, groups, patch = layout.widths, layout.groups, layout.patch
        keys = jax.random.split(key, len(widths) + 3)
        last = len(widths) - 1
        self.patch = patch
        self.conv_in = Conv(d_in * patch**2, layout.base, 3, key=keys[0])
        self.levels = tuple(
            Level(
                (layout.base, *widths)[i],
                widths[i],
                layout.blocks,
                attention=layout.attention[i],
                resample=Downsample if i < last else None,
                groups=groups,
                key=keys[i + 3],
            )
            for i in range(len(widths))
        )
        self.middle = Middle(widths[-1], attention=layout.middle_attention, groups=groups, key=keys[1])
        self.norm = GroupNorm(groups, widths[-1])
        self.conv_out = Conv(widths[-1], d_out, 3, key=keys[2])

    def __call__(self, image: Float[Array, "height width d_in"]) -> Float[Array, "height2 width2 d_out"]:
        x = self.conv_in(fold(image, self.patch))
        for level in self.levels:
            x = level(x)
        return self.conv_out(self.norm(self.middle(x), activation="swish"))


class Decoder(eqx.Module):
    """Latents to image: the encoder mirrored, with one residual block more per level."""

    conv_in: Conv
    middle: Middle
    levels: tuple[Level, ...]  # from the smallest size to the largest
    norm: GroupNorm
    conv_out: Conv
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        d_in: int,
        d_out: int,
        layout: Layout,
        *,
        key: PRNGKeyArray,
    ):
        widths, groups, patch = layout.widths, layout.groups, layout.patch
        keys = jax.random.split(key, len(widths) + 3)
        order = tuple(reversed(range(len(widths))))
        self.patch = patch
        self.conv_in = Conv(d_in, widths[-1], 3, key=keys[0])
        self.middle = Middle(widths[-1], attention=layout.middle_attention, groups=groups, key=keys[1])
        self.levels = tuple(
            Level(
                widths[min(i + 1, len(widths) - 1)],
                widths[i],
                layout.blocks + 1,
                attention=layout.attention[i],
                resample=Upsample if i > 0 else None,
                groups=groups,
                key=keys[i + 3],
            )
            for i in order
        )
        self.norm = GroupNorm(groups, widths[0])
        self.conv_out = Conv(widths[0], d_out * patch**2, 3, key=keys[2])

    def features(self, latents: Float[Array, "height width d_in"]) -> Float[Array, "height2 width2 channel"]:
        """Everything but the last convolution."""
        x = self.middle(self.conv_in(latents))
        for level in self.levels:
            x = level(x)
        return self.norm(x, activation="swish")

    def head(self, features: Float[Array, "height width channel"]) -> Float[Array, "height2 width2 d_out"]:
        """The last convolution: features to pixels."""
        return unfold(self.conv_out(features), self.patch)

    def __call__(self, latents: Float[Array, "height width d_in"]) -> Float[Array, "height2 width2 d_out"]:
        return self.head(self.features(latents))


def fold(image: Float[Array, "height width channel"], patch: int) -> Float[Array, "height2 width2 channel2"]:
    """Space to depth: every `patch x patch` square becomes one position with `patch^2` times the channels."""
    h, w, c = image.shape
    x = image.reshape(h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 2, 1, 3, 4).reshape(h // patch, w // patch, patch * patch * c)


def unfold(x: Float[Array, "height width channel"], patch: int) -> Float[Array, "height2 width2 channel2"]:
    """Depth to space: the inverse of `fold`."""
    h, w, c = x.shape
    c //= patch * patch
    x = x.reshape(h, w, patch, patch, c).transpose(0, 2, 1, 3, 4)
    return x.reshape(h * patch, w * patch, c)
