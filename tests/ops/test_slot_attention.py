"""Every implementation of the competition step against the definition in float64; then lowering for a GPU."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops import batch_map, device, slot_attention
from slotzoo.ops.device import compiling_for_gpu
from tests.ops.test_compiled import KERNEL, h200, lowered, needs_plugin
from tests.tolerance import assert_close, tolerance


# slots, tokens, dim, vdim, heads
SMALL = {
    "one head": (3, 20, 8, 12, 1),
    "two heads": (5, 17, 8, 4, 2),
    "one slot": (1, 6, 4, 4, 1),
    "one token": (4, 1, 4, 4, 1),
}
TILES = {"two heads": (9, 192, 128, 64, 2), "one tile": (1, 64, 64, 128, 1)}
CASES = [
    *(
        (name, shape, dtype)
        for name in ("reference", "xla", "auto")
        for shape in SMALL
        for dtype in ("float32",)
    ),
    *(("xla", shape, "bfloat16") for shape in ("one head", "two heads")),
    *(("pallas", shape, "bfloat16") for shape in TILES),
]


def arrays(slots, tokens, dim, vdim, dtype, batch=(), loud=1.0):
    rng = np.random.default_rng(slots + tokens)
    shapes = ((slots, dim), (tokens, dim), (tokens, vdim), (slots, vdim))
    found = [rng.normal(size=batch + shape) for shape in shapes]
    found[0] = loud * found[0]
    return [jnp.asarray(x, dtype) for x in found]


def definition(query, key, value, g, *, heads=1, epsilon=1e-8):
    """The updates, the attention, and the cotangents of the arguments, given that of the updates; float64."""
    query, key, value, g = (np.asarray(x.astype(jnp.float32), np.float64) for x in (query, key, value, g))
    slots, dim = query.shape
    split = lambda x: x.reshape(len(x), heads, -1)
    q, k, v, gy = split(query), split(key), split(value), split(g)
    scale = (dim / heads) ** -0.5
    logits = scale * np.einsum("thd,shd->ths", k, q)
    powers = np.exp(logits - logits.max(axis=(1, 2), keepdims=True))
    p = powers / powers.sum(axis=(1, 2), keepdims=True)
    weight = p + epsilon
    sums = weight.sum(axis=0)
    share = weight / sums
    updates = np.einsum("ths,thv->shv", share, v)
    # d updates / d weight = (value - update) / sum of weights
    g_weight = (np.einsum("shv,thv->ths", gy, v) - (gy * updates).sum(-1).T[None]) / sums
    g_logits = scale * p * (g_weight - (p * g_weight).sum(axis=(1, 2), keepdims=True))
    grads = (
        np.einsum("ths,thd->shd", g_logits, k),
        np.einsum("ths,shd->thd", g_logits, q),
        np.einsum("ths,shv->thv", share, gy),
    )
    return updates.reshape(slots, -1), p.sum(axis=1), [x.reshape(len(x), -1) for x in grads]


def run(implementation, args, **options):
    """Updates, and cotangents of the arguments."""
    *inputs, g = args
    interpret = implementation == "pallas" and not compiling_for_gpu()
    op = functools.partial(slot_attention, implementation=implementation, interpret=interpret, **options)

    @jax.jit
    def program(inputs, g):
        updates, pullback = jax.vjp(op if inputs[0].ndim == 2 else jax.vmap(op), *inputs)
        return updates, pullback(g)

    return program(inputs, g)


@pytest.mark.parametrize("implementation, shape, dtype", CASES)
def test_values_and_gradients(implementation, shape, dtype):
    slots, tokens, dim, vdim, heads = (SMALL | TILES if implementation != "pallas" else TILES)[shape]
    args = arrays(slots, tokens, dim, vdim, dtype)
    updates, grads = run(implementation, args, heads=heads)
    expected, _, expected_grads = definition(*args, heads=heads)
    # The softmax amplifies the rounding of logits of a few units.
    bound = 4 * tolerance(dtype, dim if dtype == "float32" else 4)
    assert updates.dtype == dtype
    assert_close(updates.astype(jnp.float32), expected, rtol=bound, what="updates")
    # Of the largest of all: a lone slot's logits have no gradient but rounding.
    largest = max(np.abs(x).max() for x in expected_grads)
    for name, ours, theirs in zip(("query", "key", "value"), grads, expected_grads, strict=True):
        assert ours.dtype == dtype
        error = np.abs(np.asarray(ours, np.float64) - theirs).max()
        assert error <= bound * max(np.abs(theirs).max(), 1e-2 * largest), name


@pytest.mark.parametrize("implementation, shape", [("xla", "two heads"), ("pallas", "one tile")])
def test_a_batch_is_its_examples(implementation, shape):
    *sizes, heads = (TILES if implementation == "pallas" else SMALL)[shape]
    args = arrays(*sizes, "bfloat16" if implementation == "pallas" else "float32", batch=(2,))
    updates, grads = run(implementation, args, heads=heads)
    bound = tolerance(updates.dtype, 64)
    for i in range(2):
        expected, _, expected_grads = definition(*(x[i] for x in args), heads=heads)
        assert_close(updates[i].astype(jnp.float32), expected, rtol=bound)
        for ours, theirs in zip(grads, expected_grads, strict=True):
            assert_close(ours[i].astype(jnp.float32), theirs, rtol=bound)


@pytest.mark.parametrize("heads", [1, 2])
def test_attention(heads):
    args = arrays(5, 30, 8, 8, "float32")
    _, attention = slot_attention(*args[:3], heads=heads, return_attention=True)
    assert_close(attention, definition(*args, heads=heads)[1], rtol=tolerance("float32", 64))
    np.testing.assert_allclose(attention.sum(axis=1), 1.0, rtol=1e-5)
    by_map = lambda k: slot_attention(args[0], k, args[2], return_attention=True).attention[3, 1]
    grad = jax.grad(by_map)(args[1])
    assert np.abs(grad[3]).max() > 0 and np.abs(np.delete(np.asarray(grad), 3, 0)).max() == 0


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_a_slot_that_wins_nothing_takes_the_mean(implementation):
    """And gradients stay finite where the softmax is 0 or 1 exactly."""
    args = arrays(2, 6, 4, 4, "float32", loud=0.0)
    args[0] = jnp.stack([jnp.full(4, 1e4), jnp.full(4, -1e4)])
    args[1] = jnp.abs(args[1]) + 1
    updates, grads = run(implementation, args)
    assert_close(updates, jnp.broadcast_to(args[2].mean(0), (2, 4)), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in grads)


def test_nothing_of_the_size_of_the_attention_is_kept():
    """What the forward pass leaves for the backward pass: the arguments, and two sums per slot."""
    args = arrays(7, 100, 8, 8, "float32")[:3]
    _, pullback = jax.vjp(slot_attention, *args)
    sizes = sorted(x.size for x in jax.tree.leaves(pullback))
    assert sum(sizes) <= sum(x.size for x in args) + 2 * (7 * 8 + 7) + 7 * 8
    assert 700 not in sizes


def test_wrong_shapes_are_one_sentence():
    q, k, v, _ = arrays(3, 5, 4, 4, "float32")
    with pytest.raises(ShapeError, match=r"at least one of each; got \(3, 4\), \(0, 4\) and \(0, 4\)"):
        slot_attention(q, k[:0], v[:0])
    with pytest.raises(ShapeError, match="4 and 4 channels cannot be split into 3 heads"):
        slot_attention(q, k, v, heads=3)


@pytest.mark.parametrize(
    "shape, dtype, reason",
    [
        ((7, 64, 64, 64), "float32", "it takes bfloat16, not float32"),
        ((33, 64, 64, 64), "bfloat16", "up to 32 slots .* not 33"),
        ((7, 60, 64, 64), "bfloat16", "60 tokens are no multiple of 64"),
        ((7, 64, 32, 64), "bfloat16", "channels, not 32 and 64"),
    ],
)
def test_the_kernel_says_why_it_cannot_run(shape, dtype, reason):
    with pytest.raises(ConfigError, match=f"cannot run: .*{reason}.*'auto' takes one that can"):
        slot_attention(*arrays(*shape, dtype)[:3], implementation="pallas", interpret=True)


@pytest.mark.skipif(compiling_for_gpu(), reason="the kernel runs on this platform")
def test_the_kernel_needs_a_gpu():
    with pytest.raises(ConfigError, match="the platform is 'cpu'"):
        slot_attention(*arrays(7, 64, 64, 64, "bfloat16")[:3], implementation="pallas")


def described(slots, tokens, dim, dtype=jnp.bfloat16, batch=2):
    return [jax.ShapeDtypeStruct((batch, n, dim), dtype) for n in (slots, tokens, tokens)]


def gradients(**options):
    op = batch_map(functools.partial(slot_attention, **options))
    return jax.grad(lambda *args: jnp.square(op(*args).astype(jnp.float32)).sum(), argnums=(0, 1, 2))


@pytest.mark.parametrize("heads, sizes", [(1, (7, 4096, 64)), (4, (8, 320, 128))])
def test_lowers_for_cuda(heads, sizes):
    with h200():
        text = lowered(gradients(heads=heads), *described(*sizes))
    assert text.count(f"@{KERNEL}(") == 2, "one kernel forward, one backward"
    assert f"{2}x{sizes[0] * heads}x{sizes[1]}x" not in text, "no attention map"


def test_exports_for_cuda_by_name():
    with h200():
        exported = jax.export.export(
            jax.jit(gradients(implementation="pallas")),
            platforms=["cuda"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(KERNEL)],
        )(*described(7, 256, 64))
    assert exported.mlir_module().count(f"@{KERNEL}(") == 2


def test_is_per_device_under_a_mesh():
    with h200((4,), ("data",)):
        text = lowered(gradients(), *described(7, 256, 64, batch=8))
    calls = [line for line in text.splitlines() if f"@{KERNEL}(" in line]
    assert len(calls) == 2
    assert all("tensor<2x256x64xbf16>" in line and "tensor<8x" not in line for line in calls)


def test_falls_back_where_the_kernel_does_not_fit(monkeypatch):
    with h200():
        assert KERNEL not in lowered(gradients(), *described(7, 250, 64))
        assert KERNEL not in lowered(gradients(), *described(7, 256, 64, jnp.float32))
        for capability in (8.0, 10.0):  # neither Ampere nor Blackwell has the products of Hopper
            monkeypatch.setattr(device, "oldest_capability", lambda c=capability: c)
            assert KERNEL not in lowered(gradients(), *described(7, 256, 64))


@pytest.mark.slow
@needs_plugin
def test_compiled_for_an_h200():
    """Keys and values move once forward, and once more with their cotangents backward; nothing is gathered."""
    from experiments.benchmarks import slot_attention_compiled

    for row in slot_attention_compiled.rows(full=False):
        forward = row["program"] == "forward"
        assert row["mosaic"] == (1 if forward else 2), row
        assert row["units"] <= (1.2 if forward else 3.3), row
        assert row["all_gathers"] == 0, row
