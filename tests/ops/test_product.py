import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.ops import product as module
from slotzoo.ops.product import product
from tests.tolerance import assert_close, tolerance


def arrays(*shapes, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("rows", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("sizes", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_is_a_product_of_matrices_with_its_gradients(rows, sizes, dtype):
    x, weight, dy = arrays((*rows, sizes[0]), sizes, (*rows, sizes[1]), dtype=dtype)
    actual, pull = jax.vjp(product, x, weight)
    expected, pull_plain = jax.vjp(jnp.matmul, x, weight)
    for name, a, b in zip(("y", "dx", "dw"), (actual, *pull(dy)), (expected, *pull_plain(dy)), strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, rtol=tolerance(dtype, 24), what=name)


@pytest.mark.parametrize("axes", [(0, None), (1, None), (2, None), (None, 0), (0, 2)])
def test_a_batch_may_be_on_any_axis(axes):
    shapes = [(2, 5), (5, 4)]
    shapes = [s if a is None else (*s[:a], 3, *s[a:]) for s, a in zip(shapes, axes, strict=True)]
    x, weight = arrays(*shapes)
    actual = jax.vmap(product, in_axes=axes)(x, weight)
    assert_close(
        actual, jax.vmap(jnp.matmul, in_axes=axes)(x, weight), rtol=tolerance(jnp.float32, 5), what="y"
    )


def test_it_differentiates_forwards_and_twice():
    x, weight = arrays((3, 4), (4, 2))
    value = lambda f: lambda x, weight: jnp.sum(jnp.sin(f(x, weight)))
    for mode in (jax.jacfwd, lambda f, n: jax.hessian(f, n)):
        found, wanted = (mode(value(f), (0, 1))(x, weight) for f in (product, jnp.matmul))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert_close(a, b, rtol=tolerance(jnp.float32, 24), what="derivative")


@pytest.mark.parametrize("sizes", [(3, 7), (7, 3)])
@pytest.mark.parametrize("least", [2 * 5 * 4 * 21, 2 * 5 * 4 * 21 + 1])
def test_examples_share_one_product_for_the_gradient_whose_narrower_factor_is_turned(sizes, least, monkeypatch):
    """Unless it is a small one, where nothing is turned."""
    monkeypatch.setattr(module, "LEAST", least)
    frames, weight = arrays((2, 5, 4, sizes[0]), sizes)
    loss = lambda weight: jax.vmap(jax.vmap(lambda x: product(x, weight).sum()))(frames).sum()
    text = str(jax.make_jaxpr(jax.grad(loss))(weight))
    products = [line.split("=")[0] for line in text.splitlines() if "dot_general" in line]
    turns = least == 2 * 5 * 4 * 21
    assert len(products) == 1 and ("f32[3,7]" if turns else f"f32[{sizes[0]},{sizes[1]}]") in products[0]
    assert ("f32[3,40]" in text) == turns and "f32[7,40]" not in text
