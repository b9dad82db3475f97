"""FAVOR+ attention (Choromanski et al., Rethinking Attention with Performers, ICLR 2021).

    softmax:   phi(x) = exp(w x' - |x'|^2 / 2) / sqrt(m),   x' = x / d^(1/4),  rows w orthogonal, lengths as if normal
    relu:      phi(x) = max(x, 0) + 1e-3

`exp(q k / sqrt(d))` is the mean of `phi(q) phi(k)` over w, so that attention takes linear time.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.nn.linear import Linear
from slotzoo.ops.linear_attention import LinearState, empty_state, linear_attention


STABILISER = 1e-6  # the authors' default, added to the softmax features and used in the quotient
RELU_OFFSET = 1e-3


class FavorOptions(NamedTuple):
    """Which features, how many random ones, and the seed that these are drawn from."""

    kernel: Literal["softmax", "relu"] = "softmax"
    features: int = 256
    seed: int = 0


class FavorState(NamedTuple):
    """What tokens so far come to, and their number."""

    sums: LinearState
    position: Int[Array, ""]


def projection(features: int, dim: int, *, key: PRNGKeyArray) -> Float[Array, "{features} {dim}"]:
    """Rows that are orthogonal in blocks of `dim`, as long as normal vectors are."""
    block_key, length_key = jax.random.split(key)
    blocks = jax.random.orthogonal(block_key, dim, (-(-features // dim),))
    lengths = jnp.linalg.norm(jax.random.normal(length_key, (features, dim)), axis=-1)
    return blocks.reshape(-1, dim)[:features] * lengths[:, None]


def softmax_features(
    x: Float[Array, "token head dim"],
    weights: Float[Array, "feature dim"],
    *,
    shift: Literal["token", "all", "none"],
) -> Float[Array, "token head feature"]:
    """Positive features of the softmax kernel, divided by the exponential of a maximum so that none overflows.

    The maximum is that of each "token" and head (for queries: it cancels in the quotient), or that of "all" tokens
    (the authors' way for keys: it lets the offset of 1e-6 depend on the future), or there is "none" (ours for
    keys: bounded by `|w|^2 / 2`, within float32 for heads of up to 128 channels).
    """
    x = x.astype(jnp.float32) * x.shape[-1] ** -0.25
    dots = jnp.einsum("khd,md->khm", x, weights)
    if shift == "none":
        top = jnp.zeros(())
    else:
        top = jnp.max(dots, axis=-1 if shift == "token" else (0, -1), keepdims=True)
        # The value of the features does not depend on it but for the offset; neither does their gradient.
        top = jnp.broadcast_to(top, (*dots.shape[:-1], 1))
    half = jnp.square(x).sum(-1, keepdims=True) / 2
    return weights.shape[0] ** -0.5 * (jnp.exp(dots - half - top) + STABILISER)


def trigonometric_features(
    x: Float[Array, "token head dim"], weights: Float[Array, "feature dim"]
) -> Float[Array, "token head features"]:
    """`[cos w x' | sin w x'] exp((|x'|^2 - max |x'|^2) / 2) / sqrt(m)`: unbiased, of either sign; less stable."""
    x = x.astype(jnp.float32) * x.shape[-1] ** -0.25
    dots = jnp.einsum("khd,md->khm", x, weights)
    half = jnp.square(x).sum(-1, keepdims=True) / 2
    scale = weights.shape[0] ** -0.5 * jnp.exp(half - half.max(0, keepdims=True))
    return jnp.concatenate([jnp.cos(dots), jnp.sin(dots)], -1) * scale


def relu_features(x: Float[Array, "token head dim"]) -> Float[Array, "token head dim"]:
    """`max(x, 0) + 1e-3`."""
    return jax.nn.relu(x.astype(jnp.float32)) + RELU_OFFSET


class FavorAttention(eqx.Module):
    """Multi-head self-attention in linear time, with the parameters of `MultiHeadAttention`.

    The random features are drawn from `options.seed`: no parameters, the same in every call.
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    options: FavorOptions = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        options: FavorOptions = FavorOptions(),
        init: Initializer = lecun_normal(),
        key: PRNGKeyArray,
    ):
        """`dim` channels, split into `heads`; biases everywhere, zero."""
        keys = jax.random.split(key, 4)
        self.query, self.key, self.value, self.out = (Linear(dim, dim, init=init, key=k) for k in keys)
        self.heads, self.options = heads, options

    def __call__(self, x: Float[Array, "token dim"], *, frame: int | None = None) -> Float[Array, "token dim"]:
        """All tokens at once; with `frame` tokens per frame each sees its own frame and all earlier ones."""
        y, _ = linear_attention(*self._features(x), frame=frame, stabiliser=self._stabiliser)
        return self.out(y.reshape(len(x), -1))

    def init_state(self) -> FavorState:
        """The state before the first token. It does not grow."""
        dim = self.query.out_size // self.heads
        features = dim if self.options.kernel == "relu" else self.options.features
        return FavorState(empty_state(self.heads, features, dim), jnp.zeros((), jnp.int32))

    def extend(
        self, x: Float[Array, "new dim"], state: FavorState, *, frame: int
    ) -> tuple[Float[Array, "new dim"], FavorState]:
        """Tokens that follow those in the state: the last rows of a call."""
        y, sums = linear_attention(
            *self._features(x), frame=frame, state=state.sums, stabiliser=self._stabiliser
        )
        return self.out(y.reshape(len(x), -1)), FavorState(sums, state.position + len(x))

    @property
    def _stabiliser(self) -> float:
        return 0.0 if self.options.kernel == "relu" else STABILISER

    def _features(self, x: Array) -> tuple[Array, Array, Array]:
        q, k, v = (layer(x).reshape(len(x), self.heads, -1) for layer in (self.query, self.key, self.value))
        if self.options.kernel == "relu":
            return relu_features(q), relu_features(k), v
        weights = projection(self.options.features, q.shape[-1], key=jax.random.key(self.options.seed))
        return softmax_features(q, weights, shift="token"), softmax_features(k, weights, shift="none"), v
