"""Forms of a convolution of stride 1, and of its kernel's gradient, that use all cores of a CPU.

XLA gives a convolution of float32 to one of two libraries. YNNPACK, which it asks first, shares the work between cores
along the kernel's outputs only, where they are 96 or more (jaxlib 0.10): with 64, 32 or 4 of them it runs on one core,
whatever the size of the images. Eigen shares it along the pixels, but is slow where a kernel's gradient is written
as a convolution. Products of matrices use all cores in either. So here are:

    on_all_cores      the compiler's, for Eigen: with one more row, which YNNPACK does not take, and which is cut off
    narrow            few outputs: one product, and sums of its neighbours
    kernel_gradient   one product of neighbouring pixels with neighbouring results
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


Pads = tuple[tuple[int, int], tuple[int, int]]
# Numbers in the matrices of a product, which are worked on at a time: they fit the caches.
AT_ONCE = 2**21


def on_all_cores(
    x: Float[Array, "image height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    pads: Pads,
) -> Float[Array, "image height_out width_out out"]:
    """The compiler's convolution, on all cores. `pads` are zeros (before, after) of rows and columns.

    YNNPACK takes no convolution with more rows in its result than in the image. The row too many costs its share of
    the time; cutting it off is mostly part of what reads the result.
    """
    rows = x.shape[1] + sum(pads[0]) - kernel.shape[0] + 1
    more = max(0, x.shape[1] + 1 - rows)
    (top, bottom), columns = pads
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), ((top, bottom + more), columns), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y[:, :rows]


def narrow(
    x: Float[Array, "image height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    pads: Pads,
) -> Float[Array, "image height_out width_out out"]:
    """For few outputs: the products of each pixel with all taps at once, then their sum over the taps."""
    rows, columns, channels, outputs = kernel.shape
    height, width = (s + sum(p) - k + 1 for s, p, k in zip(x.shape[1:3], pads, (rows, columns), strict=True))
    products = x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    # The barrier keeps the product one of matrices, the library's, rather than a part of the sums.
    products = lax.optimization_barrier(products).reshape(*x.shape[:3], rows, columns, outputs)
    products = _padded(products, *pads)
    parts = [products[:, a : a + height, b : b + width, a, b] for a in range(rows) for b in range(columns)]
    return sum(parts[1:], parts[0])


def kernel_gradient(
    x: Float[Array, "image height width in"],
    dy: Float[Array, "image height_out width_out out"],
    sides: tuple[int, int],
    pads: Pads,
) -> Float[Array, "kernel_height kernel_width in out"]:
    """`dkernel[a, b] = sum_{i, j} x[i + a - top, j + b - left]^T dy[i, j]` for a kernel of `sides`.

    One product of two matrices with a row for every pixel. The taps are columns of either: those of a row beside
    each other on the side of x and those of a column on that of dy, or all of them on the narrower side, whichever
    is the least to write down.
    """
    (rows, columns), channels, outputs = sides, x.shape[3], dy.shape[3]
    widths = {
        "both": columns * channels + rows * outputs,
        "image": rows * columns * channels + outputs,
        "result": channels + rows * columns * outputs,
    }
    where = min(widths, key=lambda name: widths[name])

    def part(x: Array, dy: Array) -> Array:
        height, width = dy.shape[1:3]
        if where == "result":
            return _taps_on_result(x, dy, sides, pads)
        x = _padded(x, *pads)
        if where == "image":
            return _product(_places(x, sides, height, width), dy).reshape(rows, columns, channels, outputs)
        places = [x[:, :, b : b + width] for b in range(columns)]
        results = [_padded(dy, (a, rows - 1 - a)) for a in range(rows)]
        found = _product(jnp.stack(places, 3), jnp.stack(results, 3))
        return found.reshape(columns, channels, rows, outputs).transpose(2, 0, 1, 3)

    count = at_once(len(x), math.prod(dy.shape[1:3]) * widths[where], AT_ONCE)
    return sum_over(part, x, dy, count, (*sides, channels, outputs))


def _taps_on_result(x: Array, dy: Array, sides: tuple[int, int], pads: Pads) -> Array:
    height, width = x.shape[1:3]
    around = [
        (taps - 1 - low, side + low - out)
        for taps, (low, _), side, out in zip(sides, pads, x.shape[1:3], dy.shape[1:3], strict=True)
    ]
    dy = _padded(dy, *around)
    found = _product(x, _places(dy, sides, height, width))
    return found.reshape(x.shape[3], *sides, dy.shape[3])[:, ::-1, ::-1].transpose(1, 2, 0, 3)


def _places(x: Array, sides: tuple[int, int], height: int, width: int) -> Array:
    """Around each pixel those under all taps: `image height width row column channel`.

    First those of a row beside each other, then the rows: the compiler makes a program for each of many parts.
    """
    x = jnp.stack([x[:, :, b : b + width] for b in range(sides[1])], 3)
    return jnp.stack([x[:, a : a + height] for a in range(sides[0])], 3)


def at_once(images: int, size: int, most: int) -> int:
    """How many images of this size, a divisor of all, make up to `most` together; at least one."""
    fitting = (n for n in range(1, images + 1) if images % n == 0 and (n == 1 or n * size <= most))
    return max(fitting, default=1)


def sum_over(
    part: Callable[[Array, Array], Array],
    x: Float[Array, "image height width in"],
    dy: Float[Array, "image height_out width_out out"],
    count: int,
    shape: tuple[int, ...],
) -> Float[Array, "..."]:
    """The sum of `part(x, dy)`, of this shape, over chunks of `count` images.

    The loop is over where they begin: over an array of chunks it would have what makes `x` computed once more, in the
    shape of the chunks.
    """
    if count == len(x):
        return part(x, dy)

    def add(total: Array, start: Array) -> tuple[Array, None]:
        some = [lax.dynamic_slice(a, (start, *[jnp.uint32(0)] * 3), (count, *a.shape[1:])) for a in (x, dy)]
        return total + part(*some), None

    starts = jnp.asarray(np.arange(0, len(x), count, dtype=np.uint32))
    return lax.scan(add, jnp.zeros(shape, dy.dtype), starts)[0]


def _product(x: Array, dy: Array) -> Array:
    """`image height width ... a` and `image height width ... b` -> `(... a) (... b)`, the sum over pixels."""
    pixels = math.prod(x.shape[:3])
    return lax.dot_general(x.reshape(pixels, -1), dy.reshape(pixels, -1), (((0,), (0,)), ((), ())))


def _padded(x: Array, rows: tuple[int, int] = (0, 0), columns: tuple[int, int] = (0, 0)) -> Array:
    """With zeros around the images; negative numbers cut."""
    config = [(0, 0, 0), (*rows, 0), (*columns, 0)] + [(0, 0, 0)] * (x.ndim - 3)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
