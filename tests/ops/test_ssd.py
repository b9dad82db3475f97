"""Every implementation of the state-space dual against the recurrence, one step after the other."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops import ssd, ssd_step
from tests.tolerance import assert_close, tolerance


CHUNKED = ("chunked", "associative")
# time, heads, dim, groups, state, chunk
ODD = (11, 4, 3, 2, 5, 4)
ONE_CHUNK = (6, 2, 3, 1, 4, None)


def arguments(sizes, *, full: bool, dtype=jnp.float32, batch: int | None = None):
    """x, dt, B, C, and in `full` the gate and the initial state; A, D and the bias, which a batch has in common."""
    time, heads, dim, groups, state, _ = sizes
    rng = np.random.default_rng(time)
    lead = () if batch is None else (batch,)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=(*lead, *shape)), dtype)

    moving = {"x": normal(time, heads, dim), "dt": normal(time, heads)}
    moving |= {"B": normal(time, groups, state), "C": normal(time, groups, state)}
    if full:
        moving["z"] = normal(time, heads, dim)
        moving["initial_state"] = normal(heads, dim, state).astype(jnp.float32)
    shared = {
        "A": jnp.asarray(-np.exp(rng.uniform(-1, 2, heads)), jnp.float32),
        "D": jnp.asarray(rng.normal(size=(heads, dim) if full else heads), jnp.float32),
        "dt_bias": jnp.asarray(rng.normal(size=heads), jnp.float32),
    }
    return moving, shared


def run(implementation, sizes, moving, shared, **options):
    """y and the last state, and the gradients of a loss over both."""

    def one(moving, shared):
        args, rest = dict(moving), dict(shared)
        first = [args.pop("x"), args.pop("dt"), rest.pop("A"), args.pop("B"), args.pop("C")]
        form = {"chunk": sizes[-1], "implementation": implementation, "dt_softplus": True}
        return ssd(*first, **args, **rest, **(form | options))

    def loss(moving, shared):
        batched = moving["x"].ndim == 4
        out = jax.vmap(one, in_axes=(0, None))(moving, shared) if batched else one(moving, shared)
        wave = lambda v: (
            v.astype(jnp.float32) * jnp.cos(jnp.arange(v.size, dtype=jnp.float32)).reshape(v.shape)
        ).sum()
        return wave(out.y) + wave(out.state), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(moving, shared)
    return out, grads[0] | grads[1]


@pytest.mark.parametrize(
    "name, sizes, options",
    [
        ("chunked", ODD, {"full": True, "batch": 2}),
        ("associative", ODD, {"full": True, "batch": 2}),
        ("auto", ONE_CHUNK, {"full": False}),
    ],
    ids=["chunked, all options", "associative, all options", "one chunk from zeros"],
)
def test_values_and_gradients(name, sizes, options):
    """Of the recurrence under plain differentiation; the recorded cases of Mamba check that one too."""
    moving, shared = arguments(sizes, **options)
    limits = {"dt_limit": (0.05, 2.0)} if options["full"] else {}
    out, grads = run(name, sizes, moving, shared, **limits)
    expected, expected_grads = run("reference", sizes, moving, shared, **limits)
    bound = 4 * tolerance("float32", math.prod(sizes[:3]))
    assert_close(out.y, expected.y, rtol=bound, what="y")
    assert_close(out.state, expected.state, rtol=bound, what="last state")
    assert grads.keys() == expected_grads.keys()
    for key, value in expected_grads.items():
        assert_close(grads[key], value, rtol=bound, what=f"gradient of {key}")


@pytest.mark.parametrize("name", ["chunked", "associative", "reference"])
def test_small_decays_behind_a_step_that_forgets_everything(name):
    """Against float64: sums of logarithms up to each step must not round the small ones away."""
    time = 64
    dt = np.full((time, 1), 1e-3)
    dt[::9] = 800.0
    x, b, c = (np.random.default_rng(i).normal(size=(time, 1, 3)) for i in range(3))
    state, expected = np.zeros((3, 3)), []
    for t in range(time):
        state = math.exp(-5.0 * dt[t, 0]) * state + dt[t, 0] * np.outer(x[t, 0], b[t, 0])
        # In units of the last large step, so that the small ones count.
        expected.append(state @ c[t, 0])
    args = [jnp.asarray(v, jnp.float32) for v in (x, dt)]
    rest = [jnp.asarray(v, jnp.float32) for v in (b, c)]
    scan = jax.jit(functools.partial(ssd, implementation=name, chunk=32))
    y = scan(*args, jnp.full(1, -5.0), *rest).y[:, 0]
    small = np.asarray(dt[:, 0] < 1)
    np.testing.assert_allclose(np.asarray(y)[small], np.asarray(expected)[small], rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("name", CHUNKED)
def test_gradients_are_finite_in_bfloat16_at_extreme_decay(name):
    moving, shared = arguments(ODD, full=True, dtype=jnp.bfloat16)
    moving["dt"] = moving["dt"].at[::2].set(1e4).at[1::3].set(-1e4)
    shared["A"] = shared["A"].at[0].set(-1e6).at[1].set(-1e-9)
    out, grads = run(name, ODD, moving, shared)
    assert out.y.dtype == jnp.bfloat16 and out.state.dtype == jnp.float32
    for key, grad in grads.items():
        assert np.isfinite(np.asarray(grad, np.float32)).all(), key


def test_bfloat16_is_near_the_recurrence():
    moving, shared = arguments(ODD, full=False, dtype=jnp.bfloat16)
    args = (moving["x"], jnp.abs(moving["dt"]), shared["A"], moving["B"], moving["C"])
    forms = [functools.partial(ssd, chunk=4, implementation=name) for name in ("chunked", "reference")]
    out, expected = jax.jit(lambda *args: [form(*args) for form in forms])(*args)
    # Operands of products are rounded once more each.
    bound = 4 * tolerance("bfloat16")
    assert_close(out.y.astype(jnp.float32), expected.y.astype(jnp.float32), rtol=bound)
    assert_close(out.state, expected.state, rtol=bound)


def test_steps_and_pieces_are_the_whole():
    moving, shared = arguments(ODD, full=True)
    x, dt, b, c, z, state = (moving[k] for k in ("x", "dt", "B", "C", "z", "initial_state"))
    options = {"D": shared["D"], "dt_bias": shared["dt_bias"], "dt_softplus": True, "dt_limit": (0.05, 2.0)}
    scan = functools.partial(ssd, A=shared["A"], **options)

    def step(state, now):
        y, state = ssd_step(*now[:2], shared["A"], *now[2:4], state, z=now[4], **options)
        return state, y

    @jax.jit
    def program():
        whole = scan(x=x, dt=dt, B=b, C=c, z=z, initial_state=state)
        first = scan(x=x[:4], dt=dt[:4], B=b[:4], C=c[:4], z=z[:4], initial_state=state)
        second = scan(x=x[4:], dt=dt[4:], B=b[4:], C=c[4:], z=z[4:], initial_state=first.state)
        last, y = jax.lax.scan(step, state, (x, dt, b, c, z))
        return whole, (jnp.concatenate([first.y, second.y]), second.state), (y, last)

    whole, *others = program()
    for y, last in others:
        assert_close(y, whole.y, rtol=tolerance("float32", 64))
        assert_close(last, whole.state, rtol=tolerance("float32", 64))


def test_no_steps():
    moving, shared = arguments(ONE_CHUNK, full=False)
    empty = {k: v[:0] for k, v in moving.items()}
    y, state = ssd(empty["x"], empty["dt"], shared["A"], empty["B"], empty["C"])
    assert y.shape == (0, 2, 3) and state.shape == (2, 3, 4) and not state.any()


def test_a_long_clip_keeps_states_of_chunks_only():
    sizes = (256, 2, 4, 1, 8, 32)
    moving, shared = arguments(sizes, full=False)
    args = (moving["x"], moving["dt"], shared["A"], moving["B"], moving["C"])
    scan = functools.partial(ssd, chunk=32, implementation="chunked")
    kept = jax.eval_shape(lambda *args: jax.vjp(scan, *args)[1], *args)
    assert max(x.size for x in jax.tree.leaves(kept)) <= 256 * 8


def test_wrong_arguments_are_one_sentence():
    moving, shared = arguments(ONE_CHUNK, full=False)
    x, dt, b, c = (moving[k] for k in ("x", "dt", "B", "C"))
    with pytest.raises(ShapeError, match=r"for 6 steps of 2 heads both are \(6, group, state\)"):
        ssd(x, dt, shared["A"], jnp.tile(b, (1, 3, 1)), jnp.tile(c, (1, 3, 1)))
    with pytest.raises(ConfigError, match=r"ssd\(chunk=0\) must be 1 or more"):
        ssd(x, dt, shared["A"], b, c, chunk=0)
