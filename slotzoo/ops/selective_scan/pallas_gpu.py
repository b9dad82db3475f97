"""The selective scan as a Pallas kernel for NVIDIA GPUs from Hopper on (Mosaic GPU: `plgpu.kernel`).

Each program owns 128 channels, one for each thread, with 16 states of each in float32 registers, and walks through
time alone. The tensor memory accelerator brings u, delta, B and C of the next 8 steps into shared memory meanwhile;
exp(delta A) and delta B u are made in registers, so nothing of the size time x channel x state is ever stored.
More than 16 states are taken in parts: forward one after the other, chunk by chunk, their states in shared memory
meanwhile; backward by programs of their own, whose outputs are added outside.

The backward pass takes chunks of 8 steps from last to first. It computes the states of a chunk again, from the one
that entered it, into shared memory, then walks back. The cotangents of B and C are sums over channels, that is over
threads: the terms of a chunk are laid down in shared memory, where the states were, and summed along rows at once.

What a program stores goes straight to global memory, not through the pipeline: the interpreter, which stands in
for a GPU in the tests, cannot run pipelined outputs. Automatic barriers around every store are off: a thread's
states are its own, and the two places where threads read what others wrote, or a buffer is filled anew, say so.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from slotzoo.ops import device


CHUNK = 8  # time steps: their states fill a third of the shared memory
CHANNELS = 128  # of one program: the threads of a warpgroup
STATES = 16  # of each channel at a time: registers
MOST_STATES = 128  # that fit into shared memory with their rates
PITCH = 136  # floats from row to row of shared memory: 8 more, so that rows start in other banks
ROWS = 64  # that are summed at once
STAGES = 3  # chunks on their way to shared memory
STAGES_BACKWARD = 2  # the states of one chunk lie there too
HOPPER = 9.0  # the first compute capability with a tensor memory accelerator
SMALL = 12.0  # from this one on it has 99 KB of shared memory again: the backward pass takes 182 KB


def unfit(u: Any, a: Any, b: Any, c: Any) -> str | None:
    """Why the kernel cannot scan these (arrays or `jax.ShapeDtypeStruct`), or None if it can."""
    if u.dtype not in (jnp.float32, jnp.bfloat16) or a.dtype != jnp.float32:
        return f"it takes float32 and bfloat16 with real rates, not {u.dtype} with a state in {a.dtype}"
    if u.shape[1] % CHANNELS:
        return f"{u.shape[1]} channels are no multiple of {CHANNELS}"
    if len(a) > MOST_STATES:
        return f"it takes up to {MOST_STATES} states of each channel, not {len(a)}"
    if b.shape[0] != len(u) or c.shape != b.shape:
        return "B and C are not both variable in time with the same groups"
    if u.shape[1] // b.shape[2] % CHANNELS:
        return f"a group of {u.shape[1] // b.shape[2]} channels is no multiple of {CHANNELS}"
    capability = device.oldest_capability()
    if capability is not None and not HOPPER <= capability < SMALL:
        return (
            f"it needs the tensor memory accelerator and the shared memory of compute capability {HOPPER} (Hopper) "
            f"up to below {SMALL}, and the GPU here has {capability}"
        )
    return None


def forward(
    u: Float[Array, "time channel"],
    delta: Float[Array, "time channel"],
    a: Float[Array, "state channel"],
    b: Float[Array, "time state group"],
    c: Float[Array, "time state group"],
    h0: Float[Array, "state channel"],
    *,
    chunk: int,
    save: bool,
    interpret: bool = False,
) -> tuple[Float[Array, "time channel"], Float[Array, "state channel"], Float[Array, "..."] | None]:
    """As `reference.forward`; chunks are those of the kernel, whatever `chunk` says."""
    plan = _Plan.of(u, a, b, interpret)

    def body(u_ref, delta_ref, a_ref, bc_ref, h0_ref, y_ref, last_ref, *rest):
        *entries_ref, rates_s, h_s, y_s = rest
        tile = lax.axis_index("tile")
        channels = pl.ds(tile * CHANNELS, CHANNELS)

        @plan.every_part
        def _(here):
            here.store(rates_s, _WHOLE, here.load(a_ref, channels))
            here.store(h_s, _WHOLE, here.load(h0_ref, channels))

        def step(index, u_s, delta_s, bc_s):
            k = index[0]
            for t in range(CHUNK):
                y_s[t] = jnp.zeros(CHANNELS, jnp.float32)

            @plan.every_part
            def _(here):
                h, rates = here.load(h_s, _WHOLE), here.load(rates_s, _WHOLE)
                if save:
                    here.store(entries_ref[0].at[k], channels, h)

                def advance(t, h):
                    delta_t = delta_s[t].astype(jnp.float32)
                    entered = delta_t * u_s[t].astype(jnp.float32)
                    h = _next(h, delta_t, rates, entered, lambda n: bc_s[t, here.b(n)])
                    y_s[t] = y_s[t] + _sum([h[n] * bc_s[t, here.c(n)] for n in range(STATES)])
                    return h

                here.store(h_s, _WHOLE, lax.fori_loop(0, CHUNK, advance, h))

            for t in range(CHUNK):
                y_ref[k * CHUNK + t, channels] = y_s[t].astype(y_ref.dtype)
            plgpu.commit_smem()  # all threads have read before the buffers are filled anew

        specs = [plan.moving(tile, lambda k: k)] * 2 + [plan.matrices(tile, lambda k: k)]
        plan.pipeline(step, specs, (u_ref, delta_ref, bc_ref), None, STAGES)

        @plan.every_part
        def _(here):
            here.store(last_ref, channels, here.load(h_s, _WHOLE))

    state = jax.ShapeDtypeStruct((plan.parts * STATES, plan.channels), jnp.float32)
    entries = jax.ShapeDtypeStruct((plan.chunks, *state.shape), jnp.float32)
    y = jax.ShapeDtypeStruct((plan.chunks * CHUNK, plan.channels), u.dtype)
    shared = [plgpu.SMEM((rows, CHANNELS), jnp.float32) for rows in (state.shape[0], state.shape[0], CHUNK)]
    kernel = plan.kernel(body, [y, state] + [entries] * save, shared, {"tile": plan.tiles}, "forward")
    y, last, *entries = kernel(
        plan.filled(u), plan.filled(delta), plan.rates(a), plan.joined(b, c), plan.padded(h0)
    )
    return y[: plan.time], last[: len(a)], entries[0][:, : len(a)] if save else None


def backward(
    u: Float[Array, "time channel"],
    delta: Float[Array, "time channel"],
    a: Float[Array, "state channel"],
    b: Float[Array, "time state group"],
    c: Float[Array, "time state group"],
    entries: Float[Array, "chunk state channel"],
    gy: Float[Array, "time channel"],
    gh: Float[Array, "state channel"],
    *,
    chunk: int,
    interpret: bool = False,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """As `reference.backward`. Sums over programs are added outside, always in the same order: no atomics."""
    plan = _Plan.of(u, a, b, interpret)

    def body(u_ref, delta_ref, a_ref, bc_ref, entries_ref, gy_ref, gh_ref, *outputs_and_scratch):
        du_ref, ddelta_ref, da_ref, db_ref, dc_ref, dh0_ref, states_s, terms_s = outputs_and_scratch
        tile, part = lax.axis_index("tile"), lax.axis_index("part")
        channels = pl.ds(tile * CHANNELS, CHANNELS)
        here = _Part(part)
        rates = here.load(a_ref, channels)
        last = plan.chunks - 1
        for shared in (states_s, terms_s):
            shared[...] = jnp.zeros(shared.shape, jnp.float32)
        plgpu.commit_smem()

        def step(index, u_s, delta_s, bc_s, gy_s, entry_s, carry):
            k = last - index[0]

            def advance(t, h):
                for n in range(STATES):
                    states_s[t * STATES + n, pl.ds(0, CHANNELS)] = h[n]
                delta_t = delta_s[t].astype(jnp.float32)
                entered = delta_t * u_s[t].astype(jnp.float32)
                return _next(h, delta_t, rates, entered, lambda n: bc_s[t, n])

            h = lax.fori_loop(0, CHUNK, advance, tuple(entry_s[0, n] for n in range(STATES)))

            def retreat(s, carry):
                h, g, da = carry
                t = CHUNK - 1 - s
                delta_t, u_t, gy_t = (x[t].astype(jnp.float32) for x in (delta_s, u_s, gy_s))
                entered = delta_t * u_t
                before, after, da_after, through_b, through_a = [], [], [], [], []
                for n in range(STATES):
                    row = (t * STATES + n, pl.ds(0, CHANNELS))
                    g_n = g[n] + gy_t * bc_s[t, STATES + n]
                    h_before = states_s[row]
                    # The state is not needed there again: the terms of C's cotangent take its place.
                    states_s[row] = gy_t * h[n]
                    terms_s[row] = g_n * entered
                    g_before = g_n * jnp.exp2(delta_t * rates[n])
                    rate = g_before * h_before
                    through_b.append(g_n * bc_s[t, n])
                    through_a.append(rate * rates[n])
                    da_after.append(da[n] + rate * delta_t)
                    before.append(h_before)
                    after.append(g_before)
                to_entered = _sum(through_b)
                place = (part, k * CHUNK + t, channels)
                du_ref[place] = (to_entered * delta_t).astype(du_ref.dtype)
                # The rates are those of 2^x; u itself is free of them.
                ddelta = to_entered * u_t + _sum(through_a) * math.log(2)
                ddelta_ref[place] = ddelta.astype(ddelta_ref.dtype)
                return tuple(before), tuple(after), tuple(da_after)

            _, g, da = lax.fori_loop(0, CHUNK, retreat, (h, *carry))
            plgpu.commit_smem()  # every thread's terms are there
            for source, target in ((terms_s, db_ref), (states_s, dc_ref)):
                for start in range(0, CHUNK * STATES, ROWS):
                    sums = jnp.sum(plan.rows(source, start), axis=1)
                    target[tile, part, pl.ds(k * CHUNK * STATES + start, ROWS)] = sums
            plgpu.commit_smem()  # and have been read before the next chunk
            return g, da

        back = lambda i: last - i
        moving = plan.moving(tile, back)
        specs = [moving, moving, plan.matrices(tile, back, part), moving, plan.entries(tile, back, part)]
        refs = (u_ref, delta_ref, bc_ref, gy_ref, entries_ref)
        start = here.load(gh_ref, channels), tuple(rate * 0.0 for rate in rates)
        g, da = plan.pipeline(step, specs, refs, start, STAGES_BACKWARD)
        here.store(dh0_ref, channels, g)
        here.store(da_ref, channels, da)

    state = jax.ShapeDtypeStruct((plan.parts * STATES, plan.channels), jnp.float32)
    sums = jax.ShapeDtypeStruct((plan.tiles, plan.parts, plan.chunks * CHUNK * STATES), jnp.float32)
    terms = plgpu.SMEM((CHUNK * STATES, PITCH), jnp.float32)
    kernel = plan.kernel(
        body,
        [plan.outputs(u.dtype), plan.outputs(delta.dtype), state, sums, sums, state],
        [terms, terms],
        {"tile": plan.tiles, "part": plan.parts},
        "backward",
    )
    du, ddelta, da, db, dc, dh0 = kernel(
        plan.filled(u),
        plan.filled(delta),
        plan.rates(a),
        plan.joined(b, c),
        plan.padded(entries),
        plan.filled(gy),
        plan.padded(gh),
    )
    whole = plan.whole(du, u.dtype), plan.whole(ddelta, delta.dtype)
    return *whole, da[: len(a)], plan.summed(db, b), plan.summed(dc, c), dh0[: len(a)]


def _next(h: Sequence, delta: Any, rates: Sequence, entered: Any, b: Callable[[int], Any]) -> tuple:
    """The states after one step."""
    return tuple(
        jnp.exp2(delta * rate) * h_n + entered * b(n)
        for n, (h_n, rate) in enumerate(zip(h, rates, strict=True))
    )


def _sum(terms: Sequence) -> Any:
    """Pairs first, then pairs of these: a short chain of dependent additions."""
    while len(terms) > 1:
        terms = [x + y for x, y in zip(terms[::2], terms[1::2], strict=True)]
    return terms[0]


_WHOLE = pl.ds(0, CHANNELS)  # a row of shared memory


class _Part(NamedTuple):
    """16 of the states, and where they lie in arrays of all states and in those of B and C side by side."""

    part: Any

    def load(self, ref: Any, channels: Any) -> tuple:
        return tuple(ref[self.part * STATES + n, channels] for n in range(STATES))

    def store(self, ref: Any, channels: Any, values: Sequence) -> None:
        for n, value in enumerate(values):
            ref[self.part * STATES + n, channels] = value

    def b(self, n: int) -> Any:
        return self.part * 2 * STATES + n

    def c(self, n: int) -> Any:
        return self.part * 2 * STATES + STATES + n


class _Plan(NamedTuple):
    """Sizes of a kernel, and its arrays in global memory."""

    time: int
    channels: int
    states: int
    groups: int
    interpret: bool

    @classmethod
    def of(cls, u: Array, a: Array, b: Array, interpret: bool) -> "_Plan":
        return cls(u.shape[0], u.shape[1], len(a), b.shape[2], interpret)

    @property
    def chunks(self) -> int:
        return -(-self.time // CHUNK)

    @property
    def parts(self) -> int:
        return -(-self.states // STATES)

    @property
    def tiles(self) -> int:
        return self.channels // CHANNELS

    def every_part(self, body: Callable) -> None:
        """Run `body(part)` for all parts of the states, one after the other."""

        def run(part, carry):
            body(_Part(part))
            return carry

        lax.fori_loop(0, self.parts, run, None)

    def kernel(
        self, body: Callable, out_type: list, scratch: list, grid: dict[str, int], name: str
    ) -> Callable:
        return plgpu.kernel(
            body,
            out_type=out_type,
            scratch_types=scratch,
            grid=tuple(grid.values()),
            grid_names=tuple(grid),
            compiler_params=plgpu.CompilerParams(unsafe_no_auto_barriers=True),
            interpret=device.mosaic_interpreter() if self.interpret else False,
            kernel_name=f"selective_scan_{name}",
        )

    def pipeline(self, step: Callable, specs: list, refs: tuple, start: Any, stages: int) -> Any:
        stages = min(stages, self.chunks)
        return plgpu.emit_pipeline(
            step, grid=(self.chunks,), in_specs=specs, max_concurrent_steps=stages, init_carry=start
        )(*refs)

    # Blocks of one chunk.

    def moving(self, tile: Any, chunk: Callable) -> Any:
        return plgpu.BlockSpec((CHUNK, CHANNELS), lambda i: (chunk(i), tile))

    def matrices(self, tile: Any, chunk: Callable, part: Any = None) -> Any:
        """B and C of one part, or of all."""
        first = tile // (self.tiles // self.groups) * self.chunks
        width = 2 * STATES * (self.parts if part is None else 1)
        return plgpu.BlockSpec((CHUNK, width), lambda i: (first + chunk(i), 0 if part is None else part))

    def entries(self, tile: Any, chunk: Callable, part: Any) -> Any:
        return plgpu.BlockSpec((1, STATES, CHANNELS), lambda i: (chunk(i), part, tile))

    def rows(self, ref: Any, start: int) -> Any:
        """Rows of shared memory, each dealt out to the four threads that will sum it.

        Whole rows, with the zeros at their ends: newer compilers cannot load a part.
        """
        part = ref.at[pl.ds(start, ROWS)]
        if self.interpret:
            return part[...]
        try:
            # pyright knows the signature of one version only.
            return plgpu.load(part, layout=plgpu.Layout.WGMMA, optimized=False)  # pyright: ignore[reportCallIssue]
        except TypeError:  # before jax 0.11 it wants an index
            return plgpu.load(part, (), layout=plgpu.Layout.WGMMA, optimized=False)

    # Arrays as the kernel takes and gives them.

    def filled(self, x: Array) -> Array:
        """Whole chunks: steps of length zero leave the state as it is."""
        return jnp.pad(x, ((0, self.chunks * CHUNK - self.time), (0, 0)))

    def padded(self, h: Array) -> Array:
        rest = self.parts * STATES - self.states
        return jnp.pad(h, ((0, 0),) * (h.ndim - 2) + ((0, rest), (0, 0)))

    def rates(self, a: Array) -> Array:
        """exp(x) is 2^(x log2 e)."""
        return self.padded(a * math.log2(math.e))

    def joined(self, b: Array, c: Array) -> Array:
        """B and C side by side, (group x time, part x 2 x 16): each part is a row of 128 bytes."""

        def laid_out(m: Array) -> Array:
            rest = self.chunks * CHUNK - self.time, self.parts * STATES - self.states
            m = jnp.pad(m, ((0, rest[0]), (0, rest[1]), (0, 0)))
            return m.transpose(2, 0, 1).reshape(-1, self.parts, STATES)

        both = jnp.concatenate([laid_out(b), laid_out(c)], axis=2)
        return both.reshape(-1, self.parts * 2 * STATES)

    def outputs(self, dtype: Any) -> jax.ShapeDtypeStruct:
        shape = (self.parts, self.chunks * CHUNK, self.channels)
        return jax.ShapeDtypeStruct(shape, dtype if self.parts == 1 else jnp.float32)

    def whole(self, x: Array, dtype: Any) -> Array:
        """(time, channel) from the outputs of all parts."""
        return (x[0] if self.parts == 1 else x.sum(0))[: self.time].astype(dtype)

    def summed(self, x: Array, like: Array) -> Array:
        """The cotangent of B or C from the sums of each tile."""
        x = x.reshape(self.groups, -1, self.parts, self.chunks * CHUNK, STATES).sum(1)
        x = x.transpose(2, 1, 3, 0).reshape(self.chunks * CHUNK, -1, self.groups)
        return x[: self.time, : self.states].astype(like.dtype)
