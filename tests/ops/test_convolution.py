import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from slotzoo.ops.convolution import convolution
from tests.tolerance import assert_close, tolerance


def arrays(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def general(x, kernel, *, stride, padding):
    """The compiler's convolution of images that are padded first, and of no pixel more than it reads: where it pads by
    itself, the gradients have negative pads, and their values are wrong (jaxlib 0.10.2 on a CPU).
    """
    sides, zero = kernel.shape[:2], jnp.zeros((), x.dtype)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], sides, (stride, stride), padding)
    pads = []
    for size, taps, (low, high) in zip(x.shape[1:3], sides, padding, strict=True):
        read = (size + low + high - taps) // stride * stride + taps
        pads.append((low, read - size - low, 0))
    return lax.conv_general_dilated(
        lax.pad(x, zero, [(0, 0, 0), *pads, (0, 0, 0)]),
        kernel,
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def check(x, kernel, **options):
    actual, pull = jax.vjp(functools.partial(convolution, **options), x, kernel)
    expected, pull_general = jax.vjp(functools.partial(general, **options), x, kernel)
    dy = jnp.cos(jnp.arange(actual.size, dtype=actual.dtype)).reshape(actual.shape)
    found, wanted = (actual, *pull(dy)), (expected, *pull_general(dy))
    terms = max(kernel.size, x.size)
    for name, a, b in zip(("y", "dx", "dkernel"), found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, rtol=tolerance(x.dtype, terms), what=name)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
def test_it_is_xlas_convolution_with_its_gradients(stride, padding):
    for sides in ((1, 1), (5, 4), (2, 3)):
        check(*arrays((2, 11, 9, 3), (*sides, 3, 4)), stride=stride, padding=padding)


@pytest.mark.parametrize("stride", [1, 2])
def test_many_pixels_are_summed_chunk_by_chunk(stride, monkeypatch):
    monkeypatch.setattr("slotzoo.ops.convolution.AT_ONCE", 100)
    x, kernel = arrays((6, 7, 7, 3), (3, 3, 3, 2))
    direct = functools.partial(convolution, stride=stride, implementation="direct")
    found, wanted = (
        jax.grad(lambda k, form=form: jnp.sin(form(x, k)).sum())(kernel)
        for form in (direct, functools.partial(general, stride=stride, padding="SAME"))
    )
    assert_close(found, wanted, rtol=tolerance(x.dtype, x.size))
    text = str(jax.make_jaxpr(jax.grad(lambda k: direct(x, k).sum()))(kernel))
    # Of 49 and 16 pixels each: two images at a time, and all six.
    assert ("scan" in text) == (stride == 1) and ("length=3" in text) == (stride == 1)


@pytest.mark.parametrize("channels", [(3, 5), (5, 3)])
def test_a_kernel_of_one_pixel_is_a_product_of_matrices(channels):
    x, kernel = arrays((2, 4, 5, channels[0]), (1, 1, *channels))
    check(x, kernel, stride=1, padding="SAME")
    check(x, kernel, stride=2, padding="SAME")
    check(x, kernel, stride=1, padding=((1, 0), (0, 2)))
    text = str(jax.jit(jax.grad(lambda k: convolution(x, k).sum())).lower(kernel).as_text())
    assert "dot_general" in text and "convolution" not in text.replace("convolution.py", "")


def test_a_half_precision_image_has_half_precision_gradients():
    check(*arrays((2, 6, 6, 3), (3, 3, 3, 4), dtype=jnp.bfloat16), stride=1, padding="SAME")


@pytest.mark.parametrize("axes", [(0, None), (1, None), (None, 0), (0, 3)])
def test_a_batch_may_be_on_any_axis(axes):
    x, kernel = arrays((2, 5, 6, 3), (3, 3, 3, 4))
    for i, axis in enumerate(axes):
        if axis is not None:
            args = [x, kernel]
            args[i] = jnp.stack([args[i], 2 * args[i], -args[i]], axis)
            x, kernel = args
    actual = jax.vmap(functools.partial(convolution, stride=2, padding="SAME"), in_axes=axes)(x, kernel)
    expected = jax.vmap(functools.partial(general, stride=2, padding="SAME"), in_axes=axes)(x, kernel)
    assert_close(actual, expected, rtol=tolerance(jnp.float32, 27))


def test_it_differentiates_forwards_and_twice():
    x, kernel = arrays((1, 5, 5, 2), (3, 3, 2, 2))

    def hessian(f):
        square = lambda k: jnp.square(f(x, k, stride=1, padding="SAME")).sum()
        return jax.jacfwd(jax.grad(square))(kernel)

    assert_close(hessian(convolution), hessian(general), rtol=tolerance(jnp.float32, 200))


def test_every_convolution_in_a_loop_is_one_that_the_compiler_has_a_fast_program_for():
    x, kernel = arrays((2, 3, 8, 8, 4), (3, 3, 4, 4))
    form = functools.partial(convolution, implementation="direct")

    def loss(kernel, x):
        def step(x):
            y = jnp.tanh(form(jnp.tanh(form(x, kernel)), kernel))
            return jnp.square(form(y, kernel, stride=2)).sum()

        return lax.map(jax.checkpoint(lambda x: step(x)), x).sum()

    batch = lambda kernel, x: jax.vmap(loss, in_axes=(None, 0))(kernel, x).sum()
    text = str(jax.jit(jax.grad(batch)).lower(kernel, x[None]).compile().as_text())
    layouts = re.findall(r" convolution\(.*dim_labels=(\S+?)[, \n]", text)
    assert len(layouts) >= 3 + 2 + 3 and set(layouts) == {"b01f_01io->b01f"}
    assert "feature_group_count" not in text


@pytest.mark.parametrize("implementation", ["direct", "auto"])
def test_a_batch_sums_its_kernel_gradients_in_one_go(implementation):
    x, kernel = arrays((4, 1, 6, 6, 2), (3, 3, 2, 2))
    form = functools.partial(convolution, implementation=implementation)
    batch = lambda kernel: jax.vmap(lambda x: jnp.square(form(x, kernel)).sum())(x).mean()
    found = [
        (equation.primitive.name, equation.outvars[0].aval.shape)
        for equation in jax.make_jaxpr(jax.grad(batch))(kernel).jaxpr.eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    whole = {"direct": ("conv_general_dilated", (2, 3, 3, 2)), "auto": ("dot_general", (6, 6))}
    assert found == [whole[implementation]]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [((0, 0), (-3, 1)), ((-2, 3), (1, -1)), ((6, 5), (7, 4))])
def test_pads_may_be_negative_and_larger_than_the_kernel(padding, stride):
    check(*arrays((2, 7, 8, 3), (3, 4, 3, 4)), stride=stride, padding=padding)
