"""Convolution with fewer products: Toom's and Cook's short convolutions along the rows of an image, for CPUs.

Four neighbouring results of a filter with r taps take 4 r products. They are also `A [(G k) (B d)]`, with the r + 3
pixels d under them and the taps k: r + 3 products, and sums with few fixed numbers (Lavin and Gray, Fast Algorithms
for Convolutional Neural Networks, CVPR 2016, there called Winograd's). With r = 5 that is 10 products per result of
a 5 x 5 kernel in place of 25, with r = 3 it is 4.5 in place of 9. The rows stay an ordinary convolution, of one
column of taps for each of the r + 3 points: it has the compiler's fast program and needs no wider sums.
"""

import functools
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from slotzoo.ops.cpu_convolution import Pads, at_once, on_all_cores


RESULTS = 4  # made together
# Where polynomials are evaluated, besides infinity, by taps: small numbers that float32 holds exactly.
POINTS = {
    3: (0, 1, -1, Fraction(1, 2), -Fraction(1, 2)),
    5: (0, 1, -1, 2, -2, Fraction(1, 2), -Fraction(1, 2)),
}
# Numbers of an image, pixels times channels, that are worked on at a time: what is made of them fits the caches.
AT_ONCE = 2**20


def short_convolution(
    x: Float[Array, "image height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    pads: Pads,
) -> Float[Array, "image height_out width_out out"]:
    """`y[i, j] = sum_{a, b} x[i + a - low, j + b - low] kernel[a, b]` for a kernel of width 3 or 5."""
    out, gather, _ = matrices(kernel.shape[1])
    # The kernels of all points, each of one column.
    columns = jnp.einsum("pr,hrio->phio", jnp.asarray(gather, x.dtype), kernel, precision="highest")[:, :, None]

    def part(x: Array) -> Array:
        images, height, width, channels = x.shape
        wanted = width + sum(pads[1]) - kernel.shape[1] + 1
        cells = -(-wanted // RESULTS)
        low = pads[1][0]
        right = RESULTS * (cells + 1) - width - low
        x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 0), (low, right, 0), (0, 0, 0)))
        x = x.reshape(images, height, cells + 1, RESULTS, channels)
        places = [x[:, :, :-1, j] for j in range(RESULTS)] + [x[:, :, 1:, j] for j in range(RESULTS)]
        spread = lax.optimization_barrier([weighted(row, places) for row in matrices(kernel.shape[1])[2]])
        products = [on_all_cores(x, k, (pads[0], (0, 0))) for x, k in zip(spread, columns, strict=True)]
        # Without the barriers the sums would be made again for each of their readers.
        products = lax.optimization_barrier(products)
        y = jnp.stack([weighted(row, products) for row in out], axis=3)
        return y.reshape(*y.shape[:2], RESULTS * cells, y.shape[-1])[:, :, :wanted]

    most = max(1, AT_ONCE // (x.shape[1] * x.shape[2] * max(kernel.shape[2:])))
    if len(x) <= most:
        return part(x)
    # A remainder is the whole program once more to compile.
    divisor = at_once(len(x), 1, most)
    count = divisor if 2 * divisor >= most else -(-len(x) // -(-len(x) // most))
    whole = len(x) // count * count
    y = lax.map(part, x[:whole].reshape(whole // count, count, *x.shape[1:]))
    y = y.reshape(whole, *y.shape[2:])
    return y if whole == len(x) else jnp.concatenate([y, part(x[whole:])])


def weighted(factors: np.ndarray, arrays: list[Array]) -> Array:
    """The sum of `arrays` times `factors`, of which many are 0 or 1 (rows may be shorter than there are arrays)."""
    total = None
    for factor, array in zip(factors.tolist(), arrays, strict=False):
        if factor:
            term = array if factor == 1 else factor * array
            total = term if total is None else total + term
    assert total is not None
    return total


@functools.cache
def matrices(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A `(result, point)`, G `(point, tap)` and B `(point, pixel)`, float32, of `taps + RESULTS - 1` points.

    Row j of A' and G are powers of the point, those of B the coefficients of the polynomial that vanishes at all
    other points; G is divided by its value at the point, up to powers of two that keep B near 1.
    """
    points = [Fraction(p) for p in POINTS[taps]]
    out = [[p**i for i in range(RESULTS)] for p in points] + [
        [Fraction(i == RESULTS - 1) for i in range(RESULTS)]
    ]
    gather = [[p**k for k in range(taps)] for p in points] + [[Fraction(k == taps - 1) for k in range(taps)]]
    spread = []
    for j in range(len(points) + 1):
        polynomial = [Fraction(1)]
        for other in points[:j] + points[j + 1 :]:
            shifted = [Fraction(0), *polynomial]
            polynomial = [a - other * b for a, b in zip(shifted, [*polynomial, Fraction(0)], strict=True)]
        value = Fraction(1)
        if j < len(points):
            value = sum((c * points[j] ** i for i, c in enumerate(polynomial)), Fraction(0))
        size = Fraction(2) ** int(np.floor(np.log2(float(max(map(abs, polynomial)))) - 1))
        spread.append([c / size for c in polynomial] + [Fraction(0)] * (len(points) + 1 - len(polynomial)))
        gather[j] = [g * size / value for g in gather[j]]
    exact = lambda rows: np.array([[float(v) for v in row] for row in rows], np.float32)
    return exact(out).T, exact(gather), exact(spread)
