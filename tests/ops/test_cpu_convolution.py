import functools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings, strategies as st

from slotzoo.errors import ConfigError
from slotzoo.ops import cpu_convolution
from slotzoo.ops.convolution import convolution
from tests.ops.test_convolution import arrays, general
from tests.tolerance import assert_close, tolerance


def of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@settings(max_examples=5, deadline=None)
@given(
    images=st.integers(1, 4),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    sides=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    pads=st.tuples(*[st.integers(1, 4)] * 4),
    channels=st.sampled_from([(1, 6), (6, 1), (4, 5)]),
    at_once=st.sampled_from([1, 600, 2**21]),
)
def test_each_form_is_xlas_convolution_or_its_kernels_gradient(
    images, height, width, sides, pads, channels, at_once
):
    padding = (pads[:2], pads[2:])
    x, kernel = arrays((images, height, width, channels[0]), (*sides, *channels))
    y, pull = jax.vjp(functools.partial(general, stride=1, padding=padding), x, kernel)
    dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    terms = max(kernel.size, x.size)
    for form in (cpu_convolution.on_all_cores, cpu_convolution.narrow):
        assert_close(form(x, kernel, padding), y, rtol=tolerance(x.dtype, terms), what=form.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_convolution, "AT_ONCE", at_once)
        found = cpu_convolution.kernel_gradient(x, dy, sides, padding)
    assert_close(found, pull(dy)[1], rtol=tolerance(x.dtype, terms))


@pytest.mark.parametrize(
    ("channels", "columns"), [((3, 40), 9 * 3 + 40), ((40, 3), 40 + 9 * 3), ((20, 30), 150)]
)
def test_a_kernels_gradient_writes_down_as_little_as_it_can(channels, columns):
    x, kernel = of(2, 8, 8, channels[0]), of(3, 3, *channels)
    gradient = jax.make_jaxpr(jax.grad(lambda kernel, x: convolution(x, kernel).sum()))(kernel, x)
    (product,) = [e for e in gradient.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert sum(v.aval.shape[1] for v in product.invars) == columns  # pyright: ignore[reportAttributeAccessIssue]


def lowered(x, kernel, platform="cpu", **options):
    traced = jax.jit(functools.partial(convolution, **options)).trace(x, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_auto_takes_each_where_it_was_measured_to_be_faster():
    # One more row of zeros below than the kernel needs.
    more = lambda text: "pad = [[1, 2], [1, 1]]" in text
    assert more(lowered(of(8, 16, 16, 16), of(3, 3, 16, 32)))
    for x, kernel, options in [
        (of(1, 4, 4, 16), of(3, 3, 16, 32), {}),
        (of(8, 16, 16, 16), of(3, 3, 16, 16), {}),
        (of(8, 16, 16, 64), of(3, 3, 64, 128), {"implementation": "direct"}),
        (of(8, 16, 16, 16), of(3, 3, 16, 32), {"platform": "tpu"}),
        (of(8, 16, 16, 16, dtype=jnp.bfloat16), of(3, 3, 16, 32, dtype=jnp.bfloat16), {}),
    ]:
        text = lowered(x, kernel, **options)
        assert text.count("stablehlo.convolution") == 1 and not more(text)
    few = lowered(of(2, 16, 16, 64), of(3, 3, 64, 4))
    assert "stablehlo.convolution" not in few and few.count("stablehlo.dot_general") == 1


def test_narrow_says_what_it_cannot_do():
    x, kernel = arrays((1, 8, 8, 2), (3, 3, 2, 2))
    with pytest.raises(ConfigError, match="is for stride 1, got 2"):
        convolution(x, kernel, stride=2, implementation="narrow")
