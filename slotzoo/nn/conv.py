"""Two-dimensional convolution and resampling, channels last; any axes before height are batch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float, PRNGKeyArray


Padding = str | tuple[tuple[int, int], tuple[int, int]]


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
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]),
        kernel.astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
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


def average_pool(
    x: Float[Array, "*batch height width channel"],
) -> Float[Array, "*batch height_2 width_2 channel"]:
    """The mean over 2x2 cells; height and width must be even."""
    *batch, height, width, channel = x.shape
    return x.reshape(*batch, height // 2, 2, width // 2, 2, channel).mean((-4, -2))


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


def upsampling_kernels(
    kernel: Float[Array, "3 3 in out"],
) -> Float[Array, "2 2 2 2 in out"]:
    """The kernels with which `conv_upsampled` computes `conv2d(upsample_nearest(x), kernel)`.

    Of the three taps of a side two fall on the same small pixel. First two axes: the place in a 2x2 cell.
    """
    taps = jnp.asarray(np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]), kernel.dtype)
    return jnp.einsum("pak,qbl,klio->pqabio", taps, taps, kernel, precision="highest")


def conv_upsampled(
    x: Float[Array, "*batch height width in"], kernels: Float[Array, "2 2 2 2 in out"]
) -> Float[Array, "*batch 2*height 2*width out"]:
    """Nearest upsampling and a 3x3 convolution as four small 2x2 convolutions: 4 products in place of 9."""
    *batch, height, width, _ = x.shape
    rows = [
        jnp.stack([conv2d(x, kernels[i, j], padding=((1 - i, i), (1 - j, j))) for j in range(2)], -2)
        for i in range(2)
    ]
    return jnp.stack(rows, -4).reshape(*batch, 2 * height, 2 * width, -1)
