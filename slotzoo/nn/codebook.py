"""TECO's latent codebook: unit-length rows, searched in a low-dimensional projection (Yan et al., 2023)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.nn.linear import Linear


class CodebookOutput(NamedTuple):
    """`embeddings` pass gradients straight through to the projection; `codes` are the chosen rows.

    `commitment` and `codebook` are the two losses (means), `perplexity` is exp of the entropy of the codes.
    """

    embeddings: Float[Array, "*batch dim"]
    codes: Int[Array, "*batch"]
    commitment: Float[Array, ""]
    codebook: Float[Array, ""]
    perplexity: Float[Array, ""]


class Codebook(eqx.Module):
    """`codes = argmin_k |z' - e_k|^2` with `z' = normalise(project_in(z))` and rows `e_k` of unit length."""

    table: Float[Array, "codes projected"]
    project_in: Linear
    project_out: Linear

    def __init__(self, codes: int, projected: int, dim: int, *, key: PRNGKeyArray):
        table_key, in_key, out_key = jax.random.split(key, 3)
        self.table = 0.02 * jax.random.normal(table_key, (codes, projected))
        self.project_in = Linear(dim, projected, bias=False, key=in_key)
        self.project_out = Linear(projected, dim, bias=False, key=out_key)

    def __call__(self, z: Float[Array, "*batch dim"]) -> CodebookOutput:
        rows = _normalised(self.table)
        z = _normalised(self.project_in(z))
        distances = 2 - 2 * z @ rows.T
        codes = jnp.argmin(distances, -1)
        chosen = rows[codes]
        square = lambda a, b: 0.5 * jnp.mean(jnp.square(a - jax.lax.stop_gradient(b)))
        used = jnp.zeros(len(rows)).at[codes.reshape(-1)].add(1 / codes.size)
        perplexity = jnp.exp(-jnp.sum(used * jnp.log(used + 1e-10)))
        straight = z + jax.lax.stop_gradient(chosen - z)
        return CodebookOutput(
            self.project_out(straight), codes, 0.25 * square(z, chosen), square(chosen, z), perplexity
        )

    def lookup(self, codes: Int[Array, "*batch"]) -> Float[Array, "*batch dim"]:
        """The embeddings of `codes`."""
        return self.project_out(_normalised(self.table)[codes])


def _normalised(x: Array) -> Array:
    x = x.astype(jnp.float32)
    # The norm's gradient is not defined at 0, hence the root of a clipped square.
    norm = jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
    return x / norm
