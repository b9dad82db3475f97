"""What holds for every linear scan: pieces make the whole, the order of a batch is nothing, all forms agree."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given

from slotzoo.ops import linear_scan


@st.composite
def scans(draw):
    """A scan's arguments, with few enough shapes that compiled programs are used again."""
    planes = draw(st.sampled_from(["real", "complex"]))
    time, batch = draw(st.sampled_from([(1, 1), (2, 3), (5, 2), (8, 1)]))
    varying, reverse, resets = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1e-3, 0.7]))
    a = rng.uniform(-scale, scale, (time, 1, 4) if varying else (4,))
    u = rng.normal(size=(time, batch, 4)) * draw(st.sampled_from([1.0, 1e3]))
    arrays = [jnp.asarray(v, jnp.float32) for v in (a, u, rng.normal(size=(batch, 4)))]
    reset = jnp.asarray(rng.uniform(size=time) < 0.3) if resets else None
    return *arrays, {"planes": planes, "reverse": reverse, "reset": reset}


@functools.partial(jax.jit, static_argnames=("planes", "reverse", "implementation"))
def scan(a, u, x0, *, planes, reverse, reset, implementation="auto"):
    return linear_scan(a, u, x0, planes=planes, reverse=reverse, reset=reset, implementation=implementation)


def close(actual, expected):
    scale = float(np.abs(expected).max()) + 1e-30
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * scale)


@given(scans(), st.integers(0, 8))
def test_two_pieces_make_the_whole(arguments, cut):
    a, u, x0, options = arguments
    cut = min(cut, u.shape[0])
    whole = scan(a, u, x0, **options)

    def piece(part, state):
        reset = None if options["reset"] is None else options["reset"][part]
        return scan(a if a.ndim == 1 else a[part], u[part], state, **{**options, "reset": reset})

    first, second = slice(0, cut), slice(cut, None)
    if options["reverse"]:
        late = piece(second, x0)
        early = piece(first, late[0] if cut < u.shape[0] else x0)
    else:
        early = piece(first, x0)
        late = piece(second, early[-1] if cut else x0)
    close(jnp.concatenate([early, late]), whole)


@given(scans(), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_is_nothing(arguments, random):
    a, u, x0, options = arguments
    order = list(range(u.shape[1]))
    random.shuffle(order)
    order = jnp.asarray(order)
    close(scan(a, u[:, order], x0[order], **options), scan(a, u, x0, **options)[:, order])


@given(scans())
def test_parallel_and_sequential_agree(arguments):
    a, u, x0, options = arguments
    expected = scan(a, u, x0, **options, implementation="reference")
    close(scan(a, u, x0, **options, implementation="associative"), expected)
    close(scan(a, u, x0, **options, implementation="sequential"), expected)


@given(scans())
def test_reverse_is_a_scan_of_the_flipped_sequence(arguments):
    a, u, x0, options = arguments
    flip = lambda v: None if v is None else jnp.flip(v, 0)
    flipped = {**options, "reverse": not options["reverse"], "reset": flip(options["reset"])}
    found = scan(a if a.ndim == 1 else flip(a), flip(u), x0, **flipped)
    close(flip(found), scan(a, u, x0, **options))
