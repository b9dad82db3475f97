"""The gated recurrent unit, in PyTorch's parametrisation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, orthogonal
from jaxtyping import Array, Float, PRNGKeyArray


class GRUCell(eqx.Module):
    """`h' = (1 - z) n + z h` with `n = tanh(W_n x + b_n + r (U_n h + c_n))`, `r, z = sigmoid(W x + b + U h + c)`.

    Gates lie in the order r, z, n along the last axis of the kernels. Source: Cho et al., EMNLP 2014, with the
    reset gate after the product, as cuDNN has it.
    """

    weight_input: Float[Array, "input gates"]
    weight_hidden: Float[Array, "hidden gates"]
    bias_input: Float[Array, " gates"]
    bias_hidden: Float[Array, " gates"]
    input_size: int = eqx.field(static=True)
    hidden_size: int = eqx.field(static=True)

    def __init__(self, input_size: int, hidden_size: int, *, key: PRNGKeyArray):
        """Glorot-uniform input kernel, orthogonal hidden kernel, zero biases."""
        key_input, key_hidden = jax.random.split(key)
        gates = 3 * hidden_size
        self.weight_input = glorot_uniform()(key_input, (input_size, gates), jnp.float32)
        # Orthogonal columns over all three gates together: (gates, hidden) has orthonormal columns.
        self.weight_hidden = orthogonal()(key_hidden, (hidden_size, gates), jnp.float32)
        self.bias_input, self.bias_hidden = jnp.zeros(gates), jnp.zeros(gates)
        self.input_size, self.hidden_size = input_size, hidden_size

    def __call__(
        self, x: Float[Array, "*batch {self.input_size}"], state: Float[Array, "*batch {self.hidden_size}"]
    ) -> Float[Array, "*batch {self.hidden_size}"]:
        """The next state, in the dtype of `state`."""
        entering = _affine(x, self.weight_input, self.bias_input, state.dtype)
        kept = _affine(state, self.weight_hidden, self.bias_hidden, state.dtype)
        reset_in, update_in, new_in = jnp.split(entering, 3, axis=-1)
        reset_kept, update_kept, new_kept = jnp.split(kept, 3, axis=-1)
        reset = jax.nn.sigmoid(reset_in + reset_kept)
        update = jax.nn.sigmoid(update_in + update_kept)
        new = jnp.tanh(new_in + reset * new_kept)
        return new + update * (state - new)


def _affine(x: Array, weight: Array, bias: Array, dtype) -> Array:
    y = x.astype(dtype) @ weight.astype(dtype)
    return y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))
