"""The residual image encoder and decoder of TECO and ConvSSM.

`step` of either computes the same for a single frame, with less work: a convolution and the resampling beside it
are one convolution, whose kernels `prepare` makes. It is for inference on a CPU (a generated frame takes three
quarters of the time); XLA's gradient of a convolution with a stride is slow there.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.conv import (
    Conv,
    average_pool,
    conv_pooled,
    conv_upsampled,
    pooling_kernel,
    upsample_nearest,
    upsampling_kernel,
)
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import GroupNorm, LayerNorm


# Per block the kernels of the convolution that resamples as well; None where there is nothing to resample.
ResamplingKernels = tuple[Array | None, ...]


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
        h = self.conv_1(self.norm_1(x, activation="elu"))
        return skip + self.conv_2(self.norm_2(h, activation="elu"), gain=0.1)

    def pooled(
        self, x: Float[Array, "*batch height width {self.in_channels}"], kernel: Float[Array, "4 4 out out"]
    ) -> Float[Array, "*batch height_2 width_2 {self.out_channels}"]:
        """`average_pool(self(x))`; `kernel` is the pooling one of `conv_2`."""
        skip = average_pool(x) if self.skip is None else self.skip(average_pool(x))
        h = self.norm_2(self.conv_1(self.norm_1(x, activation="elu")), activation="elu")
        return skip + 0.1 * self.conv_2.biased(conv_pooled(h, kernel))

    def upsampled(
        self, x: Float[Array, "*batch height width {self.in_channels}"], kernel: Float[Array, "2 2 in four_out"]
    ) -> Float[Array, "*batch 2*height 2*width {self.out_channels}"]:
        """`self(upsample_nearest(x))`, whose first norm is that of `x`; `kernel` upsamples in `conv_1`."""
        skip = upsample_nearest(x if self.skip is None else self.skip(x))
        h = self.conv_1.biased(conv_upsampled(self.norm_1(x, activation="elu"), kernel))
        return skip + self.conv_2(self.norm_2(h, activation="elu"), gain=0.1)


class ResNetEncoder(eqx.Module):
    """Frames to a feature map: halves height and width once per depth after the first.

    The first depth always has a single block; each further one has `blocks`.
    """

    conv: Conv
    blocks: tuple[ResNetBlock, ...]
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    pool_before: tuple[int, ...] = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        depths: tuple[int, ...],
        blocks: int,
        *,
        groups: int = 32,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """`remat`: the backward pass keeps only the input of each block."""
        conv_key, blocks_key = jax.random.split(key)
        self.conv = Conv(in_channels, depths[0], 3, key=conv_key)
        numbers = [1] + [blocks] * (len(depths) - 1)
        self.blocks, self.pool_before = _stages(depths[0], depths, numbers, groups, blocks_key)
        self.in_channels, self.out_channels, self.remat = in_channels, depths[-1], remat

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        x = self.conv(x)
        for i, block in enumerate(self.blocks):
            x = _apply(block, average_pool(x) if i in self.pool_before else x, self.remat)
        return x

    def prepare(self) -> ResamplingKernels:
        """What `step` takes; fixed while the parameters are."""
        after = [i + 1 in self.pool_before for i in range(len(self.blocks))]
        return _kernels(pooling_kernel, [block.conv_2 for block in self.blocks], after)

    def step(
        self, x: Float[Array, "*batch height width {self.in_channels}"], kernels: ResamplingKernels
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        """The same as a call."""
        x = self.conv(x)
        for block, kernel in zip(self.blocks, kernels, strict=True):
            x = block(x) if kernel is None else block.pooled(x, kernel)
        return x


class ResNetDecoder(eqx.Module):
    """A feature map to frames: doubles height and width between depths, which are used in reverse."""

    conv: Conv
    blocks: tuple[ResNetBlock, ...]
    norm: LayerNorm
    head: Linear
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    upsample_before: tuple[int, ...] = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        depths: tuple[int, ...],
        blocks: int,
        out_channels: int,
        *,
        groups: int = 32,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """`remat`: the backward pass keeps only the input of each block."""
        conv_key, head_key, blocks_key = jax.random.split(key, 3)
        # The seed takes the first entry here although it walks the depths in reverse.
        self.conv = Conv(in_channels, depths[0], 3, key=conv_key)
        numbers = [blocks] * len(depths)
        self.blocks, self.upsample_before = _stages(depths[0], depths[::-1], numbers, groups, blocks_key)
        self.norm = LayerNorm(depths[0])
        self.head = Linear(depths[0], out_channels, key=head_key)
        self.in_channels, self.out_channels, self.remat = in_channels, out_channels, remat

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        x = self.conv(x)
        for i, block in enumerate(self.blocks):
            x = _apply(block, upsample_nearest(x) if i in self.upsample_before else x, self.remat)
        return self.head(self.norm(x))

    def prepare(self) -> ResamplingKernels:
        """What `step` takes; fixed while the parameters are."""
        before = [i in self.upsample_before for i in range(len(self.blocks))]
        return _kernels(upsampling_kernel, [block.conv_1 for block in self.blocks], before)

    def step(
        self, x: Float[Array, "*batch height width {self.in_channels}"], kernels: ResamplingKernels
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        """The same as a call."""
        x = self.conv(x)
        for block, kernel in zip(self.blocks, kernels, strict=True):
            x = block(x) if kernel is None else block.upsampled(x, kernel)
        return self.head(self.norm(x))


def _kernels(combined: Callable[[Array], Array], convs: list[Conv], resampled: list[bool]) -> ResamplingKernels:
    return tuple(
        combined(conv.weight.astype(jnp.float32)).astype(conv.weight.dtype) if yes else None
        for conv, yes in zip(convs, resampled, strict=True)
    )


def _apply(block: ResNetBlock, x: Array, remat: bool) -> Array:
    return eqx.filter_checkpoint(block)(x) if remat else block(x)


def _stages(
    channels: int, depths: tuple[int, ...], numbers: list[int], groups: int, key: PRNGKeyArray
) -> tuple[tuple[ResNetBlock, ...], tuple[int, ...]]:
    """The blocks of all stages in a row, and the indices at which a stage after the first begins."""
    blocks, starts = [], []
    keys = iter(jax.random.split(key, sum(numbers)))
    for depth, number in zip(depths, numbers, strict=True):
        starts.append(len(blocks))
        for _ in range(number):
            blocks.append(ResNetBlock(channels, depth, groups=groups, key=next(keys)))
            channels = depth
    return tuple(blocks), tuple(starts[1:])
