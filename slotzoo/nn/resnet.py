"""The residual image encoder and decoder of TECO and ConvSSM."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.conv import Conv, average_pool, upsample_nearest
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import GroupNorm, LayerNorm


class ResNetBlock(eqx.Module):
    """`skip(x) + 0.1 conv(elu(norm(conv(elu(norm(x))))))`; `skip` is a 1x1 convolution if channels differ."""

    skip: Conv | None
    norm_1: GroupNorm
    conv_1: Conv
    norm_2: GroupNorm
    conv_2: Conv
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)

    def __init__(self, in_channels: int, out_channels: int, *, groups: int = 32, key: PRNGKeyArray):
        skip_key, key_1, key_2 = jax.random.split(key, 3)
        same = in_channels == out_channels
        self.skip = None if same else Conv(in_channels, out_channels, 1, bias=False, key=skip_key)
        self.norm_1 = GroupNorm(groups, in_channels)
        self.conv_1 = Conv(in_channels, out_channels, 3, key=key_1)
        self.norm_2 = GroupNorm(groups, out_channels)
        self.conv_2 = Conv(out_channels, out_channels, 3, key=key_2)
        self.in_channels, self.out_channels = in_channels, out_channels

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height width {self.out_channels}"]:
        skip = x if self.skip is None else self.skip(x)
        h = self.conv_1(jax.nn.elu(self.norm_1(x)))
        h = self.conv_2(jax.nn.elu(self.norm_2(h)))
        return skip + 0.1 * h


class ResNetEncoder(eqx.Module):
    """Frames to a feature map: halves height and width once per depth after the first.

    The first depth always has a single block; each further one has `blocks`.
    """

    conv: Conv
    stages: tuple[tuple[ResNetBlock, ...], ...]
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)

    def __init__(
        self, in_channels: int, depths: tuple[int, ...], blocks: int, *, groups: int = 32, key: PRNGKeyArray
    ):
        conv_key, *stage_keys = jax.random.split(key, len(depths) + 1)
        self.conv = Conv(in_channels, depths[0], 3, key=conv_key)
        previous = depths[0]
        stages = []
        for i, (depth, stage_key) in enumerate(zip(depths, stage_keys, strict=True)):
            stages.append(_blocks(previous, depth, blocks if i else 1, groups, stage_key))
            previous = depth
        self.stages = tuple(stages)
        self.in_channels, self.out_channels = in_channels, depths[-1]

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        x = self.conv(x)
        for i, stage in enumerate(self.stages):
            if i:
                x = average_pool(x)
            for block in stage:
                x = block(x)
        return x


class ResNetDecoder(eqx.Module):
    """A feature map to frames: doubles height and width between depths, which are used in reverse."""

    conv: Conv
    stages: tuple[tuple[ResNetBlock, ...], ...]
    norm: LayerNorm
    head: Linear
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        depths: tuple[int, ...],
        blocks: int,
        out_channels: int,
        *,
        groups: int = 32,
        key: PRNGKeyArray,
    ):
        conv_key, head_key, *stage_keys = jax.random.split(key, len(depths) + 2)
        # The seed takes the first entry here although it walks the depths in reverse.
        self.conv = Conv(in_channels, depths[0], 3, key=conv_key)
        previous = depths[0]
        stages = []
        for depth, stage_key in zip(reversed(depths), stage_keys, strict=True):
            stages.append(_blocks(previous, depth, blocks, groups, stage_key))
            previous = depth
        self.stages = tuple(stages)
        self.norm = LayerNorm(previous)
        self.head = Linear(previous, out_channels, key=head_key)
        self.in_channels, self.out_channels = in_channels, out_channels

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        x = self.conv(x)
        for i, stage in enumerate(self.stages):
            if i:
                x = upsample_nearest(x)
            for block in stage:
                x = block(x)
        return self.head(self.norm(x))


def _blocks(
    in_channels: int, out_channels: int, number: int, groups: int, key: PRNGKeyArray
) -> tuple[ResNetBlock, ...]:
    sizes = [in_channels] + [out_channels] * (number - 1)
    keys = jax.random.split(key, number)
    return tuple(
        ResNetBlock(size, out_channels, groups=groups, key=k) for size, k in zip(sizes, keys, strict=True)
    )
