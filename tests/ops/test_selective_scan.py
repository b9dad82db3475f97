"""Every implementation of the selective scan against the definition: one class, run for each of them."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops import batch_map, device, selective_scan, selective_step
from slotzoo.ops.device import compiling_for_gpu
from tests.ops.scan_cases import CASES, KERNEL_CASES, answer, run
from tests.ops.test_compiled import KERNEL, h200, lowered, needs_plugin
from tests.tolerance import assert_close, tolerance


# Clips of one chunk are "chunked" as they are "associative": one longer clip runs both.
EVERY = [
    *((name, case) for name in ("reference", "sequential", "associative") for case in CASES),
    ("chunked", CASES[0]),
    ("auto", CASES[3]),
    # Pallas's interpreter takes seconds for each chunk of each program.
    *(pytest.param("pallas", case, marks=pytest.mark.slow) for case in KERNEL_CASES),
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
    rng = np.random.default_rng(0)
    shapes = [(time, channels), (time, channels), (channels, states), (time, states), (time, states)]
    u, delta, a, b, c = (rng.normal(size=shape) for shape in shapes)
    u, delta, b, c = (jnp.asarray(x, dtype) for x in (u, np.exp(delta), b, c))
    return u, delta, jnp.asarray(-np.exp(a), jnp.float32), b, c


def test_no_channels():
    arguments = arrays(channels=0)
    for name in ("auto", "chunked", "pallas"):
        y, state = selective_scan(*arguments, implementation=name)
        assert y.shape == (5, 0) and state.shape == (0, 3)


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

    def step(state, now):
        y, state = selective_step(*now[:2], a, *now[2:4], state, z=now[4], **options)
        return state, y

    @jax.jit
    def program():
        whole = selective_scan(u, delta, a, b, c, z=z, **options)
        return whole, jax.lax.scan(step, jnp.zeros((4, 3)), (u, delta, b, c, z))

    whole, (state, y) = program()
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    # The scan rounds once before the gate, too.
    assert_close(y.astype(jnp.float32), whole.y.astype(jnp.float32), rtol=2 * tolerance("bfloat16"))
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


@pytest.mark.skipif(compiling_for_gpu(), reason="the kernel runs on this platform")
def test_the_kernel_needs_a_gpu():
    with pytest.raises(ConfigError, match="cannot run: the platform is 'cpu'.*'auto' takes one that can"):
        selective_scan(*arrays(channels=128), implementation="pallas")


def test_the_kernel_says_why_it_cannot_run():
    run_here = functools.partial(selective_scan, implementation="pallas", interpret=True)
    with pytest.raises(ConfigError, match="cannot run: 4 channels are no multiple of 128"):
        run_here(*arrays())
    u, delta, a, b, c = arrays(channels=256)
    with pytest.raises(ConfigError, match="it takes float32 and bfloat16 with real rates, not float32 with"):
        run_here(u, delta, a.astype(jnp.complex64), b, c)
    with pytest.raises(ConfigError, match="B and C are not both variable in time with the same groups"):
        run_here(u, delta, a, b[:1], c)
    with pytest.raises(ConfigError, match="a group of 64 channels is no multiple of 128"):
        run_here(u, delta, a, *(jnp.tile(m[:, None], (1, 4, 1)) for m in (b, c)))
    with pytest.raises(ConfigError, match="it takes up to 128 states of each channel, not 130"):
        run_here(*arrays(channels=128, states=130))


def described(batch, time, channels, states, dtype=jnp.float32, groups=()):
    moving = jax.ShapeDtypeStruct((batch, time, channels), dtype)
    matrix = jax.ShapeDtypeStruct((batch, time, *groups, states), dtype)
    return moving, moving, jax.ShapeDtypeStruct((channels, states), jnp.float32), matrix, matrix


def gradients(**options):
    """A program with the scan's forward and backward passes in it."""
    scan = batch_map(functools.partial(selective_scan, **options), in_axes=(0, 0, None, 0, 0))
    return jax.grad(lambda *args: jnp.square(scan(*args)[0].astype(jnp.float32)).sum(), argnums=(0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    "sizes, options",
    [
        ((8, 1024, 512, 16), {}),
        ((2, 19, 256, 128), {"dtype": jnp.bfloat16, "groups": (2,)}),
    ],
    ids=["long", "odd length, bfloat16, many states, groups"],
)
def test_lowers_for_cuda(sizes, options):
    with h200():
        text = lowered(gradients(), *described(*sizes, **options))
    assert text.count(f"@{KERNEL}(") == 2, "one kernel forward, one backward"
    assert "stablehlo.while" not in text
    batch, time, channels, states = sizes
    for inner in (f"{time}x{channels}x{states}x", f"{time}x{states}x{channels}x"):
        assert f"{batch}x{inner}" not in text, "nothing of the size time x channel x state"


def test_exports_for_cuda_by_name():
    with h200():
        exported = jax.export.export(
            jax.jit(gradients(implementation="pallas")),
            platforms=["cuda"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(KERNEL)],
        )(*described(2, 8, 128, 16))
    assert exported.mlir_module().count(f"@{KERNEL}(") == 2


def test_is_per_device_under_a_mesh():
    """A batch over 4 devices: the kernel sees the 2 examples of its device, inside a shard_map."""
    with h200((4,), ("data",)):
        text = lowered(gradients(), *described(8, 16, 128, 16))
    calls = [line for line in text.splitlines() if f"@{KERNEL}(" in line]
    assert len(calls) == 2
    assert all("tensor<2x16x128xf32>" in line and "tensor<8x" not in line for line in calls)


def test_falls_back_where_the_kernel_does_not_fit(monkeypatch):
    with h200():
        assert KERNEL not in lowered(gradients(), *described(2, 100, 96, 16))
        # Too old, another maker's, and one with less shared memory than the kernel needs.
        for capability in (8.0, 0.0, 12.0):
            monkeypatch.setattr(device, "oldest_capability", lambda c=capability: c)
            assert KERNEL not in lowered(gradients(), *described(2, 100, 128, 16))


def test_a_cpu_program_has_no_kernel():
    args = described(2, 16, 128, 16)
    assert KERNEL not in jax.jit(gradients()).trace(*args).lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.slow
@needs_plugin
def test_compiled_for_an_h200():
    """Forward little more than u, delta and y; nothing is gathered over four data-parallel GPUs."""
    from experiments.benchmarks import selective_scan_compiled

    for row in selective_scan_compiled.rows(full=False):
        forward = row["program"] == "forward"
        assert row["mosaic"] == (1 if forward else 2), row
        assert row["all_gathers"] == 0, row
        # A short clip's first and last states are as large as u.
        bound = (3.3, 15.5) if row["time"] > 100 else (4.8, 22.5)
        assert row["units"] <= bound[0 if forward else 1], row
