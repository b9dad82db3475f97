"""Activation functions by name, so that a configuration can hold them."""

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array


Activation = Literal["relu", "gelu", "swish", "elu"]

# gelu is the tanh approximation, as in every seed.
_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "swish": jax.nn.swish,
    "elu": jax.nn.elu,
}


def activation(name: Activation) -> Callable[[Array], Array]:
    """The elementwise function called `name`."""
    return _FUNCTIONS[name]
