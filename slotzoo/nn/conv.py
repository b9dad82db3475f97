"""Two-dimensional convolution and resampling, channels last; any axes before height are batch."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops.convolution import Padding, convolution


def conv2d(
    x: Float[Array, "*batch height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    *,
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "*batch height_out width_out out"]:
    """Cross-correlation `y[i, j] = sum_{a, b} x[i + a, j + b] kernel[a, b]`; the kernel is cast to `x`'s dtype.

    The batch axes are folded into one, which keeps it a single large convolution.
    """
    y = convolution(x.reshape(-1, *x.shape[-3:]), kernel.astype(x.dtype), stride=stride, padding=padding)
    return y.reshape(*x.shape[:-3], *y.shape[1:])


class Conv(eqx.Module):
    """A two-dimensional convolution with an optional bias."""

    weight: Float[Array, "kernel_height kernel_width in out"]
    bias: Float[Array, " out"] | None
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        bias: bool = True,
        init: Initializer = lecun_normal(),
        key: PRNGKeyArray,
    ):
        """Kernel by `init`, LeCun-normal (truncated) unless given; zero bias.

        `padding` is "SAME", "VALID" or pairs per axis.
        """
        self.weight = init(key, (kernel_size, kernel_size, in_channels, out_channels), jnp.float32)
        self.bias = jnp.zeros(out_channels) if bias else None
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding = stride, padding

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"], *, gain: float | None = None
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        """Convolve. A `gain` scales the result by way of the parameters: no pass over the maps for it."""
        weight, bias = self.weight, self.bias
        if gain is not None:
            weight, bias = gain * weight, None if bias is None else gain * bias
        return _biased(conv2d(x, weight, stride=self.stride, padding=self.padding), bias)

    def biased(
        self, y: Float[Array, "*batch height width {self.out_channels}"]
    ) -> Float[Array, "*batch height width {self.out_channels}"]:
        """Add the bias to what was convolved elsewhere."""
        return _biased(y, self.bias)


def _biased(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def conv_transpose2d(
    x: Float[Array, "*batch height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    *,
    stride: int = 2,
    padding: Padding = "SAME",
) -> Float[Array, "*batch height_out width_out out"]:
    """`y[o] = sum_a z[o + a - low] kernel[a]` along each side, where `z` is `x` with `stride - 1` zeros between pixels.

    The kernel is that of the equivalent convolution; PyTorch's `(in, out, height, width)` is turned over in both
    sides first. `padding` is "SAME" (`stride` times the size; Flax, TensorFlow), or the pairs (low, high) of zeros
    about `z`; PyTorch's `padding=p, output_padding=q` is `(k - 1 - p, k - 1 - p + q)`.

    Computed as one ordinary convolution that makes the `stride x stride` pixels of a cell as channels, followed by
    their interleaving: no product with a zero in between. On a CPU a training step through a 5 x 5 kernel of
    stride 2 takes a tenth of what `jax.lax.conv_transpose` takes.
    """
    pads = _transposed_padding(kernel.shape[:2], stride, padding)
    rows = _Phases.of(x.shape[-3], kernel.shape[0], stride, pads[0])
    columns = _Phases.of(x.shape[-2], kernel.shape[1], stride, pads[1])
    if stride == 1:
        return conv2d(x, kernel, padding=(rows.padding, columns.padding))
    cells = jnp.pad(kernel, (rows.zeros, columns.zeros, (0, 0), (0, 0)))
    cells = cells.reshape(-1, stride, cells.shape[1] // stride, stride, *kernel.shape[2:])[:, ::-1, :, ::-1]
    cells = cells.transpose(0, 2, 4, 1, 3, 5).reshape(len(cells), cells.shape[2], kernel.shape[2], -1)
    y = conv2d(x, cells, padding=(rows.padding, columns.padding))
    *batch, height, width, _ = y.shape
    y = y.reshape(*batch, height, width, stride, stride, -1)
    y = jnp.swapaxes(y, -4, -3).reshape(*batch, height * stride, width * stride, -1)
    return y[..., : rows.size, : columns.size, :]


class _Phases(NamedTuple):
    """One side of a transposed convolution, as a convolution per phase: output `stride m + p` is phase p of cell m."""

    size: int  # of the output
    padding: tuple[int, int]  # of the input
    # About the kernel, which then has for each tap of a cell's kernel one of every phase, the last phase first.
    zeros: tuple[int, int]

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, pads: tuple[int, int]) -> "_Phases":
        low, high = pads
        out = stride * (size - 1) + 1 + low + high - kernel + 1
        if out < 1:
            raise ShapeError(f"a transposed convolution of {size} pixels with padding {pads} leaves none.")
        # Tap a of the kernel reads pixel m + shift for phase p where p + a - low = stride * shift.
        first, last = -(low // stride), (stride - 1 + kernel - 1 - low) // stride
        zeros = (stride - 1 - low - stride * first, stride * last + 1 + low - kernel)
        cells = -(-out // stride)
        return cls(out, (-first, cells - 1 + last - (size - 1)), zeros)


def _transposed_padding(
    sides: tuple[int, ...], stride: int, padding: Padding
) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(padding, tuple):
        return padding
    if padding == "VALID":
        height, width = ((k - 1, k - 1 + max(stride - k, 0)) for k in sides)
    elif padding == "SAME":
        totals = [k + stride - 2 for k in sides]
        lows = [k - 1 if stride > k - 1 else -(-total // 2) for k, total in zip(sides, totals, strict=True)]
        height, width = ((low, total - low) for low, total in zip(lows, totals, strict=True))
    else:
        raise ConfigError(f'padding is "SAME", "VALID" or pairs of numbers, got {padding!r}.')
    return height, width


class ConvTranspose(eqx.Module):
    """A two-dimensional transposed convolution with an optional bias."""

    weight: Float[Array, "kernel_height kernel_width in out"]
    bias: Float[Array, " out"] | None
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 2,
        padding: Padding = "SAME",
        bias: bool = True,
        init: Initializer = lecun_normal(),
        key: PRNGKeyArray,
    ):
        """Kernel by `init`, LeCun-normal (truncated) unless given, as in Flax: of the whole kernel, of which one tap in
        `stride x stride` reaches a pixel, so a layer makes its input smaller by `stride`. Zero bias.
        """
        self.weight = init(key, (kernel_size, kernel_size, in_channels, out_channels), jnp.float32)
        self.bias = jnp.zeros(out_channels) if bias else None
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride, self.padding = stride, padding

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        """As `conv_transpose2d`."""
        return _biased(conv_transpose2d(x, self.weight, stride=self.stride, padding=self.padding), self.bias)


def average_pool(
    x: Float[Array, "*batch height width channel"],
) -> Float[Array, "*batch height_2 width_2 channel"]:
    """The mean over 2x2 cells; height and width must be even."""
    *batch, height, width, channel = x.shape
    cells = x.reshape(*batch, height // 2, 2, width // 2, 2, channel)
    # Sums of four arrays, not a reduction: XLA's CPU compiler would write down all that a reduction reads.
    cells = cells.astype(jnp.float32)
    rows = [cells[..., i, :, 0, :] + cells[..., i, :, 1, :] for i in range(2)]
    return (0.25 * (rows[0] + rows[1])).astype(x.dtype)


def upsample_nearest(
    x: Float[Array, "*batch height width channel"],
) -> Float[Array, "*batch 2*height 2*width channel"]:
    """Repeat every pixel into a 2x2 cell."""
    *batch, height, width, channel = x.shape
    cells = jnp.broadcast_to(x[..., :, None, :, None, :], (*batch, height, 2, width, 2, channel))
    return cells.reshape(*batch, 2 * height, 2 * width, channel)


def pooling_kernel(
    kernel: Float[Array, "3 3 in out"],
) -> Float[Array, "4 4 in out"]:
    """The kernel with which `conv_pooled` computes `average_pool(conv2d(x, kernel))`."""
    shifts = [((i, 1 - i), (j, 1 - j), (0, 0), (0, 0)) for i in range(2) for j in range(2)]
    return jnp.stack([jnp.pad(kernel, shift) for shift in shifts]).mean(0)


def conv_pooled(
    x: Float[Array, "*batch height width in"], kernel: Float[Array, "4 4 in out"]
) -> Float[Array, "*batch height_2 width_2 out"]:
    """A 3x3 convolution and the mean over 2x2 cells as one convolution: 4 products in place of 9."""
    return conv2d(x, kernel, stride=2, padding=((1, 1), (1, 1)))


def upsampling_kernel(
    kernel: Float[Array, "3 3 in out"],
) -> Float[Array, "2 2 in four_out"]:
    """The kernel with which `conv_upsampled` computes `conv2d(upsample_nearest(x), kernel)`.

    Of the three taps of a side two fall on the same small pixel. The outputs are those of the four pixels of a cell.
    """
    taps = jnp.asarray(np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]), kernel.dtype)
    kernels = jnp.einsum("pak,qbl,klio->abipqo", taps, taps, kernel, precision="highest")
    return kernels.reshape(*kernels.shape[:3], -1)


def conv_upsampled(
    x: Float[Array, "*batch height width in"], kernel: Float[Array, "2 2 in four_out"]
) -> Float[Array, "*batch 2*height 2*width out"]:
    """Nearest upsampling and a 3x3 convolution as one of 2x2 for the four pixels of a cell: 4 products in place of 9.

    Pixel (i, j) of a cell reads the small pixels from (i - 1, j - 1) on, so four neighbouring cells share a place.
    """
    *batch, height, width, _ = x.shape
    y = conv2d(x, kernel, padding=((1, 1), (1, 1))).reshape(*batch, height + 1, width + 1, 2, 2, -1)
    rows = [jnp.stack([y[..., i : i + height, j : j + width, i, j, :] for j in range(2)], -2) for i in range(2)]
    return jnp.stack(rows, -4).reshape(*batch, 2 * height, 2 * width, -1)
