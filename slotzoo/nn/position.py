"""Position embeddings of pixels."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.linear import Linear
from slotzoo.nn.mlp import DeepMLP


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


Kind = Literal["linear", "fourier", "gaussian_fourier", "discrete_1d"]


class PositionTable(eqx.Module):
    """`y = transform(x + W p + b)`, or `transform([x | p])`, with a table p of fixed features of every place.

    The features of a place with coordinates `c` in [-1, 1] (rows first) are `c` itself ("linear"); `sin u` and
    `cos u` with `u = pi c P`, where P holds `2^0 I, 2^1 I ...` ("fourier") or normal numbers ("gaussian_fourier");
    or one of n ("discrete_1d", over the last axis of the grid).

    The table belongs to the parameters, counts among them and is never trained: checkpoints of SAVi hold it, and it
    fixes the grid. Source: Kipf et al., Conditional Object-Centric Learning from Video, ICLR 2022.
    """

    table: Float[Array, "*grid feature"]
    dense: Linear | None
    transform: DeepMLP | None

    def __init__(
        self,
        channels: int,
        grid: tuple[int, ...],
        *,
        kind: Kind = "linear",
        update: Literal["project_add", "concat"] = "project_add",
        bases: int = 0,
        sigma: float = 1.0,
        transform_width: int | None = None,
        key: PRNGKeyArray,
    ):
        """`bases`: of the Fourier features; `sigma`: of the normal numbers. `transform_width`: hidden size of a
        two-layer perceptron with a norm before it, on the result; none unless given.
        """
        dense_key, transform_key, table_key = jax.random.split(key, 3)
        if "fourier" in kind and bases < 1:
            raise ConfigError(f"position table: {kind} features need bases of at least 1, got {bases}.")
        self.table = jnp.asarray(position_features(grid, kind, bases=bases, sigma=sigma, key=table_key))
        features, concatenated = self.table.shape[-1], update == "concat"
        self.dense = None if concatenated else Linear(features, channels, key=dense_key)
        width = channels + features if concatenated else channels
        self.transform = (
            None if transform_width is None else DeepMLP(width, transform_width, norm="pre", key=transform_key)
        )

    def __call__(self, x: Float[Array, "*batch channel"]) -> Float[Array, "*batch out"]:
        """Add to or append to feature maps, whose axes before the channels end in the grid."""
        table = jax.lax.stop_gradient(self.table).astype(x.dtype)
        places = table if self.dense is None else self.dense(table)
        places = places.reshape((1,) * (x.ndim - places.ndim) + places.shape)
        if self.dense is not None:
            y = x + places
        else:
            y = jnp.concatenate([x, jnp.broadcast_to(places, (*x.shape[:-1], places.shape[-1]))], axis=-1)
        if self.transform is None:
            return y
        # Places in a row, as later layers have them: the compiler makes one program for norms of either.
        rows = y.reshape(*y.shape[: y.ndim - self.table.ndim], -1, y.shape[-1])
        return self.transform(rows).reshape(*y.shape[:-1], -1)


def position_features(
    grid: tuple[int, ...], kind: Kind, *, bases: int, sigma: float, key: PRNGKeyArray
) -> np.ndarray | Array:
    """The table of `PositionTable`."""
    if kind == "discrete_1d":
        *before, last = grid
        return np.broadcast_to(np.eye(last, dtype=np.float32), (*before, last, last))
    # One place along an axis is at -1.
    axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in grid]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    if kind == "linear":
        return places
    if kind == "fourier":
        octaves = [np.eye(len(grid), dtype=np.float32) * 2**i for i in range(bases)]
        turns = jnp.asarray(places * np.float32(math.pi)) @ jnp.asarray(np.concatenate(octaves, axis=1))
    else:
        drawn = jax.random.normal(key, (len(grid), bases)) * sigma
        turns = jnp.asarray(places * np.float32(math.pi)) @ drawn
    return jnp.sin(jnp.concatenate([turns, turns + math.pi / 2], axis=-1))


def position_grid(height: int, width: int) -> np.ndarray:
    """`(height, width, 4)`: row, column, 1 - row, 1 - column, each from 0 to 1 (0 where there is one pixel)."""
    rows, columns = np.meshgrid(
        np.linspace(0, 1, height, dtype=np.float32), np.linspace(0, 1, width, dtype=np.float32), indexing="ij"
    )
    return np.stack([rows, columns, 1 - rows, 1 - columns], axis=-1)
