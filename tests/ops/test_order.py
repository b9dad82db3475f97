"""What is computed late, or kept, is what it was, finite or not."""

import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.nn.activations import kept_relu
from slotzoo.ops.order import late, stored


VALUES = jnp.array([0.0, 1.5, -3e-38, 3e38, jnp.inf, -jnp.inf, jnp.nan])


def test_late_and_stored_are_the_identity():
    for x in (VALUES, VALUES.astype(jnp.bfloat16)):
        given = jnp.full((2, 3), -4.0)
        for same in (jax.jit(late)(x, given), jax.vmap(late)(jnp.stack([x, x]), given)[1], jax.jit(stored)(x)):
            assert same.dtype == x.dtype
            np.testing.assert_array_equal(np.asarray(same, np.float32), np.asarray(x, np.float32))
    assert late(VALUES, jnp.zeros((0, 3))) is VALUES
    assert jax.grad(lambda g: late(VALUES, g).sum())(jnp.ones(3)).tolist() == [0, 0, 0]


def test_what_is_late_is_computed_from_what_is_given():
    """A barrier would not be seen here: it is gone from the compiled program."""
    program = jax.jit(lambda x, g: jnp.exp(late(x, g))).lower(VALUES, jnp.ones(3)).compile().as_text()
    entry = program[program.index("ENTRY") :]
    assert entry.count("parameter(") == 2 and "abs" in program


def test_kept_relu_is_relu_and_so_is_its_gradient():
    x = jnp.array([[-2.0, 0.0, 3.0, jnp.inf]])
    for function in (lambda f: f(x), lambda f: jax.jit(jax.grad(lambda x: (3 * f(x)).sum()))(x)):
        np.testing.assert_array_equal(function(kept_relu), function(jax.nn.relu))
