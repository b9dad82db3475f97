"""Position embeddings of pixels."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.linear import Linear


class SoftPositionEmbedding(eqx.Module):
    """`y_ij = x_ij + W (r_i, c_j, 1 - r_i, 1 - c_j) + b`, with rows and columns running over [0, 1].

    Works at any size: the grid is made anew from the shape of `x`.
    Source: Locatello et al., NeurIPS 2020, appendix E.2.
    """

    dense: Linear
    channels: int = eqx.field(static=True)

    def __init__(self, channels: int, *, init: Initializer = lecun_normal(), key: PRNGKeyArray):
        self.dense = Linear(4, channels, init=init, key=key)
        self.channels = channels

    def __call__(
        self, x: Float[Array, "*batch height width {self.channels}"]
    ) -> Float[Array, "*batch height width {self.channels}"]:
        """Add the embedding to feature maps."""
        embedding = self.embedding(x.shape[-3], x.shape[-2]).astype(x.dtype)
        return x + embedding.reshape((1,) * (x.ndim - 3) + embedding.shape)

    def embedding(self, height: int, width: int) -> Float[Array, "{height} {width} {self.channels}"]:
        """The embedding of every pixel."""
        return self.dense(jnp.asarray(position_grid(height, width)))


def position_grid(height: int, width: int) -> np.ndarray:
    """`(height, width, 4)`: row, column, 1 - row, 1 - column, each from 0 to 1 (0 where there is one pixel)."""
    rows, columns = np.meshgrid(
        np.linspace(0, 1, height, dtype=np.float32), np.linspace(0, 1, width, dtype=np.float32), indexing="ij"
    )
    return np.stack([rows, columns, 1 - rows, 1 - columns], axis=-1)
