"""The scan as a Pallas kernel for NVIDIA GPUs from Hopper on (Mosaic GPU: `plgpu.kernel`).

Each program owns a tile of rows x channels of the state and walks through time alone: the tensor memory
accelerator brings the tiles of the next steps into shared memory while the state, in float32 registers, is
updated. So u is read once and x written once, which is all that a scan has to move; the backward pass reads x
and the cotangent of x and writes that of u. The planes of a complex state are two tiles of the same arrays.

What a program stores goes straight to global memory, not through the pipeline: the interpreter, which stands in
for a GPU in the tests, cannot run pipelined outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from slotzoo.ops import device
from slotzoo.ops.linear_scan.planes import Parts, Planes, add, count, multiply, multiply_conjugate
from slotzoo.ops.linear_scan.reference import decay_cotangent


WARPGROUP = 128  # threads that run one program; the elements of a tile are dealt out to all of them
TILE = 256  # elements per plane and program: two registers a thread for each number of the state
STAGES = 6  # time steps on their way to shared memory: about 23 KB per multiprocessor hide the latency
HOPPER = 9.0  # the first compute capability with a tensor memory accelerator
TMA_BYTES = 16  # rows that it copies start and end at multiples of this


class Tile(NamedTuple):
    """What one program works on: `rows` x `columns` of each plane."""

    rows: int
    columns: int


def unfit(u: Any, state_dtype: Any, planes: Planes) -> str | None:
    """Why the kernel cannot scan `u` (an array or `jax.ShapeDtypeStruct`), or None if it can."""
    if u.dtype not in (jnp.float32, jnp.bfloat16) or state_dtype != jnp.float32:
        return f"it takes float32 and bfloat16, not {u.dtype} with a state in {jnp.dtype(state_dtype)}"
    if _tile(u.shape[1], u.shape[2] // count(planes), u.dtype.itemsize) is None:
        return (
            f"{u.shape[1]} rows of {u.shape[2] // count(planes)} channels cannot be cut into tiles of a "
            f"multiple of {WARPGROUP} elements, a power of two along each axis"
        )
    capability = device.oldest_capability()
    if capability is not None and capability < HOPPER:
        return f"it needs compute capability {HOPPER} (Hopper) or newer, and the GPU here has {capability}"
    return None


def forward(
    a: Float[Array, "channel"] | Float[Array, "time _ channel"],
    u: Float[Array, "time rows channel"],
    x0: Float[Array, "rows channel"],
    *,
    planes: Planes,
    reverse: bool,
    interpret: bool = False,
) -> Float[Array, "time rows channel"]:
    """As `reference.forward`."""
    grid = _Grid.over(u, planes)
    time = _Time(u.shape[0], reverse)

    def body(a_ref, u_ref, x0_ref, x_ref):
        here = grid.here()

        def step(s, *refs):
            *refs, x = refs
            decay, u_t = _decay_and_rest(a_t, refs, grid)
            x = add(multiply(decay, x), u_t)
            _store(x_ref, (time.at(s[0]), here.rows), here.columns, x)
            return x

        a_t, a_specs, a_refs = grid.decay(a_ref, time.at)
        start = tuple(x0_ref[here.rows, columns] for columns in here.columns)
        grid.pipeline(step, time.length, a_specs + grid.specs(time.at), a_refs + (u_ref,) * grid.planes, start)

    kernel = grid.kernel(body, jax.ShapeDtypeStruct(u.shape, u.dtype), interpret, "linear_scan_forward")
    return kernel(grid.spread(a), u, x0)


def backward(
    a: Float[Array, "channel"] | Float[Array, "time _ channel"],
    x: Float[Array, "time rows channel"],
    x0: Float[Array, "rows channel"],
    gy: Float[Array, "time rows channel"],
    *,
    planes: Planes,
    reverse: bool,
    interpret: bool = False,
) -> tuple[
    Float[Array, "channel"] | Float[Array, "time _ channel"],
    Float[Array, "time rows channel"],
    Float[Array, "rows channel"],
]:
    """As `reference.backward`. The cotangent of a constant `a` is added up in registers, one sum per row and
    channel, and the rows are added outside: the same order in every run, no atomics.
    """
    grid = _Grid.over(gy, planes)
    constant = a.ndim == 1
    time = _Time(x.shape[0], not reverse)
    state = jax.ShapeDtypeStruct(x0.shape, x0.dtype)
    out_type = [jax.ShapeDtypeStruct(gy.shape, gy.dtype), state] + [state] * constant

    def body(a_ref, x_ref, x0_ref, gy_ref, du_ref, dx0_ref, *da_ref):
        here = grid.here()
        start = tuple(x0_ref[here.rows, columns] for columns in here.columns)

        def step(s, *refs):
            *refs, (c, da) = refs
            decay, rest = _decay_and_rest(a_t, refs, grid)
            g = add(rest[: grid.planes], c)
            if constant:
                # The state that entered step t; the first step was entered by x0.
                first = jnp.full(grid.tile, s[0] == time.length - 1)
                entering = tuple(
                    jnp.where(first, b, p) for b, p in zip(start, rest[grid.planes :], strict=True)
                )
                da = add(da, multiply_conjugate(entering, g))
            _store(du_ref, (time.at(s[0]), here.rows), here.columns, g)
            return multiply_conjugate(decay, g), da

        a_t, a_specs, a_refs = grid.decay(a_ref, time.at)
        specs = a_specs + grid.specs(time.at)
        refs = a_refs + (gy_ref,) * grid.planes
        if constant:
            specs += grid.specs(time.before)
            refs += (x_ref,) * grid.planes
        zero = tuple(part * 0.0 for part in start)
        dx0, da = grid.pipeline(step, time.length, specs, refs, (zero, zero))
        _store(dx0_ref, (here.rows,), here.columns, dx0)
        if constant:
            _store(da_ref[0], (here.rows,), here.columns, da)

    kernel = grid.kernel(body, out_type, interpret, "linear_scan_backward")
    du, dx0, *da = kernel(grid.spread(a), x, x0, gy)
    if constant:
        return da[0].sum(axis=0).astype(a.dtype), du, dx0
    # A varying decay: one fused pass of XLA over x and du, which sums over rows as it goes.
    return decay_cotangent(a, x, x0, du, planes=planes, reverse=reverse), du, dx0


class _Time(NamedTuple):
    """Which time step the s-th step of the kernel works on."""

    length: int
    reverse: bool

    def at(self, s):
        return self.length - 1 - s if self.reverse else s

    def before(self, s):
        """The step whose state entered step s of the forward pass, seen from the backward pass."""
        t = self.at(s)
        return jnp.maximum(t - 1, 0) if self.reverse else jnp.minimum(t + 1, self.length - 1)


class _Here(NamedTuple):
    rows: Any
    columns: tuple[Any, ...]


class _Grid(NamedTuple):
    """The programs of a kernel: a grid over rows and channels, and the tiles that belong to each of them."""

    tile: Tile
    rows: int
    width: int
    planes: int
    dtype: Any

    @classmethod
    def over(cls, u: Array, planes: Planes) -> "_Grid":
        rows, width = u.shape[1], u.shape[2] // count(planes)
        tile = _tile(rows, width, u.dtype.itemsize)
        assert tile is not None, "the caller asks `unfit` first"
        return cls(tile, rows, width, count(planes), u.dtype)

    @property
    def blocks(self) -> int:
        """Tiles side by side in one plane."""
        return self.width // self.tile.columns

    def kernel(self, body: Callable, out_type: Any, interpret: bool, name: str) -> Callable:
        return plgpu.kernel(
            body,
            out_type=out_type,
            # One axis, which is CUDA's first: of the others it takes 65,535 programs at most.
            grid=(self.rows // self.tile.rows * self.blocks,),
            grid_names=("tile",),
            # Explicit, since what None means differs between versions of jax.
            compiler_params=plgpu.CompilerParams(),
            interpret=device.mosaic_interpreter() if interpret else False,
            kernel_name=name,
        )

    def place(self) -> tuple[Any, Any]:
        """Which tile is this program's, along rows and along the columns of a plane: neighbours in memory follow."""
        row, column = divmod(lax.axis_index("tile"), self.blocks)
        return row, column

    def here(self) -> _Here:
        """The parts of a (rows, channel) array that belong to this program: its rows, its columns per plane."""
        row, column = self.place()
        starts = [plane * self.width + column * self.tile.columns for plane in range(self.planes)]
        rows = pl.ds(row * self.tile.rows, self.tile.rows)
        return _Here(rows, tuple(pl.ds(start, self.tile.columns) for start in starts))

    def specs(self, time: Callable, *, shared: bool = False) -> list:
        """One block per plane of a (time, rows, channel) array; of (time, tile rows, channel) if `shared`."""
        row, column = self.place()
        row = 0 if shared else row

        def spec(plane):
            return plgpu.BlockSpec((1, *self.tile), lambda s: (time(s), row, plane * self.blocks + column))

        return [spec(plane) for plane in range(self.planes)]

    def spread(self, a: Array) -> Array:
        """A decay that rows share, once per row of a tile: registers cannot be broadcast along rows."""
        if a.ndim == 1:
            return jnp.broadcast_to(a.astype(jnp.float32), (self.tile.rows, a.shape[0]))
        if a.shape[1] == 1:
            return jnp.broadcast_to(a.astype(jnp.float32), (a.shape[0], self.tile.rows, a.shape[2]))
        # As u is, or else in float32: the rows of a tile in a narrower dtype may be too short to be copied.
        return a if a.dtype == self.dtype else a.astype(jnp.float32)

    def decay(self, a_ref: Any, time: Callable) -> tuple[Parts | None, list, tuple]:
        """The decay if it is constant, or else the blocks and arrays to stream it with."""
        if len(a_ref.shape) == 2:
            columns = self.here().columns
            return tuple(a_ref[:, part] for part in columns), [], ()
        shared = a_ref.shape[1] == self.tile.rows
        return None, self.specs(time, shared=shared), (a_ref,) * self.planes

    def pipeline(self, step: Callable, length: int, specs: list, refs: tuple, start: Any) -> Any:
        stages = min(STAGES, length)
        run = plgpu.emit_pipeline(
            step, grid=(length,), in_specs=specs, max_concurrent_steps=stages, init_carry=start
        )
        return run(*refs)


def _decay_and_rest(constant: Parts | None, refs: Any, grid: _Grid) -> tuple[Parts, Parts]:
    """The values of the blocks of one step, in float32: the decay's, or the constant one, and the others."""
    values = tuple(ref[0].astype(jnp.float32) for ref in refs)
    return (constant, values) if constant is not None else (values[: grid.planes], values[grid.planes :])


def _store(ref: Any, index: tuple, columns: tuple, values: Parts) -> None:
    for part, value in zip(columns, values, strict=True):
        ref[(*index, part)] = value.astype(ref.dtype)


def _tile(rows: int, width: int, itemsize: int) -> Tile | None:
    """The largest tile up to `TILE` elements that divides (rows, width): whole rows first, for long copies."""
    columns = min(_power_of_two(width), TILE)
    if columns * itemsize % TMA_BYTES:
        return None
    height = min(_power_of_two(rows), max(TILE // columns, 1))
    return Tile(height, columns) if height * columns % WARPGROUP == 0 else None


def _power_of_two(n: int) -> int:
    """The largest power of two that divides n."""
    return n & -n
