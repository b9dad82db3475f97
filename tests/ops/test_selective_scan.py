"""Every implementation of the selective scan against the definition: one class, run for each of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ShapeError
from slotzoo.ops import selective_scan, selective_step
from slotzoo.ops.device import compiling_for_gpu
from tests.ops.scan_cases import CASES, KERNEL_CASES, answer, run
from tests.tolerance import assert_close, tolerance


IMPLEMENTATIONS = ("reference", "sequential", "associative", "chunked")
EVERY = [
    *((name, case) for name in IMPLEMENTATIONS for case in CASES),
    ("auto", CASES[0]),
    *(("pallas", case) for case in KERNEL_CASES),
]


@pytest.mark.parametrize("name, case", EVERY, ids=lambda x: getattr(x, "name", x))
def test_values_and_gradients(name, case):
    # On a GPU the kernel itself, elsewhere in Pallas's interpreter.
    interpret = name == "pallas" and not compiling_for_gpu()
    y, state, grads = run(case, functools.partial(selective_scan, implementation=name, interpret=interpret))
    expected, expected_state, expected_grads = answer(case)
    arguments, *_ = case.arguments()
    assert y.dtype == case.dtype and state.dtype == ("complex64" if case.complex else "float32")
    # Sums over time, states and channels; an exponential amplifies the rounding of its argument.
    bound = 2 * tolerance("float32", case.time * case.channels)
    narrow = max(bound, 2 * tolerance(case.dtype)) if case.dtype != "float32" else bound
    assert_close(y.astype(jnp.float32), expected, rtol=narrow, what="y")
    assert_close(state, expected_state, rtol=bound, what="last state")
    for key, value in expected_grads.items():
        grad = grads[key]
        assert grad.dtype == arguments[key].dtype
        grad = grad if jnp.iscomplexobj(grad) else grad.astype(jnp.float32)
        assert np.isfinite(np.asarray(grad)).all()
        assert_close(grad, value, rtol=narrow, what=f"cotangent of {key}")


def arrays(time=5, channels=4, states=3, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(time, channels), (time, channels), (channels, states), (time, states), (time, states)]
    u, delta, a, b, c = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    u, delta, b, c = (x.astype(dtype) for x in (u, jnp.exp(delta), b, c))
    return u, delta, -jnp.exp(a), b, c


def test_no_steps():
    u, delta, a, b, c = arrays(time=0)
    y, state = selective_scan(u, delta, a, b, c, initial_state=jnp.ones((4, 3)))
    assert y.shape == (0, 4)
    np.testing.assert_array_equal(state, 1.0)


def test_steps_are_the_scan():
    """In narrow precision too: the state in between is float32."""
    u, delta, a, b, c = arrays(dtype=jnp.bfloat16)
    options = {"D": jnp.ones(4), "delta_bias": jnp.ones(4), "delta_softplus": True}
    z = jnp.flip(u)
    whole = selective_scan(u, delta, a, b, c, z=z, **options)
    state = jnp.zeros((4, 3))
    for t in range(len(u)):
        y, state = selective_step(u[t], delta[t], a, b[t], c[t], state, z=z[t], **options)
        assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
        # The scan rounds once before the gate, too.
        bound = 2 * tolerance("bfloat16")
        assert_close(y.astype(jnp.float32), whole.y[t].astype(jnp.float32), rtol=bound)
    assert_close(state, whole.state, rtol=tolerance("float32", 5))


def test_a_constant_is_read_as_such_where_sizes_agree():
    """As many steps as channels: the axis of time decides."""
    u, delta, a, b, _ = arrays(time=4)
    constant = jax.random.normal(jax.random.key(1), (1, 4, 3))
    y = selective_scan(u, delta, a, b, constant).y
    np.testing.assert_allclose(y, selective_scan(u, delta, a, b, jnp.tile(constant, (4, 1, 1))).y, rtol=1e-5)


def test_the_gradient_keeps_states_of_chunks_only():
    u, delta, a, b, c = arrays(time=160, channels=8, states=4)
    for name in ("sequential", "chunked", "auto"):
        scan = functools.partial(selective_scan, implementation=name)
        kept = jax.eval_shape(lambda *args, f=scan: jax.vjp(f, *args)[1], u, delta, a, b, c)
        assert max(x.size for x in jax.tree.leaves(kept)) <= u.size
        text = jax.jit(lambda *args, f=scan: jax.vjp(f, *args)[1]).lower(u, delta, a, b, c).as_text()
        assert "160x4x8x" not in text and "160x8x4x" not in text


@pytest.mark.parametrize("b", [(5, 4, 2), (4, 3), (5, 3, 3), (5,)], ids=["states", "time", "groups", "rank"])
def test_wrong_shapes_are_one_sentence(b):
    u, delta, a, _, c = arrays()
    with pytest.raises(ShapeError, match=r"B has shape .*; for 5 steps of 4 channels with 3 states each"):
        selective_scan(u, delta, a, jnp.ones(b), c)


def test_complex_input_of_real_rates_is_one_sentence():
    u, delta, a, b, c = arrays()
    with pytest.raises(ShapeError, match="C is complex but A is real"):
        selective_scan(u, delta, a, b, c.astype(jnp.complex64))
