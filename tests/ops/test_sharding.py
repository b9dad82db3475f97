"""The scan on sharded arrays: each device works on its own part of the batch, or of time."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops import batch_map, linear_scan, sequence_parallel_scan


COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


def mesh_of(shape, names):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def collectives(compiled) -> dict[str, int]:
    """How many of each there are. Counts starts of asynchronous ones too, not their ends."""
    text = compiled.as_text()
    return {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}


@pytest.fixture
def example(key):
    keys = jax.random.split(key, 3)
    a = jax.random.uniform(keys[0], (8,), minval=-0.7, maxval=0.7)
    return a, jax.random.normal(keys[1], (8, 6, 2, 8)), jax.random.normal(keys[2], (8, 2, 8))


def loss(a, u, x0, *, implementation="auto"):
    scan = functools.partial(linear_scan, planes="complex", implementation=implementation)
    return jnp.sin(batch_map(scan, in_axes=(None, 0, 0))(a, u, x0)).sum()


@pytest.mark.parametrize("implementation", ["auto", "associative"])
def test_a_sharded_batch_is_never_gathered(example, implementation):
    a, u, x0 = example
    fn = jax.value_and_grad(functools.partial(loss, implementation=implementation), argnums=(0, 1, 2))
    expected = fn(a, u, x0)
    mesh = mesh_of((4, 1), ("data", "model"))
    with jax.set_mesh(mesh):
        args = (jax.device_put(a, NamedSharding(mesh, P())),)
        args += tuple(jax.device_put(v, NamedSharding(mesh, P("data"))) for v in (u, x0))
        compiled = jax.jit(fn).lower(*args).compile()
        found = compiled(*args)
    # What is left is the sum over devices of the loss and of the cotangent of the decay.
    counts = collectives(compiled)
    assert counts.pop("all-reduce") >= 1
    assert not any(counts.values()), counts
    assert found[1][1].sharding.spec == P("data")
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_batch_that_the_devices_do_not_divide(example):
    a, u, x0 = (v[:6] if v.ndim > 1 else v for v in example)
    expected = loss(a, u, x0)
    with jax.set_mesh(mesh_of((4,), ("data",))):
        np.testing.assert_allclose(jax.jit(loss)(a, u, x0), expected, rtol=1e-5)


def test_batch_map_is_vmap_without_a_mesh():
    out = batch_map(lambda x, y: x * y, in_axes=(0, None))(jnp.arange(3.0), jnp.float32(2))
    np.testing.assert_allclose(out, [0.0, 2.0, 4.0])


@pytest.mark.parametrize("in_axes", [0, (0, None), ({"x": 0, "y": None}, 0)], ids=str)
def test_batch_map_takes_what_vmap_takes(in_axes):
    tree = {"x": jnp.arange(8.0), "y": jnp.arange(8.0)}
    fn = lambda tree, z: jnp.sum(tree["x"]) + jnp.sum(tree["y"]) * jnp.sum(z)
    expected = jax.vmap(fn, in_axes=in_axes)(tree, jnp.ones(8))
    with jax.set_mesh(mesh_of((4,), ("data",))):
        np.testing.assert_allclose(batch_map(fn, in_axes=in_axes)(tree, jnp.ones(8)), expected)


def test_inside_a_shard_map_of_the_caller(example):
    """A caller that is per device already gets the bare op."""
    a, u, x0 = example
    with jax.set_mesh(mesh_of((4,), ("data",))):
        mapped = jax.shard_map(
            lambda u: jax.vmap(functools.partial(linear_scan, a))(u),
            in_specs=P("data"),
            out_specs=P("data"),
            check_vma=False,
        )
        found = jax.jit(mapped)(u)
    np.testing.assert_allclose(found, jax.vmap(functools.partial(linear_scan, a))(u), rtol=1e-6)


CASES = {
    "constant": {},
    "varying": {"varying": True},
    "reverse with resets": {"reverse": True, "reset": (8,)},
    "resets per place": {"reset": (8, 3)},
    "narrow initial state": {"narrow": True},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_time_split_over_devices(key, case):
    keys = jax.random.split(key, 4)
    a = jax.random.uniform(keys[0], (8, 3, 4) if case.get("varying") else (4,), minval=-0.8, maxval=0.8)
    u, x0 = jax.random.normal(keys[1], (8, 3, 4)), jax.random.normal(keys[2], (3, 4))
    x0 = x0.astype(jnp.bfloat16) if case.get("narrow") else x0
    reset = jax.random.uniform(keys[3], case["reset"]) < 0.2 if "reset" in case else None
    options = {"planes": "complex", "reverse": case.get("reverse", False)}

    def total(scan, a, u, x0):
        return jnp.sin(scan(a, u, x0, reset=reset, **options)).sum()

    with_gradients = lambda scan: jax.value_and_grad(functools.partial(total, scan), argnums=(0, 1, 2))
    expected = with_gradients(linear_scan)(a, u, x0)
    with jax.set_mesh(mesh_of((4,), ("time",))):
        split = functools.partial(sequence_parallel_scan, axis="time")
        found = jax.jit(with_gradients(split))(a, u, x0)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # A gradient in bfloat16 may fall on the other side of a border between two of its numbers.
        rtol = 2e-5 if got.dtype == jnp.float32 else 8e-3
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), rtol=rtol, atol=2e-6)


def test_only_carries_travel_between_stretches_of_time(key):
    u = jax.random.normal(key, (64, 3, 4))
    mesh = mesh_of((4,), ("time",))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(u, NamedSharding(mesh, P("time")))
        fn = jax.jit(functools.partial(sequence_parallel_scan, jnp.full(4, 0.5), axis="time"))
        compiled = fn.lower(sharded).compile()
    # One exchange, of (A_d, e_d): none of what is gathered has a time axis of 64 steps, and nothing else moves.
    counts = collectives(compiled)
    assert 1 <= counts["all-gather"] + counts["all-reduce"] <= 2, counts
    assert counts["all-to-all"] == counts["collective-permute"] == 0, counts
    assert not re.search(r"f32\[64,[^=]*all-gather", compiled.as_text())
    assert compiled(sharded).sharding.spec == P("time")


def test_time_split_says_what_is_wrong():
    u = jnp.ones((6, 4))
    with pytest.raises(ConfigError, match=r"the ambient mesh has the axes \(\)"):
        sequence_parallel_scan(jnp.ones(4), u, axis="time")
    with jax.set_mesh(mesh_of((4,), ("time",))):
        with pytest.raises(ShapeError, match=r"6 time steps cannot be split evenly over the 4 devices"):
            sequence_parallel_scan(jnp.ones(4), u, axis="time")
