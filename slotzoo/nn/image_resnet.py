"""Residual networks over images (He et al., CVPR 2016): 18 to 200 layers, with the norm of one's choice.

As SAVi has them: convolutions without bias, "SAME" padding, no ReLU between the first norm and the pooling.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.conv import Conv
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import BatchNorm, GroupNorm, LayerNorm


NormKind = Literal["group", "layer", "batch"]
AnyNorm = GroupNorm | LayerNorm | BatchNorm
GROUPS = 32


class Depth(NamedTuple):
    """How many blocks the stages have, and whether these are bottlenecks."""

    blocks: tuple[int, ...]
    bottleneck: bool


DEPTHS = {
    18: Depth((2, 2, 2, 2), False),
    34: Depth((3, 4, 6, 3), False),
    50: Depth((3, 4, 6, 3), True),
    101: Depth((3, 4, 23, 3), True),
    152: Depth((3, 8, 36, 3), True),
    200: Depth((3, 24, 36, 3), True),
}


def stages(depth: int) -> Depth:
    """The published stages of the ResNet with `depth` layers."""
    if depth not in DEPTHS:
        raise ConfigError(f"there is no ResNet-{depth}; published depths are {', '.join(map(str, DEPTHS))}.")
    return DEPTHS[depth]


class _Statistics:
    """Applies norms in their order and, in training, takes down what comes of those with running statistics."""

    def __init__(self, training: bool):
        self.training = training
        self.following: list[BatchNorm] = []

    def __call__(self, norm: AnyNorm, x: Array, activation: Literal["relu"] | None = None) -> Array:
        if self.training and isinstance(norm, BatchNorm):
            y, after = norm.training(x, activation=activation)
            self.following.append(after)
            return y
        return norm(x, activation=activation)


class ResNetUnit(eqx.Module):
    """`relu(skip(x) + norm(conv(... relu(norm(conv(x))))))`: two convolutions of 3 x 3, or 1 x 1, 3 x 3, 1 x 1.

    `skip` is a convolution of 1 x 1 with a norm where the shape changes.
    """

    convs: tuple[Conv, ...]
    norms: tuple[AnyNorm, ...]
    skip_conv: Conv | None
    skip_norm: AnyNorm | None
    out_channels: int = eqx.field(static=True)

    def __init__(
        self, channels: int, width: int, *, stride: int, bottleneck: bool, norm: NormKind, key: PRNGKeyArray
    ):
        *keys, skip_key = jax.random.split(key, 4)
        self.out_channels = out = 4 * width if bottleneck else width
        if bottleneck:
            shapes = ((channels, width, 1, 1), (width, width, 3, stride), (width, out, 1, 1))
        else:
            shapes = ((channels, width, 3, stride), (width, out, 3, 1))
        self.convs = tuple(
            Conv(a, b, kernel, stride=s, bias=False, key=k)
            for (a, b, kernel, s), k in zip(shapes, keys, strict=False)
        )
        norms = [_norm(norm, conv.out_channels) for conv in self.convs]
        if not bottleneck:
            # The unit begins as the identity. (The authors' bottleneck means to, and does not.)
            norms[-1] = eqx.tree_at(lambda n: n.scale, norms[-1], jnp.zeros(out))
        self.norms = tuple(norms)
        same = stride == 1 and channels == out
        self.skip_conv = None if same else Conv(channels, out, 1, stride=stride, bias=False, key=skip_key)
        self.skip_norm = None if same else _norm(norm, out)

    def __call__(
        self, x: Float[Array, "*batch height width channel"], apply: Callable[..., Array]
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        """`apply` runs a norm."""
        y = x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            y = apply(norm, conv(y), "relu")
        y = apply(self.norms[-1], self.convs[-1](y))
        if self.skip_conv is not None and self.skip_norm is not None:
            x = apply(self.skip_norm, self.skip_conv(x))
        return jax.nn.relu(x + y)


class ImageResNet(eqx.Module):
    """A first convolution, stages of units that each halve the size but the first, and maybe a linear head.

    With `small_inputs` the first convolution is 3 x 3 with stride 1 and nothing is pooled; otherwise it is 7 x 7 with
    stride 2 and 3 x 3 windows are pooled with stride 2. Widths are `width`, twice that, and so on.
    """

    conv: Conv
    norm: AnyNorm
    units: tuple[tuple[ResNetUnit, ...], ...]
    head: Linear | None
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    small_inputs: bool = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        *,
        blocks: tuple[int, ...],
        bottleneck: bool = False,
        width: int = 64,
        norm: NormKind = "group",
        small_inputs: bool = True,
        classes: int | None = None,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """`blocks`: units of each stage (`stages` has the published ones). `classes`: size of a head over the mean
        of all places, zero at first. `remat`: the backward pass keeps only the input of each unit.
        """
        conv_key, units_key, head_key = jax.random.split(key, 3)
        self.conv = Conv(
            in_channels,
            width,
            3 if small_inputs else 7,
            stride=1 if small_inputs else 2,
            bias=False,
            key=conv_key,
        )
        self.norm = _norm(norm, width)
        keys = iter(jax.random.split(units_key, sum(blocks)))
        channels, found = width, []
        for i, number in enumerate(blocks):
            stage = []
            for j in range(number):
                stride = 2 if i > 0 and j == 0 else 1
                unit = ResNetUnit(
                    channels, width * 2**i, stride=stride, bottleneck=bottleneck, norm=norm, key=next(keys)
                )
                channels = unit.out_channels
                stage.append(unit)
            found.append(tuple(stage))
        self.units = tuple(found)
        zeros = jax.nn.initializers.zeros
        self.head = None if classes is None else Linear(channels, classes, init=zeros, key=head_key)
        self.in_channels, self.small_inputs, self.remat = in_channels, small_inputs, remat
        self.out_channels = channels

    def __call__(self, x: Float[Array, "*batch height width {self.in_channels}"]) -> Float[Array, "*maps out"]:
        """Feature maps, or what the head makes of their mean. A BatchNorm takes its running statistics."""
        return self._run(x, _Statistics(training=False))

    def training(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> tuple[Float[Array, "*maps out"], "ImageResNet"]:
        """As a call, by the statistics of this batch; and the network with the next running ones."""
        statistics = _Statistics(training=True)
        y = self._run(x, statistics)
        return y, eqx.tree_at(_batch_norms, self, statistics.following) if statistics.following else self

    def _run(self, x: Array, apply: _Statistics) -> Array:
        x = apply(self.norm, self.conv(x))
        if not self.small_inputs:
            x = _pooled(x)
        for unit in (unit for stage in self.units for unit in stage):
            run = lambda unit, x: unit(x, apply)
            # What a checkpointed function takes down in a list would be lost: not while statistics are gathered.
            x = eqx.filter_checkpoint(run)(unit, x) if self.remat and not apply.training else run(unit, x)
        return x if self.head is None else self.head(x.mean((-3, -2)))


def _norm(kind: NormKind, channels: int) -> AnyNorm:
    if kind == "group":
        if channels % GROUPS:
            raise ConfigError(
                f"ResNet: {channels} channels cannot be split into {GROUPS} groups of equal size."
            )
        return GroupNorm(GROUPS, channels)
    return LayerNorm(channels) if kind == "layer" else BatchNorm(channels)


def _batch_norms(net: ImageResNet) -> list[BatchNorm]:
    """In the order in which they run."""
    found = [net.norm]
    for unit in (unit for stage in net.units for unit in stage):
        found += [*unit.norms, *([] if unit.skip_norm is None else [unit.skip_norm])]
    return [norm for norm in found if isinstance(norm, BatchNorm)]


def _pooled(x: Array) -> Array:
    """The largest of 3 x 3 windows with stride 2."""
    ones = (1,) * (x.ndim - 3)
    # No array of JAX: only of a minus infinity that is known while tracing is this differentiable.
    least = np.asarray(-np.inf, x.dtype)
    return jax.lax.reduce_window(x, least, jax.lax.max, (*ones, 3, 3, 1), (*ones, 2, 2, 1), "SAME")
