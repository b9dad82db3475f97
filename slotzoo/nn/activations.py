"""Activation functions by name, so that a configuration can hold them.

Their last operation is a division, which XLA's CPU compiler takes for expensive and stores. What ends in a product or a
choice it computes again wherever it is read, in particular element by element in the transposed order that the
gradient of a convolution's kernel reads it in: with `jax.nn.elu` and `jax.nn.gelu` a training step of ConvS5
takes a third longer (1.03 s in place of 0.78 s). Derivatives are those of `jax.nn`.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from slotzoo.ops.order import stored


Activation = Literal["relu", "gelu", "gelu_exact", "swish", "elu"]


def _elu(x: Array) -> Array:
    """`x` above zero, `exp(x) - 1` below: multiplied by `1 + |x|`, then divided by it.

    The difference is off by one rounding of 1; `expm1` is not, and takes twice the time of the rest.
    """
    divisor = 1 + jnp.abs(x)
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1) * divisor / divisor


def _like_elu(x: Array) -> Array:
    """A function with the derivative of ELU by one exponential; that of `jax.nn.elu` takes the slow `expm1`."""
    return jnp.where(x > 0, x, jnp.exp(jnp.where(x > 0, 0.0, x)))


def _gelu(x: Array) -> Array:
    """The tanh approximation, as in most seeds: `(1 + tanh u) / 2 = 1 / (1 + exp(-2 u))`."""
    u = 0.7978845608028654 * (x + 0.044715 * x**3)
    return x / (1 + jnp.exp(-2 * u))


def _gelu_exact(x: Array) -> Array:
    """By the error function, as in PyTorch: `x (1 + erf(x / sqrt 2)) / 2`."""
    return x * (1 + jax.lax.erf(x * 0.7071067811865476)) / 2


def _swish(x: Array) -> Array:
    return x / (1 + jnp.exp(-x))


def _with_derivative(
    function: Callable[[Array], Array], like: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    same = jax.custom_jvp(function)
    same.defjvp(lambda primals, tangents: (same(*primals), jax.jvp(like, primals, tangents)[1]))
    return same


_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": _with_derivative(_gelu, lambda x: jax.nn.gelu(x, approximate=True)),
    "gelu_exact": _with_derivative(_gelu_exact, lambda x: jax.nn.gelu(x, approximate=False)),
    "swish": _with_derivative(_swish, jax.nn.swish),
    "elu": _with_derivative(_elu, _like_elu),
}


def activation(name: Activation) -> Callable[[Array], Array]:
    """The elementwise function called `name`."""
    return _FUNCTIONS[name]


@jax.custom_jvp
def kept_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`max(x, 0)`, of which only the result is kept for the gradient, not `x` beside it: for wide layers."""
    return stored(jnp.maximum(x, 0))


@kept_relu.defjvp
def _kept_relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y = kept_relu(*primals)
    return y, lax.select(y > 0, tangents[0], jnp.zeros_like(tangents[0]))
