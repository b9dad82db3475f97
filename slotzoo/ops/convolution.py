"""Two-dimensional convolution whose gradients have the one form that XLA's CPU compiler has a fast program for.

That program wants images as NHWC, kernels as HWIO and no axis in another's place. Outside of loops the compiler
brings every convolution there by itself. Inside of a loop (`lax.scan`, `lax.map`) it does not, and automatic
differentiation writes gradients with axes exchanged: these fall to a plain nest of loops, fifty times slower.

On a CPU, those of stride 1 with enough channels take fewer products (`short_convolution`), the gradient of the input
as well; the kernel's gradient does not, see below.

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
from slotzoo.ops.device import compiling_for_gpu
from slotzoo.ops.sharding import over_devices
from slotzoo.ops.short_convolution import POINTS, short_convolution


Pads = tuple[tuple[int, int], tuple[int, int]]
Padding = str | Pads
Implementation = Literal["auto", "direct", "short"]
# Pixels that a kernel's gradient sums over at a time. For 56 images of 64 x 64 pixels, 5 x 5 taps and 64 channels it
# takes 0.83 s of a core all at once, 0.28 s by eight and 0.25 s by two, with as much less memory.
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

    `implementation`: "direct" sums products, "short" makes four neighbours of a row together with fewer of them
    (kernels 3 or 5 wide, stride 1), and "auto" takes the one that is faster on the platform that is compiled for:
    "short" on a CPU for float32 where `_gains` says so, unless the ambient mesh has several devices, over which
    images may be spread that "short" works on in turn. Against float64, for 64 channels and 5 x 5 taps, the rounding
    error of "short" is 1.4e-6 of the results' size as a root mean square (direct: 3.9e-7), and the largest of half a
    million 3.8e-6 of the largest result (direct: 6.8e-7).

    Measured on two threads of an AMD EPYC (Zen 5), seconds of a core, direct over short:

        images, side, channels   taps    direct    short   gain
        56, 64, 64 -> 64         5 x 5   208 ms    117 ms   1.8
         8, 64, 64 -> 64         5 x 5    28 ms     15 ms   1.9
         8, 32, 32 -> 32         5 x 5   1.9 ms    1.2 ms   1.6
        56, 32, 64 -> 256        3 x 3    81 ms     51 ms   1.6
        56, 16, 64 -> 256        3 x 3    19 ms     15 ms   1.3
        56,  8, 64 -> 256        3 x 3   5.1 ms    5.2 ms   1.0
        32, 16, 128 -> 128       3 x 3    11 ms    6.4 ms   1.8
       128, 32, 32 -> 32         3 x 3    12 ms     10 ms   1.2
         2, 32, 32 -> 32         3 x 3   178 us    190 us   0.9

    The kernel's gradient stays direct. For the first of these it takes 240 ms; with the same products as "short" 290
    (compiler's convolution) and 240 (products of shifted rows), with those of both directions 200, at four times the
    rounding error.

    A training step of Slot Attention on eight images of 64 x 64 pixels takes 1.23 s of a core in place of 1.58.

    **Raises** ConfigError where "short" was asked for and cannot be.
    """
    if implementation == "short" and (kernel.shape[1] not in POINTS or stride != 1):
        raise ConfigError(
            f"convolution(implementation='short') is for kernels {' or '.join(map(str, POINTS))} wide and "
            f"stride 1, got width {kernel.shape[1]} and stride {stride}. 'auto' takes a form that can run."
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
    return _convolution.bind(x, kernel, stride=stride, pads=pads, implementation=implementation)


_convolution = Primitive("convolution")


def _general(
    x: Array, kernel: Array, *, stride: int = 1, pads: Any, spread_input: int = 1, spread_kernel: int = 1
) -> Array:
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


def _gains(x: Any, kernel: Any, stride: int) -> bool:
    """Whether "short" is faster on a CPU: the sums are paid by many channels, its copies by large images."""
    channels = min(kernel.shape[2:])
    wide = channels >= {3: 64, 5: 32}.get(kernel.shape[1], math.inf)
    return (
        stride == 1
        and wide
        and kernel.shape[0] >= 3
        and x.shape[1] * x.shape[2] >= 256
        and x.dtype == kernel.dtype == jnp.float32
    )


def _lowered_on_cpu(
    x: Array, kernel: Array, *, stride: int, pads: Pads, implementation: Implementation
) -> Array:
    if implementation == "auto":
        implementation = "short" if _gains(x, kernel, stride) else "direct"
    return _lowered(x, kernel, stride=stride, pads=pads, implementation=implementation)


def _lowered(x: Array, kernel: Array, *, stride: int, pads: Pads, implementation: Implementation) -> Array:
    if implementation == "short" and kernel.shape[1] in POINTS and stride == 1:
        return short_convolution(x, kernel, pads)
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
        return _convolution.bind(dy, turned, stride=1, pads=tuple(pairs), implementation=implementation)
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
    pairs = []
    for side, out, taps, (low, _) in zip(x.shape[1:3], dy.shape[1:3], kernel.aval.shape[:2], pads, strict=True):
        pairs.append((low, taps - 1 + stride * (out - 1) + 1 - side - low))

    def part(x: Array, dy: Array) -> Array:
        images, kernels = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
        return _general(images, kernels, pads=pairs, spread_kernel=stride)

    count = _images_at_once(dy.shape[0], dy.shape[1] * dy.shape[2])
    if count == dy.shape[0]:
        return part(x, dy).transpose(1, 2, 0, 3)
    chunks = [a.reshape(a.shape[0] // count, count, *a.shape[1:]) for a in (x, dy)]
    add = lambda total, chunk: (total + part(*chunk).astype(jnp.float32), None)
    start = jnp.zeros((x.shape[3], *kernel.aval.shape[:2], dy.shape[3]), jnp.float32)
    return lax.scan(add, start, chunks)[0].astype(dy.dtype).transpose(1, 2, 0, 3)


def _images_at_once(images: int, pixels: int) -> int:
    """How many images, a divisor of all, make up to `AT_ONCE` pixels; at least one."""
    fitting = (n for n in range(1, images + 1) if images % n == 0 and (n == 1 or n * pixels <= AT_ONCE))
    return max(fitting, default=1)


_convolution.def_impl(_lowered)
_convolution.def_abstract_eval(_shape)
mlir.register_lowering(_convolution, mlir.lower_fun(_lowered, multiple_results=False))
mlir.register_lowering(_convolution, mlir.lower_fun(_lowered_on_cpu, multiple_results=False), platform="cpu")
batching.primitive_batchers[_convolution] = _batched
ad.defbilinear(_convolution, _input_gradient, _kernel_gradient)
