"""Two-dimensional convolution whose gradients have the one form that XLA's CPU compiler has a fast program for.

That program wants images as NHWC, kernels as HWIO and no axis in another's place. Outside of loops the compiler
brings every convolution there by itself. Inside of a loop (`lax.scan`, `lax.map`) it does not, and automatic
differentiation writes gradients with axes exchanged: these fall to a plain nest of loops, fifty times slower.

On a CPU, those of stride 1 take one of several forms, the gradients of the input as well: fewer products where
channels are many (`short_convolution`), products of matrices where they are few, and one that the compiler runs on
all cores in between (`cpu_convolution`). The kernel's gradient is a product of matrices.

This is a primitive of its own, and not a function with a rule for its gradient, because of `jax.vmap`: such a rule
would be mapped as well, and make a kernel's gradient for each example where only their sum is wanted.
"""

import functools
import math
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from slotzoo.errors import ConfigError
from slotzoo.ops import cpu_convolution
from slotzoo.ops.cpu_convolution import Pads
from slotzoo.ops.device import compiling_for_gpu
from slotzoo.ops.sharding import over_devices
from slotzoo.ops.short_convolution import POINTS, short_convolution
from slotzoo.ops.short_gradient import short_kernel_gradient


Padding = str | Pads
Implementation = Literal["auto", "direct", "short", "narrow"]
# Pixels that the direct form of a kernel's gradient sums over at a time. For 56 images of 64 x 64 pixels, 5 x 5 taps
# and 64 channels it takes 0.83 s of a core all at once, 0.28 s by eight and 0.25 s by two, with as much less memory.
AT_ONCE = 16_384


def convolution(
    x: Float[Array, "image height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    *,
    stride: int = 1,
    padding: Padding = "SAME",
    implementation: Implementation = "auto",
) -> Float[Array, "image height_out width_out out"]:
    """`y[i, j] = sum_{a, b} x[stride i + a - low, stride j + b - low] kernel[a, b]`, in the dtype of both.

    `padding` is "SAME", "VALID" or pairs (low, high) of zeros per axis. For a GPU this is
    `jax.lax.conv_general_dilated`, gradients and all.

    `implementation`: "direct" sums products as the compiler does, "short" makes four neighbours of a row together
    with fewer of them (kernels 3 or 5 wide, stride 1), "narrow" is a product of matrices for few outputs (stride 1),
    and "auto" takes what is faster on the platform that is compiled for: on a CPU and for float32 these or
    `cpu_convolution.on_all_cores`, as `_form` says, unless the ambient mesh has several devices, over which
    images may be spread that they work on in turn. Against float64, for 64 channels and 5 x 5 taps, the rounding
    error of "short" is 1.4e-6 of the results' size as a root mean square (direct: 3.9e-7), and the largest of half a
    million 3.8e-6 of the largest result (direct: 6.8e-7).

    Measured on two cores of an AMD EPYC (Zen 5) with jaxlib 0.10.2, the best of several rounds in milliseconds:

        images, side, channels   taps    direct   on all cores   short   narrow
        56, 64, 64 -> 64         5 x 5      199            131      62
         8, 64, 64 -> 64         5 x 5       27             18     8.8
         8, 32, 32 -> 32         5 x 5      1.9            1.4     1.2
        56, 32, 64 -> 256        3 x 3       42             45      30
        56, 32, 256 -> 64        3 x 3       84             66      38
        32, 16, 128 -> 128       3 x 3      5.8            6.1     3.9
       128, 32, 32 -> 32         3 x 3     11.2            8.4     7.8
        56, 64, 64 -> 4          3 x 3       16             20             7.0
         4, 128, 8 -> 3          3 x 3      2.2            2.1            0.67

    and a kernel's gradient, as a convolution and as a product: 221 and 169 for the first of these, 79 and 58 for the
    fourth, 43 and 11 for 64 -> 4 channels, 4.2 and 0.7 for 8 -> 3. Where products are many it has a form with fewer of
    them as well, "auto" or "short": 81 and 26 for the first and the fourth (`short_gradient`, with its rounding error).
    A training step of Slot Attention on eight images of 64 x 64 pixels took 0.99 s with the direct forms, 0.85 s before
    this last one and 0.69 s with it, one of SLATE 0.144 in place of 0.171, and a frame that ConvS5 generates 1.2 ms in
    place of 1.45.

    **Raises** ConfigError where a form was asked for and cannot be.
    """
    if implementation == "short" and (kernel.shape[1] not in POINTS or stride != 1):
        raise ConfigError(
            f"convolution(implementation='short') is for kernels {' or '.join(map(str, POINTS))} wide and "
            f"stride 1, got width {kernel.shape[1]} and stride {stride}. 'auto' takes a form that can run."
        )
    if implementation == "narrow" and stride != 1:
        raise ConfigError(
            f"convolution(implementation='narrow') is for stride 1, got {stride}. 'auto' takes a form that can run."
        )
    if implementation == "auto" and over_devices():
        implementation = "direct"
    if isinstance(padding, str):
        pairs = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), padding)
        pads = cast(Pads, tuple((int(low), int(high)) for low, high in pairs))
    else:
        pads = padding
    if compiling_for_gpu():
        return _general(x, kernel, stride=stride, pads=pads)
    x, pads = _cut(x, pads)
    return _convolution.bind(x, kernel, stride=stride, pads=pads, implementation=implementation)


_convolution = Primitive("convolution")


def _cut(x: Array, pads: Any, spread: int = 1) -> tuple[Array, Pads]:
    """Images without the pixels that negative `pads` cut off, and pads that are not negative; `spread - 1` zeros are to
    come between pixels. jaxlib 0.10.2 gives wrong results on a CPU where pads of a convolution are negative.
    """
    pads = cast(Pads, tuple((int(low), int(high)) for low, high in pads))
    away = [[-(min(pad, 0) // spread) for pad in pair] for pair in pads]
    if not any(map(any, away)):
        return x, pads
    (top, bottom), (left, right) = away
    x = x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]
    left_over = [
        tuple(p + spread * a for p, a in zip(*both, strict=True)) for both in zip(pads, away, strict=True)
    ]
    return x, cast(Pads, tuple(left_over))


def _general(
    x: Array, kernel: Array, *, stride: int = 1, pads: Any, spread_input: int = 1, spread_kernel: int = 1
) -> Array:
    x, pads = _cut(x, pads, spread_input)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        lhs_dilation=(spread_input, spread_input),
        rhs_dilation=(spread_kernel, spread_kernel),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _is_product(sides: tuple[int, ...], stride: int, pads: Any) -> bool:
    """Whether each pixel is by itself: a product of matrices, ten times faster than as a convolution's gradient."""
    return sides == (1, 1) and stride == 1 and not any(map(any, pads))


def _is_large(kernel: tuple[int, ...], pixels: int, images: int, products: float) -> bool:
    """Whether a form with fewer products is faster. Its sums are paid by many channels, its copies by large images,
    and a part of a second of compiling for each shape by many products.
    """
    return min(kernel[2:]) >= 32 and pixels >= 256 and images * pixels * math.prod(kernel) >= products


def _form(x: Any, kernel: Any, stride: int) -> str:
    """The fastest one on a CPU, as measured; see `convolution`."""
    (rows, columns, channels, outputs), pixels = kernel.shape, math.prod(x.shape[1:3])
    if stride != 1 or not x.dtype == kernel.dtype == jnp.float32 or rows * columns == 1:
        return "direct"
    if outputs <= 4:
        return "narrow"
    terms = rows * columns * channels
    work = x.shape[0] * pixels * terms * outputs
    if outputs >= 96 and terms >= 512:
        return "direct"  # it uses all cores
    if columns in POINTS and rows >= 3 and _is_large(kernel.shape, pixels, x.shape[0], 3e9):
        return "short"
    return "on all cores" if outputs >= 32 and terms >= 128 and work >= 2**21 else "direct"


def _lowered_on_cpu(
    x: Array, kernel: Array, *, stride: int, pads: Pads, implementation: Implementation
) -> Array:
    form = _form(x, kernel, stride) if implementation == "auto" else implementation
    if form == "on all cores":
        return cpu_convolution.on_all_cores(x, kernel, pads)
    return _lowered(x, kernel, stride=stride, pads=pads, implementation=cast(Implementation, form))


def _lowered(x: Array, kernel: Array, *, stride: int, pads: Pads, implementation: Implementation) -> Array:
    if implementation == "short":
        return short_convolution(x, kernel, pads)
    if implementation == "narrow":
        return cpu_convolution.narrow(x, kernel, pads)
    if _is_product(kernel.shape[:2], stride, pads):
        pixels = x.reshape(x.shape[0] * x.shape[1] * x.shape[2], x.shape[3])
        return (pixels @ kernel[0, 0]).reshape(*x.shape[:3], kernel.shape[3])
    return _general(x, kernel, stride=stride, pads=pads)


def _shape(x: Any, kernel: Any, *, stride: int, pads: Pads, implementation: Implementation) -> ShapedArray:
    # It also says what does not fit together.
    found = jax.eval_shape(functools.partial(_general, stride=stride, pads=pads), x, kernel)
    return ShapedArray(found.shape, found.dtype)


def _batched(
    args: Any, axes: Any, *, stride: int, pads: Pads, implementation: Implementation
) -> tuple[Array, int]:
    (x, kernel), (x_axis, kernel_axis) = args, axes
    if kernel_axis is not None:
        general = lambda x, kernel: _general(x, kernel, stride=stride, pads=pads)
        return jax.vmap(general, in_axes=(x_axis, kernel_axis))(x, kernel), 0
    x = jnp.moveaxis(x, x_axis, 0)
    images = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    y = _convolution.bind(images, kernel, stride=stride, pads=pads, implementation=implementation)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _input_gradient(
    dy: Array, x: Any, kernel: Array, *, stride: int, pads: Pads, implementation: Implementation
) -> Array:
    """A convolution of `dy` with the kernel turned over."""
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    pairs = []
    for side, out, taps, (low, _) in zip(x.aval.shape[1:3], dy.shape[1:3], kernel.shape[:2], pads, strict=True):
        before = taps - 1 - low
        pairs.append((before, side - (stride * (out - 1) + 1) + taps - 1 - before))
    if stride == 1:
        dy, pads = _cut(dy, pairs)
        return _convolution.bind(dy, turned, stride=1, pads=pads, implementation=implementation)
    return _general(dy, turned, pads=pairs, spread_input=stride)


def _kernel_gradient(
    dy: Array, x: Array, kernel: Any, *, stride: int, pads: Pads, implementation: Implementation
) -> Array:
    """A convolution of `x` with `dy`, where channels take the place of images, and images that of channels."""
    if _is_product(kernel.aval.shape[:2], stride, pads):
        # The first factor is transposed, which is a copy: let it be the narrower one.
        swap = x.shape[3] > dy.shape[3]
        first, second = (dy, x) if swap else (x, dy)
        found = lax.dot_general(first, second, (((0, 1, 2), (0, 1, 2)), ((), ())))
        return (found.T if swap else found)[None, None]
    if stride == 1 and implementation != "direct" and x.dtype == dy.dtype == jnp.float32:
        sides, pixels = kernel.aval.shape[:2], math.prod(dy.shape[1:3])
        large = _is_large(kernel.aval.shape, pixels, len(x), 1e9)
        if all(side in POINTS for side in sides) and (large or implementation == "short"):
            return short_kernel_gradient(x, dy, sides, pads)
        return cpu_convolution.kernel_gradient(x, dy, sides, pads)
    pairs = []
    for side, out, taps, (low, _) in zip(x.shape[1:3], dy.shape[1:3], kernel.aval.shape[:2], pads, strict=True):
        pairs.append((low, taps - 1 + stride * (out - 1) + 1 - side - low))

    def part(x: Array, dy: Array) -> Array:
        images, kernels = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
        return _general(images, kernels, pads=pairs, spread_kernel=stride)

    count = cpu_convolution.at_once(dy.shape[0], dy.shape[1] * dy.shape[2], AT_ONCE)
    if count == dy.shape[0]:
        return part(x, dy).transpose(1, 2, 0, 3)
    chunks = [a.reshape(a.shape[0] // count, count, *a.shape[1:]) for a in (x, dy)]
    add = lambda total, chunk: (total + part(*chunk).astype(jnp.float32), None)
    start = jnp.zeros((x.shape[3], *kernel.aval.shape[:2], dy.shape[3]), jnp.float32)
    return lax.scan(add, start, chunks)[0].astype(dy.dtype).transpose(1, 2, 0, 3)


_convolution.def_impl(_lowered)
_convolution.def_abstract_eval(_shape)
mlir.register_lowering(_convolution, mlir.lower_fun(_lowered, multiple_results=False))
mlir.register_lowering(_convolution, mlir.lower_fun(_lowered_on_cpu, multiple_results=False), platform="cpu")
batching.primitive_batchers[_convolution] = _batched
ad.defbilinear(_convolution, _input_gradient, _kernel_gradient)
