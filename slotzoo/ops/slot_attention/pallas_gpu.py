"""The step as a Pallas kernel for NVIDIA's Hopper GPUs (Mosaic GPU: `plgpu.kernel`), in bfloat16.

The softmax runs over slots, so it is complete within a tile of tokens: each program walks over its tiles of 64
tokens, brought to shared memory ahead of time, and keeps two sums per slot in registers; the programs' sums are
added outside, in a fixed order. Keys and values are read once and nothing of the size of the attention is stored.
The backward pass computes the softmax again and writes the cotangents of keys and values, once.

All products are those of the tensor cores (`wgmma`), 64 tokens or channels at a time, with float32 sums. Slots are
padded to 16 or 32. The interpreter of jax 0.10, which stands in for a GPU in the tests, knows no such product:
there the plain one stands in, on the same operands.
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


TILE = 64  # tokens at a time: the rows of one product
STAGES = 2  # tiles on their way to shared memory while one is worked on
WIDTHS = (64, 128)  # channels of keys and values: whole rows of products
SLOTS = (16, 32)  # rows of queries, padded: 32 or 64 bytes in bfloat16, one swizzle of shared memory
MOST_PROGRAMS = 16  # that one example's tokens are split over
HOPPER = 9.0  # the compute capability with these products: older and newer GPUs have others
HIDDEN = -1e30  # the logit of a slot that is padding


def unfit(query: Any, key: Any, value: Any) -> str | None:
    """Why the kernel cannot run on these (arrays or `jax.ShapeDtypeStruct`), or None if it can."""
    dtypes = {jnp.dtype(x.dtype) for x in (query, key, value)}
    if dtypes != {jnp.dtype(jnp.bfloat16)}:
        return f"it takes bfloat16, not {', '.join(sorted(dtype.name for dtype in dtypes))}"
    if query.shape[0] > SLOTS[-1]:
        return f"it takes up to {SLOTS[-1]} slots (times heads), not {query.shape[0]}"
    if key.shape[1] not in WIDTHS or value.shape[1] not in WIDTHS:
        return f"it takes keys and values of {WIDTHS} channels, not {key.shape[1]} and {value.shape[1]}"
    if key.shape[0] % TILE:
        return f"{key.shape[0]} tokens are no multiple of {TILE}"
    capability = device.oldest_capability()
    if capability is not None and capability != HOPPER:
        return f"it needs compute capability {HOPPER} (Hopper), and the GPU here has {capability}"
    return None


def forward(
    query: Float[Array, "row dim"],
    key: Float[Array, "token dim"],
    value: Float[Array, "token vdim"],
    *,
    scale: float,
    epsilon: float,
    interpret: bool = False,
) -> tuple[Float[Array, "row vdim"], Float[Array, "row"]]:
    """As `reference.forward`."""
    plan = _Plan.of(query, key, value, interpret)

    def body(query_ref, key_ref, value_ref, hidden_ref, total_ref, weight_ref, query_s, shares_s, barrier):
        program = lax.axis_index("program")
        plan.fetch(query_ref, query_s, barrier)
        hidden = plan.load(hidden_ref)

        def step(_, key_s, value_s, sums):
            total, weight = sums
            logits = plan.rows(key_s, query_s) * scale + hidden
            shares = _softmax(logits) + epsilon
            plan.put(shares_s, shares)
            return total + plan.columns(value_s, shares_s, plan.vdim), weight + shares

        start = plan.zeros((plan.vdim, plan.slots)), plan.zeros((TILE, plan.slots))
        specs = [plan.tiles(program, plan.dim), plan.tiles(program, plan.vdim, narrow=True)]
        total, weight = plan.pipeline(step, specs, (key_ref, value_ref), start)
        total_ref[program] = total
        weight_ref[program] = weight

    kernel = plan.kernel(
        body,
        [plan.sums(plan.vdim), plan.sums(TILE)],
        [plan.shared((plan.slots, plan.dim)), plan.shared((TILE, plan.slots), narrow=True), plgpu.Barrier()],
        "slot_attention_forward",
    )
    total, weight = kernel(plan.padded(query), key, value, plan.hidden(len(query)))
    slots = len(query)
    return total.sum(0).T[:slots], weight.sum((0, 1))[:slots]


def backward(
    query: Float[Array, "row dim"],
    key: Float[Array, "token dim"],
    value: Float[Array, "token vdim"],
    total: Float[Array, "row vdim"],
    weight: Float[Array, "row"],
    *,
    scale: float,
    epsilon: float,
    interpret: bool = False,
) -> tuple[Float[Array, "row dim"], Float[Array, "token dim"], Float[Array, "token vdim"]]:
    """As `reference.backward`."""
    plan = _Plan.of(query, key, value, interpret)

    def body(
        query_ref,
        key_ref,
        value_ref,
        total_ref,
        weight_ref,
        hidden_ref,
        d_query_ref,
        d_key_ref,
        d_value_ref,
        query_s,
        total_s,
        narrow_query_s,
        narrow_total_s,
        shares_s,
        logits_s,
        d_key_s,
        d_value_s,
        barrier,
    ):
        program = lax.axis_index("program")
        for source, targets in ((query_ref, (query_s, narrow_query_s)), (total_ref, (total_s, narrow_total_s))):
            for target in targets:
                plan.fetch(source, target, barrier)
        hidden, given_weight = plan.load(hidden_ref), plan.load(weight_ref)

        def step(index, key_s, narrow_key_s, value_s, d_query):
            shares = _softmax(plan.rows(key_s, query_s) * scale + hidden)
            given = plan.rows(value_s, total_s) + given_weight
            mean = lax.broadcast_in_dim(jnp.sum(shares * given, axis=1), given.shape, (0,))
            logits = shares * (given - mean) * scale
            plan.put(shares_s, shares + epsilon)
            plan.put(logits_s, logits)
            tokens = pl.ds((program * plan.steps + index[0]) * TILE, TILE)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # what the last step wrote is still being copied
            plan.put(d_key_s, plan.outer(logits_s, narrow_query_s, plan.dim))
            plan.put(d_value_s, plan.outer(shares_s, narrow_total_s, plan.vdim))
            plgpu.copy_smem_to_gmem(d_key_s, d_key_ref.at[tokens])
            plgpu.copy_smem_to_gmem(d_value_s, d_value_ref.at[tokens])
            return d_query + plan.columns(narrow_key_s, logits_s, plan.dim)

        specs = [
            plan.tiles(program, plan.dim),
            plan.tiles(program, plan.dim, narrow=True),
            plan.tiles(program, plan.vdim),
        ]
        refs = (key_ref, key_ref, value_ref)
        d_query_ref[program] = plan.pipeline(step, specs, refs, plan.zeros((plan.dim, plan.slots)))
        plgpu.wait_smem_to_gmem(0)

    kernel = plan.kernel(
        body,
        [
            plan.sums(plan.dim),
            jax.ShapeDtypeStruct(key.shape, key.dtype),
            jax.ShapeDtypeStruct(value.shape, value.dtype),
        ],
        [
            plan.shared((plan.slots, plan.dim)),
            plan.shared((plan.slots, plan.vdim)),
            plan.shared((plan.slots, plan.dim), narrow=True),
            plan.shared((plan.slots, plan.vdim), narrow=True),
            plan.shared((TILE, plan.slots), narrow=True),
            plan.shared((TILE, plan.slots), narrow=True),
            plan.shared((TILE, plan.dim)),
            plan.shared((TILE, plan.vdim)),
            plgpu.Barrier(),
        ],
        "slot_attention_backward",
    )
    slots = len(query)
    weights = jnp.zeros(plan.slots).at[:slots].set(weight)
    d_query, d_key, d_value = kernel(
        plan.padded(query),
        key,
        value,
        plan.padded(total.astype(value.dtype)),
        jnp.broadcast_to(weights[None], (TILE, plan.slots)),
        plan.hidden(slots),
    )
    return d_query.sum(0).T[:slots].astype(query.dtype), d_key, d_value


def _softmax(logits: Any) -> Any:
    across = lambda row: lax.broadcast_in_dim(row, logits.shape, (0,))
    powers = jnp.exp(logits - across(jnp.max(logits, axis=1)))
    return powers / across(jnp.sum(powers, axis=1))


class _Plan(NamedTuple):
    """Sizes of a kernel and what follows from them; the products, and their stand-ins for the interpreter."""

    tokens: int
    dim: int
    vdim: int
    slots: int
    programs: int
    interpret: bool

    @classmethod
    def of(cls, query: Array, key: Array, value: Array, interpret: bool) -> "_Plan":
        tiles = key.shape[0] // TILE
        # Several tiles each, so that the next ones can be fetched; a power of two that divides them.
        programs = min(tiles & -tiles, MOST_PROGRAMS)
        while programs > 1 and tiles // programs < 2 * STAGES:
            programs //= 2
        slots = next(width for width in SLOTS if len(query) <= width)
        return cls(key.shape[0], key.shape[1], value.shape[1], slots, programs, interpret)

    @property
    def steps(self) -> int:
        return self.tokens // TILE // self.programs

    def kernel(self, body: Callable, out_type: list, scratch: list, name: str) -> Callable:
        return plgpu.kernel(
            body,
            out_type=out_type,
            scratch_types=scratch,
            grid=(self.programs,),
            grid_names=("program",),
            # Explicit, since what None means differs between versions of jax.
            compiler_params=plgpu.CompilerParams(),
            interpret=device.mosaic_interpreter() if self.interpret else False,
            kernel_name=name,
        )

    def pipeline(self, step: Callable, specs: list, refs: tuple, start: Any) -> Any:
        stages = min(STAGES, self.steps)
        return plgpu.emit_pipeline(
            step, grid=(self.steps,), in_specs=specs, max_concurrent_steps=stages, init_carry=start
        )(*refs)

    # Arrays in global memory.

    def padded(self, rows: Array) -> Array:
        return jnp.pad(rows, ((0, self.slots - len(rows)), (0, 0)))

    def hidden(self, slots: int) -> Array:
        """What is added to a tile of logits: keeps the padding out of the competition."""
        row = jnp.where(jnp.arange(self.slots) < slots, 0.0, HIDDEN).astype(jnp.float32)
        return jnp.broadcast_to(row[None], (TILE, self.slots))

    def sums(self, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.programs, rows, self.slots), jnp.float32)

    # Shared memory: both operands of a product must lie in it with the same swizzle, which is 128 bytes for rows of
    # channels, or as wide as a row of slots ("narrow").

    def _transforms(self, narrow: bool) -> tuple:
        if self.interpret:
            return ()
        swizzle = 2 * self.slots if narrow else 128
        return (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))

    def shared(self, shape: tuple[int, int], *, narrow: bool = False) -> Any:
        return plgpu.SMEM(shape, jnp.bfloat16, transforms=self._transforms(narrow))

    def tiles(self, program: Any, width: int, *, narrow: bool = False) -> Any:
        """The tiles of tokens of one program."""
        return plgpu.BlockSpec(
            (TILE, width),
            lambda t: (program * self.steps + t, 0),
            transforms=self._transforms(narrow),
        )

    def fetch(self, source: Any, target: Any, barrier: Any) -> None:
        plgpu.copy_gmem_to_smem(source, target, barrier)
        plgpu.barrier_wait(barrier)

    def put(self, target: Any, values: Any) -> None:
        """Into shared memory, for a product to read."""
        target[...] = values.astype(target.dtype)
        plgpu.commit_smem()

    # Registers, laid out as the products leave them.

    def zeros(self, shape: tuple[int, int]) -> Any:
        zeros = jnp.zeros(shape, jnp.float32)
        return zeros if self.interpret else plgpu.layout_cast(zeros, plgpu.Layout.WGMMA)

    def load(self, ref: Any) -> Any:
        if self.interpret:
            return ref[...]
        try:
            # pyright knows the signature of one version only.
            return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)  # pyright: ignore[reportCallIssue]
        except TypeError:  # before jax 0.11 it wants an index
            return plgpu.load(ref, (), layout=plgpu.Layout.WGMMA, optimized=False)

    def rows(self, tokens: Any, slots: Any) -> Any:
        """`tokens slots^T`: (64, slots)."""
        return self._product(tokens, slots, (TILE, self.slots), False, True)

    def columns(self, tokens: Any, shares: Any, width: int) -> Any:
        """`tokens^T shares`: (channels, slots), a sum over the tile."""
        return self._product(tokens, shares, (width, self.slots), True, False)

    def outer(self, shares: Any, slots: Any, width: int) -> Any:
        """`shares slots`: (64, channels)."""
        return self._product(shares, slots, (TILE, width), False, False)

    def _product(self, a: Any, b: Any, shape: tuple[int, int], turn_a: bool, turn_b: bool) -> Any:
        if self.interpret:
            a, b = a[...].astype(jnp.float32), b[...].astype(jnp.float32)
            return jnp.dot(a.T if turn_a else a, b.T if turn_b else b, precision="highest")

        def product(sums):
            plgpu.wgmma(sums, _turned(a) if turn_a else a, _turned(b) if turn_b else b)
            return sums[...]

        # Public in the documentation, but not listed in the module's exports.
        sums = plgpu.ACC(shape, jnp.float32)  # pyright: ignore[reportPrivateImportUsage]
        return pl.run_scoped(product, sums)


def _turned(ref: Any) -> Any:
    if jax.__version_info__ >= (0, 11):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))
