import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax import lax

from slotzoo.errors import ConfigError
from slotzoo.ops.convolution import convolution
from slotzoo.ops.short_convolution import POINTS, RESULTS, matrices
from tests.ops.test_convolution import arrays, general
from tests.tolerance import assert_close


# Of a result's size: some ten times the rounding errors of the direct sum, see `convolution`.
CLOSE = 2e-5

short = functools.partial(convolution, implementation="short")
direct = functools.partial(convolution, implementation="direct")


@pytest.mark.parametrize("taps", POINTS)
def test_sums_of_products_at_the_points_are_a_convolution(taps):
    out, gather, spread = (m.astype(np.float64) for m in matrices(taps))
    found = np.einsum("ip,pk,pj->ikj", out, gather, spread)
    wanted = [[[j == i + k for j in range(RESULTS + taps - 1)] for k in range(taps)] for i in range(RESULTS)]
    np.testing.assert_allclose(found, np.array(wanted, float), atol=2e-6)


@settings(max_examples=4, deadline=None)
@given(
    images=st.integers(1, 5),
    height=st.integers(1, 7),
    width=st.integers(1, 11),
    rows=st.sampled_from([1, 2, 3, 5]),
    taps=st.sampled_from([3, 5]),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    at_once=st.sampled_from([1, 400, 2**20]),
    gradient_at_once=st.sampled_from([1, 2 * 64 * 4 * 7, 2**22]),
)
def test_it_is_the_direct_form_with_its_gradients(
    images, height, width, rows, taps, pads, at_once, gradient_at_once
):
    pads = ((pads[0] + rows - 1, pads[1]), (pads[2] + taps - 1, pads[3]))
    x, kernel = arrays((images, height, width, 3), (rows, taps, 3, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slotzoo.ops.short_convolution.AT_ONCE", at_once)
        patch.setattr("slotzoo.ops.short_gradient.AT_ONCE", gradient_at_once)
        found, pull = jax.vjp(jax.jit(functools.partial(short, padding=pads)), x, kernel)
        wanted, pull_general = jax.vjp(functools.partial(general, stride=1, padding=pads), x, kernel)
        dy = jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)
        for name, a, b in zip(
            ("y", "dx", "dkernel"), (found, *pull(dy)), (wanted, *pull_general(dy)), strict=True
        ):
            assert_close(a, b, rtol=CLOSE, what=name)


def test_it_works_mapped_in_loops_and_recomputed_forwards_and_backwards():
    x, kernel = arrays((2, 3, 4, 6, 3), (3, 5, 3, 3))

    def loss(form, kernel, x):
        step = jax.checkpoint(lambda y, x: (form(y, kernel), jnp.square(x).sum()))
        y, _ = lax.scan(step, x[:1], jnp.arange(2.0))
        return jnp.square(jax.vmap(lambda x: form(x[None], kernel))(x) + y[None]).sum()

    def along(form):
        batch = lambda kernel: jax.vmap(lambda x: loss(form, kernel, x))(x).sum()
        return jax.jvp(jax.grad(batch), (kernel,), (jnp.cos(kernel),))

    for found, wanted in zip(jax.jit(lambda: along(short))(), jax.jit(lambda: along(direct))(), strict=True):
        assert_close(found, wanted, rtol=CLOSE)


def convolutions(x, kernel, platform="cpu", **options):
    """How many there are in the program for a platform."""
    traced = jax.jit(functools.partial(convolution, **options)).trace(x, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution")


def test_auto_takes_it_where_it_was_measured_to_be_faster():
    image = lambda side, channels, dtype=jnp.float32: jax.ShapeDtypeStruct((128, side, side, channels), dtype)
    taps = lambda side, *channels, dtype=jnp.float32: jax.ShapeDtypeStruct((side, side, *channels), dtype)
    assert convolutions(image(16, 64), taps(5, 64, 64)) == 8
    assert convolutions(image(32, 64), taps(3, 64, 64)) == 6
    cases: list[tuple[Any, Any, dict[str, Any]]] = [
        (image(16, 3), taps(5, 3, 64), {}),
        (image(16, 32), taps(3, 32, 32), {}),
        (image(32, 64), taps(3, 64, 256), {}),
        (image(8, 64), taps(5, 64, 64), {}),
        (image(16, 64), taps(4, 64, 64), {}),
        (image(16, 64), taps(5, 64, 64), {"stride": 2}),
        (image(16, 64), taps(5, 64, 64), {"implementation": "direct"}),
        (image(16, 64), taps(5, 64, 64), {"platform": "tpu"}),
        (image(16, 64, jnp.bfloat16), taps(5, 64, 64, dtype=jnp.bfloat16), {}),
    ]
    for x, kernel, options in cases:
        assert convolutions(x, kernel, **options) == 1


def test_the_input_gradient_takes_it_too():
    x, kernel = (
        jax.ShapeDtypeStruct((128, 16, 16, 64), jnp.float32),
        jax.ShapeDtypeStruct((5, 5, 64, 64), jnp.float32),
    )
    gradient = jax.jit(jax.grad(lambda x, kernel: convolution(x, kernel).sum()))
    assert gradient.lower(x, kernel).as_text().count("stablehlo.convolution") == 8


@pytest.mark.parametrize(
    ("side", "sides", "channels", "points"),
    [
        (16, (5, 5), (64, 64), 64),
        (32, (3, 5), (64, 64), 48),
        (32, (3, 3), (64, 256), 36),
        (16, (5, 5), (64, 16), None),
        (8, (5, 5), (64, 64), None),
        (16, (1, 5), (256, 256), None),
    ],
)
def test_a_kernels_gradient_takes_its_own_where_products_are_many(side, sides, channels, points):
    x = jax.ShapeDtypeStruct((128, side, side, channels[0]), jnp.float32)
    kernel = jax.ShapeDtypeStruct((*sides, *channels), jnp.float32)
    gradient = jax.jit(jax.grad(lambda kernel, x: convolution(x, kernel).sum()))
    batched = "batching_dims = [0] x [0], contracting_dims = [1] x [1]"
    text = gradient.lower(kernel, x).as_text()
    assert (f"tensor<{points}x{channels[0]}x{channels[1]}xf32>" in text and batched in text) == bool(points)


@pytest.mark.parametrize(("images", "programs"), [(14, 1), (13, 2)])
def test_a_remainder_is_compiled_only_where_no_divisor_is_near(images, programs, monkeypatch):
    monkeypatch.setattr("slotzoo.ops.short_convolution.AT_ONCE", 8 * 6 * 6 * 4)
    shapes = (images, 6, 6, 4), (3, 3, 4, 4)
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    assert convolutions(x, kernel, implementation="short") == 6 * programs


def test_images_spread_over_devices_are_convolved_where_they_are():
    x, kernel = (
        jax.ShapeDtypeStruct((128, 16, 16, 64), jnp.float32),
        jax.ShapeDtypeStruct((5, 5, 64, 64), jnp.float32),
    )
    with jax.set_mesh(jax.make_mesh((4,), ("data",))):
        assert convolutions(x, kernel) == 1


def test_it_says_what_it_cannot_do():
    x, kernel = arrays((1, 8, 8, 2), (3, 4, 2, 2))
    with pytest.raises(ConfigError, match="3 or 5 wide and stride 1, got width 4 and stride 1"):
        short(x, kernel)
    with pytest.raises(ConfigError, match="got width 3 and stride 2"):
        short(x, kernel[:, :3], stride=2)
