"""Every implementation of the linear scan against the definition: one class, run for each of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops import linear_scan
from slotzoo.ops.device import compiling_for_gpu
from tests.ops.cases import CASES, answer, run
from tests.tolerance import assert_close, tolerance


IMPLEMENTATIONS = {
    name: functools.partial(linear_scan, implementation=name)
    for name in ("reference", "sequential", "associative", "auto")
}


def kernel(*args, **options):
    """On a GPU the kernel itself, elsewhere in Pallas's interpreter (see test_compiled.py for what that misses)."""
    interpret = not compiling_for_gpu()
    return linear_scan(*args, **options, implementation="pallas", interpret=interpret)


IMPLEMENTATIONS["pallas"] = kernel


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
class TestEveryImplementation:
    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_values_and_gradients(self, name, case):
        x, grads = run(case, IMPLEMENTATIONS[name])
        expected, expected_grads = answer(case)
        assert x.dtype == case.dtype
        bound = 2 * tolerance(case.dtype, case.time)
        assert_close(x.astype(jnp.float32), expected, rtol=bound, what="x")
        for key, value in expected_grads.items():
            assert grads[key].dtype == (case.dtype if key == "u" else "float32")
            assert np.isfinite(np.asarray(grads[key], np.float32)).all()
            assert_close(grads[key].astype(jnp.float32), value, rtol=bound, what=f"cotangent of {key}")


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)], ids=["steps", "rows", "channels"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_nothing_to_scan(name, shape):
    a, u = jnp.ones(shape[-1]), jnp.zeros(shape)
    da, du = jax.grad(lambda a, u: IMPLEMENTATIONS[name](a, u).sum(), argnums=(0, 1))(a, u)
    assert IMPLEMENTATIONS[name](a, u).shape == du.shape == shape
    assert not da.any()


def test_space_may_be_missing_or_deep():
    a = jnp.full((2,), 0.5)
    flat = linear_scan(a, jnp.ones((3, 2)))
    deep = linear_scan(a, jnp.ones((3, 1, 2, 1, 2)))
    np.testing.assert_allclose(flat[:, 0], [1.0, 1.5, 1.75])
    np.testing.assert_allclose(deep, np.broadcast_to(flat[:, None, None, None], deep.shape))


def test_state_stays_float32_between_bfloat16_steps():
    # 1 + 1/1000 is 1 in bfloat16: a state kept in it would never move away from 1.
    u = jnp.concatenate([jnp.ones((1, 1)), jnp.full((1000, 1), 1e-3)]).astype(jnp.bfloat16)
    x = linear_scan(jnp.ones(1), u)
    np.testing.assert_allclose(float(x[-1, 0]), 2.0, rtol=1e-2)


@pytest.mark.parametrize(
    "shape", [(4,), (5, 1, 3), (4, 1, 1, 3), (5, 3, 1, 3)], ids=["channel", "rank", "time", "space"]
)
def test_wrong_decay_is_one_sentence(shape):
    with pytest.raises(ShapeError, match=r"a has shape .*; for u of shape \(5, 2, 2, 3\) it is \(3,\), or"):
        linear_scan(jnp.ones(shape), jnp.ones((5, 2, 2, 3)))


def test_odd_last_axis_of_planes_is_one_sentence():
    with pytest.raises(ShapeError, match=r"needs an even last axis"):
        linear_scan(jnp.ones(3), jnp.ones((5, 3)), planes="complex")


@pytest.mark.skipif(compiling_for_gpu(), reason="the kernel runs on this platform")
def test_kernel_needs_a_gpu():
    with pytest.raises(ConfigError, match=r"cannot run: the platform is 'cpu'.*'auto' takes one that can"):
        linear_scan(jnp.ones(128), jnp.ones((5, 1, 128)), implementation="pallas")


def test_kernel_says_why_it_cannot_run():
    with pytest.raises(ConfigError, match=r"cannot run: 3 rows of 5 channels cannot be cut into tiles"):
        linear_scan(jnp.ones(5), jnp.ones((5, 3, 5)), implementation="pallas", interpret=True)
    with pytest.raises(ConfigError, match=r"cannot run: it takes float32 and bfloat16, not float16"):
        half = jnp.ones((5, 1, 128), jnp.float16)
        linear_scan(jnp.ones(128), half, implementation="pallas", interpret=True)


def test_no_time_axis_is_transposed_under_vmap():
    """The loop of a CPU reads its batch where it lies: no transposed copy of it."""
    a, u = jnp.full((4,), 0.5), jnp.ones((3, 50, 2, 4))
    text = jax.jit(jax.vmap(functools.partial(linear_scan, a))).lower(u).as_text()
    assert "stablehlo.while" in text
    assert "stablehlo.transpose" not in text


def test_remat_keeps_the_named_output():
    """The forward scan is not run again where a policy keeps its output by name."""
    a, u = jnp.full((4,), 0.5), jnp.ones((3, 2, 4))

    def loss(a, u):
        return jnp.sin(linear_scan(a, u)).sum()

    def loops(policy):
        lowered = jax.jit(jax.value_and_grad(jax.checkpoint(loss, policy=policy))).lower(a, u)
        return lowered.as_text().count("stablehlo.while")

    assert loops(jax.checkpoint_policies.nothing_saveable) == 3
    assert loops(jax.checkpoint_policies.save_only_these_names("linear_scan")) == 2
