"""Vector quantisation: the nearest row of a learned table, with a straight-through gradient."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Quantized(NamedTuple):
    """What a quantiser returns for a grid of vectors."""

    codes: Int[Array, "*grid"]  # index of the nearest row
    embeddings: Float[Array, "*grid dim"]  # those rows; the gradient goes straight through to `latents`
    rows: Float[Array, "*grid dim"]  # the same values; the gradient goes to the table
    latents: Float[Array, "*grid dim"]  # what was quantised (of unit length if the quantiser normalises)
    distances: Float[Array, "*grid codes"]  # squared Euclidean distances to every row, float32


class VectorQuantizer(eqx.Module):
    """`codes = argmin_k |z - e_k|^2`, `embeddings = z + stop_gradient(e_codes - z)` (VQ-VAE, 2017).

    With `normalize`, vectors and rows are scaled to unit length first (ViT-VQGAN, 2022), which keeps more rows
    in use. There are no running averages: the table is an ordinary parameter, trained by `slotzoo.losses`.
    """

    codebook: Float[Array, "codes dim"]
    normalize: bool = eqx.field(static=True)

    def __init__(
        self, codes: int, dim: int, *, normalize: bool = False, scale: float | None = None, key: PRNGKeyArray
    ):
        """`scale`: standard deviation of the initial rows; None draws them uniformly in [-1/codes, 1/codes]."""
        shape = (codes, dim)
        if scale is None:
            self.codebook = jax.random.uniform(key, shape, minval=-1 / codes, maxval=1 / codes)
        else:
            self.codebook = scale * jax.random.normal(key, shape)
        self.normalize = normalize

    @property
    def table(self) -> Float[Array, "codes dim"]:
        """The rows as they are used: of unit length if the quantiser normalises."""
        return unit(self.codebook) if self.normalize else self.codebook

    def __call__(self, latents: Float[Array, "*grid dim"]) -> Quantized:
        """Quantise every vector of a grid; distances and their argmin are float32 whatever the inputs."""
        latents = unit(latents) if self.normalize else latents
        table = self.table
        distances = squared_distances(latents, table)
        codes = jnp.argmin(distances, axis=-1).astype(jnp.int32)
        rows = table[codes].astype(latents.dtype)
        embeddings = latents + jax.lax.stop_gradient(rows - latents)
        return Quantized(codes, embeddings, rows, latents, distances)

    def lookup(self, codes: Int[Array, "*grid"]) -> Float[Array, "*grid dim"]:
        """The rows of given codes."""
        return self.table[codes]


def unit(x: Float[Array, "*grid dim"]) -> Float[Array, "*grid dim"]:
    """`x / max(|x|, 1e-6)` along the last axis; the gradient is finite at zero."""
    squared = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))).astype(x.dtype)


def squared_distances(
    latents: Float[Array, "*grid dim"], table: Float[Array, "codes dim"]
) -> Float[Array, "*grid codes"]:
    """`|z|^2 - 2 z.e + |e|^2` in float32: one matrix product, at full precision on every device."""
    z, e = latents.astype(jnp.float32), table.astype(jnp.float32)
    cross = jnp.matmul(z, e.T, precision=jax.lax.Precision.HIGHEST)
    rows = jnp.sum(jnp.square(e), axis=-1).reshape((1,) * (z.ndim - 1) + (-1,))
    return jnp.sum(jnp.square(z), axis=-1, keepdims=True) - 2 * cross + rows


def histogram(codes: Int[Array, "..."], size: int) -> Float[Array, " size"]:
    """How often each code occurs, as shares that sum to 1."""
    counts = jnp.zeros(size, jnp.float32).at[codes.reshape(-1)].add(1.0)
    return counts / max(codes.size, 1)


def perplexity(shares: Float[Array, " size"]) -> Float[Array, ""]:
    """`exp(-sum p log p)`: how many codes are in use, effectively; between 1 and `size`."""
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))


def usage(shares: Float[Array, " size"]) -> Float[Array, ""]:
    """The share of codes that occur at all, between 0 and 1."""
    return jnp.mean((shares > 0).astype(jnp.float32))
