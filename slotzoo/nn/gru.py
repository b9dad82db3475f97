"""The gated recurrent unit, in PyTorch's parametrisation or in Flax's."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, lecun_normal, orthogonal
from jaxtyping import Array, Float, PRNGKeyArray


Style = Literal["torch", "flax"]


class GRUCell(eqx.Module):
    """`h' = (1 - z) n + z h` with `n = tanh(W_n x + b_n + r (U_n h + c_n))`, `r, z = sigmoid(W x + b + U h + c)`.

    Gates lie in the order r, z, n along the last axis of the kernels. The "flax" style has the bias `c_n` alone (the
    others add nothing to `b`). Source: Cho et al., EMNLP 2014, with the reset gate after the product, as cuDNN has it.
    """

    weight_input: Float[Array, "input gates"]
    weight_hidden: Float[Array, "hidden gates"]
    bias_input: Float[Array, " gates"]
    bias_hidden: Float[Array, " gates"] | Float[Array, " hidden"]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(self, input_size: int, hidden_size: int, *, style: Style = "torch", key: PRNGKeyArray):
        """Glorot-uniform input kernel, orthogonal hidden kernel, zero biases; in the "flax" style a LeCun-normal
        input kernel, and a hidden kernel whose gates are orthogonal each by itself.
        """
        key_input, key_hidden = jax.random.split(key)
        self.input_size, self.hidden_size = input_size, hidden_size
        gates = 3 * hidden_size
        if style == "flax":
            self.weight_input = lecun_normal()(key_input, (input_size, gates), jnp.float32)
            square = lambda key: orthogonal()(key, (hidden_size, hidden_size), jnp.float32)
            squares = jax.vmap(square, out_axes=1)(jax.random.split(key_hidden, 3))
            self.weight_hidden = squares.reshape(hidden_size, gates)
            self.bias_input, self.bias_hidden = jnp.zeros(gates), jnp.zeros(hidden_size)
            return
        self.weight_input = glorot_uniform()(key_input, (input_size, gates), jnp.float32)
        # Orthogonal columns over all three gates together: (gates, hidden) has orthonormal columns.
        self.weight_hidden = orthogonal()(key_hidden, (hidden_size, gates), jnp.float32)
        self.bias_input, self.bias_hidden = jnp.zeros(gates), jnp.zeros(gates)

    def __call__(
        self, x: Float[Array, "*batch {self.input_size}"], state: Float[Array, "*batch {self.hidden_size}"]
    ) -> Float[Array, "*batch {self.hidden_size}"]:
        """The next state, in the dtype of `state`."""
        entering = _affine(x, self.weight_input, self.bias_input, state.dtype)
        # Where it is that of the new state alone, it stands in the last third.
        bias_hidden = jnp.pad(self.bias_hidden, (len(self.bias_input) - len(self.bias_hidden), 0))
        kept = _affine(state, self.weight_hidden, bias_hidden, state.dtype)
        reset_in, update_in, new_in = jnp.split(entering, 3, axis=-1)
        reset_kept, update_kept, new_kept = jnp.split(kept, 3, axis=-1)
        reset = jax.nn.sigmoid(reset_in + reset_kept)
        update = jax.nn.sigmoid(update_in + update_kept)
        new = jnp.tanh(new_in + reset * new_kept)
        return new + update * (state - new)


def _affine(x: Array, weight: Array, bias: Array, dtype) -> Array:
    y = x.astype(dtype) @ weight.astype(dtype)
    return y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))
