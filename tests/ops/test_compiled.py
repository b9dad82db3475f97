"""What a GPU's compiler makes of the scan, on a machine without a GPU.

Lowering for CUDA is asserted everywhere: the kernel is in the program, forward and backward, with no fallback
beside it. Where the CUDA plugin is installed, the program is also compiled for an H200 and its bytes are counted.
"""

import functools
import math
import types

import jax
import jax.export
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from experiments.benchmarks import convs5_compiled, h200 as compiling, linear_scan_compiled
from experiments.benchmarks.traffic import traffic
from slotzoo.errors import ConfigError
from slotzoo.ops import batch_map, device, linear_scan
from slotzoo.ops.linear_scan import pallas_gpu


try:
    from jax.sharding import AbstractDevice
except ImportError:  # not public before jax 0.11
    from jax._src.mesh import AbstractDevice

KERNEL = "mosaic_gpu_v2"


def h200(shape=(), names=()):
    described = AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    types = (AxisType.Auto,) * len(names)
    return jax.sharding.use_abstract_mesh(AbstractMesh(shape, names, types, abstract_device=described))


def lowered(fn, *args) -> str:
    return jax.jit(fn).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def gradients(scan, batch: bool = False):
    """A program with the scan's forward and backward passes in it."""
    mapped = batch_map(scan, in_axes=(None, 0)) if batch else scan
    return jax.grad(lambda a, u: jnp.square(mapped(a, u).astype(jnp.float32)).sum(), argnums=(0, 1))


def decay(kind: str, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    time, *space, channel = shape
    shapes = {
        "constant": (channel,),
        "shared by rows": (time, *(1 for _ in space), channel),
        "one per row": shape,
    }
    return jax.ShapeDtypeStruct(shapes[kind], dtype if kind == "one per row" else jnp.float32)


SHAPES = {
    "wide": ((7, 2, 2, 512), "complex", jnp.float32),
    "narrow rows in one tile": ((5, 16, 32), "complex", jnp.bfloat16),
    "one step": ((1, 2, 128), "real", jnp.float32),
    "channels that are no power of two": ((5, 16, 96), "real", jnp.float32),
}


@pytest.mark.parametrize("kind", ["constant", "shared by rows", "one per row"])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPES)
def test_lowers_for_cuda(shape, kind):
    shape, planes, dtype = SHAPES[shape]
    with h200():
        a, u = decay(kind, shape, dtype), jax.ShapeDtypeStruct(shape, dtype)
        text = lowered(gradients(functools.partial(linear_scan, planes=planes)), a, u)
    assert text.count(f"@{KERNEL}(") == 2, "one kernel forward, one backward"
    assert "stablehlo.while" not in text


def test_lowers_for_cuda_with_a_narrower_decay():
    """Four channels in float32 are the 16 bytes that can be copied at once; in bfloat16 they are half of that."""
    with h200():
        a, u = jax.ShapeDtypeStruct((5, 32, 4), jnp.bfloat16), jax.ShapeDtypeStruct((5, 32, 4), jnp.float32)
        assert lowered(gradients(linear_scan), a, u).count(f"@{KERNEL}(") == 2


def test_exports_for_cuda_by_name():
    scan = functools.partial(linear_scan, implementation="pallas")
    with h200():
        exported = jax.export.export(
            jax.jit(gradients(scan)),
            platforms=["cuda"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(KERNEL)],
        )(jax.ShapeDtypeStruct((128,), jnp.float32), jax.ShapeDtypeStruct((6, 4, 128), jnp.float32))
    assert exported.mlir_module().count(f"@{KERNEL}(") == 2


def test_kernel_is_per_device_under_a_mesh():
    """A batch over 4 devices: the kernel sees the 2 examples of its device, inside a shard_map."""
    with h200((4,), ("data",)):
        a, u = jax.ShapeDtypeStruct((128,), jnp.float32), jax.ShapeDtypeStruct((8, 6, 4, 128), jnp.float32)
        text = lowered(gradients(linear_scan, batch=True), a, u)
    calls = [line for line in text.splitlines() if f"@{KERNEL}(" in line]
    assert len(calls) == 2
    assert all("tensor<2x6x4x128xf32>" in line and "tensor<8x6x4x128xf32>" not in line for line in calls)


@pytest.mark.parametrize("shape", [(5, 3, 6), (5, 1, 64)], ids=["odd sizes", "less than a tile"])
def test_falls_back_for_cuda_where_the_kernel_does_not_fit(shape):
    with h200():
        a, u = jax.ShapeDtypeStruct(shape[-1:], jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
        assert KERNEL not in lowered(gradients(linear_scan), a, u)
        with pytest.raises(ConfigError, match="cannot be cut into tiles"):
            lowered(gradients(functools.partial(linear_scan, implementation="pallas")), a, u)


def test_more_rows_than_a_second_axis_of_programs_takes(monkeypatch):
    """CUDA takes 65,535 programs along its second and third axis; the last one of a grid of Mosaic is its first."""
    grids, kernel = [], pallas_gpu.plgpu.kernel
    record = lambda *args, grid, **kwargs: grids.append(grid) or kernel(*args, grid=grid, **kwargs)
    monkeypatch.setattr(pallas_gpu.plgpu, "kernel", record)
    with h200():
        a, u = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(1024,), (2, 65536, 1024)])
        lowered(gradients(functools.partial(linear_scan, planes="complex")), a, u)
    assert len(grids) >= 2
    assert all(math.prod(grid) == 65536 * 2 and max(grid[:-1], default=1) <= 65535 for grid in grids)


def test_falls_back_on_a_gpu_before_hopper(monkeypatch):
    monkeypatch.setattr(device, "oldest_capability", lambda: 8.0)
    with h200():
        a, u = jax.ShapeDtypeStruct((128,), jnp.float32), jax.ShapeDtypeStruct((5, 4, 128), jnp.float32)
        assert KERNEL not in lowered(gradients(linear_scan), a, u)
        with pytest.raises(
            ConfigError, match="needs compute capability 9.0 .Hopper. or newer, .* here has 8.0"
        ):
            lowered(gradients(functools.partial(linear_scan, implementation="pallas")), a, u)


def test_the_capability_of_a_gpu_that_is_not_nvidias(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # jax calls AMD's so as well
    monkeypatch.setattr(jax, "local_devices", lambda: [types.SimpleNamespace(compute_capability="gfx942")])
    assert device.oldest_capability() == 0.0


def test_a_cpu_program_has_no_kernel():
    a, u = jnp.ones(128), jnp.ones((5, 4, 128))
    assert KERNEL not in jax.jit(gradients(linear_scan)).lower(a, u).as_text()


def test_traffic_counts_loops_slices_and_updates_in_place():
    u = jnp.ones((64, 32, 32))

    def loop(u):
        def step(t, out):
            row = jax.lax.dynamic_index_in_dim(u, t)
            return jax.lax.dynamic_update_index_in_dim(out, 2 * row, t, 0)

        return jax.lax.fori_loop(0, 64, step, jnp.zeros_like(u))

    # Reading u, writing the result, and at most filling it with zeros first.
    moved = traffic(jax.jit(loop).lower(u).compile().as_text())
    assert 2 * u.nbytes <= moved.bytes <= 3.1 * u.nbytes
    assert moved.kernels >= 64
    copy = traffic(jax.jit(lambda u: u + 1).lower(u).compile().as_text())
    assert copy.bytes == 2 * u.nbytes


needs_plugin = pytest.mark.skipif(
    compiling.plugin_missing() is not None, reason=str(compiling.plugin_missing())
)


@pytest.mark.slow
@needs_plugin
def test_compiled_for_an_h200():
    """At most 7.5 units of traffic forward + backward with a loss; no all-gather over 4 data-parallel GPUs."""
    for row in linear_scan_compiled.rows(full=False):
        forward = row["program"] == "forward"
        assert row["mosaic"] == (1 if forward else 2), row
        assert row["units"] <= (2.1 if forward else 7.5), row
        assert row["all_gathers"] == 0, row


@pytest.mark.slow
@needs_plugin
def test_convs5_compiled_for_four_h200s():
    """The gradient of the published model: the kernels are in it, and only sums travel between devices."""
    for row in convs5_compiled.rows(full=False):
        assert row["mosaic"] >= 2, row
        assert row["all_gathers"] == row["other_collectives"] == 0, row
        assert row["all_reduces"] >= 1, row
