"""The gradient of a convolution's kernel with fewer products: `short_convolution` turned over, along both sides.

It is a filter as well, of x with as many taps as there are results: `short_convolution`'s formula, read for another of
its three factors, is `G' [(B d) (A' e)]`, with d the pixels under four results of the gradient e and the sum over all
cells of them taken before G'. Along both sides, a cell of 4 x 4 results takes 64 products for 5 x 5 taps in place of
400, and 36 for 3 x 3 in place of 144. All cells of a point are the rows of one product of matrices.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from slotzoo.ops.cpu_convolution import Pads, at_once, sum_over
from slotzoo.ops.short_convolution import RESULTS, matrices, weighted


# Numbers, of both factors at all points, that are worked on at a time: they fit the last cache.
AT_ONCE = 2**22


def short_kernel_gradient(
    x: Float[Array, "image height width in"],
    dy: Float[Array, "image height_out width_out out"],
    sides: tuple[int, int],
    pads: Pads,
) -> Float[Array, "kernel_height kernel_width in out"]:
    """`dkernel[a, b] = sum_{i, j} x[i + a - top, j + b - left]^T dy[i, j]` for a kernel of sides 3 or 5.

    Milliseconds on two cores of an AMD EPYC (Zen 5) with jaxlib 0.10.2, the best of six rounds, as one product of all
    pixels (`cpu_convolution.kernel_gradient`) and so:

        images, side, channels   taps    one product    so
        56, 64, 64 -> 64         5 x 5           181    81
         8, 64, 64 -> 64         5 x 5            24    11
        56, 32, 64 -> 256        3 x 3            52    26
        56, 16, 64 -> 256        3 x 3            13   6.0
        32, 16, 128 -> 128       3 x 3           8.9   4.0

    Of the first 81 the products take 53, at 145 GFLOP/s: the compiler has no program for many small ones, transposed,
    that uses both cores (it does 400 along one side, for 2.5 times as many). With 16 channels nothing is gained. The
    rounding error of the first is 6e-6 of the result's size as a root mean square, against that of one product.
    """
    channels, outputs = x.shape[3], dy.shape[3]
    cells = [-(-size // RESULTS) for size in dy.shape[1:3]]
    points = [len(matrices(side)[1]) for side in sides]

    def part(x: Array, dy: Array) -> Array:
        pixels, results = _cut(x, cells, pads, 1), _cut(dy, cells, ((0, 0), (0, 0)), 0)
        # Columns, then rows: the points of columns are then one more axis before them.
        for side, axis in ((sides[1], 3), (sides[0], 2)):
            out, _, spread = matrices(side)
            pixels, results = _at_points(pixels, spread, axis), _at_points(results, out.T, axis)
        rows = [a.reshape(math.prod(points), -1, a.shape[-1]) for a in (pixels, results)]
        return lax.dot_general(rows[0], rows[1], (((1,), (1,)), ((0,), (0,))))

    count = at_once(len(x), math.prod(points) * math.prod(cells) * (channels + outputs), AT_ONCE)
    found = sum_over(part, x, dy, count, (math.prod(points), channels, outputs))
    gather = [jnp.asarray(matrices(side)[1], dy.dtype) for side in sides]
    found = found.reshape(*points, channels, outputs)
    return jnp.einsum("pa,qb,pqio->abio", *gather, found, precision="highest")


def _cut(x: Array, cells: list[int], pads: Pads, more: int) -> Array:
    """`image row cell row column cell column channel`: cells of pixels, and `more` of them at the end of each side."""
    config = [
        (low, RESULTS * (count + more) - size - low, 0)
        for (low, _), count, size in zip(pads, cells, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    rows, columns = (count + more for count in cells)
    return x.reshape(len(x), rows, RESULTS, columns, RESULTS, x.shape[-1])


def _at_points(x: Array, factors: np.ndarray, axis: int) -> Array:
    """Polynomials at all points, a new first axis. `axis` is that of cells, the next one (which goes) their inside;
    more factors than there are inside of a cell reach into the next cell.
    """
    inside = [lax.index_in_dim(x, j, axis + 1, keepdims=False) for j in range(RESULTS)]
    if factors.shape[1] > RESULTS:
        count = x.shape[axis] - 1
        inside = [lax.slice_in_dim(a, i, i + count, axis=axis) for i in range(2) for a in inside]
    # Without the barrier the sums would be made again for each of their readers.
    return lax.optimization_barrier(jnp.stack([weighted(row, inside) for row in factors]))
