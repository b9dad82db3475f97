"""HiPPO-LegS initialisation of diagonal state-space models (Gu et al., 2020; S5, Smith et al., 2023)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex128, Float, Float64, PRNGKeyArray


class Hippo(NamedTuple):
    """The diagonalised normal part of HiPPO-LegS, in conjugate-symmetric form unless it was asked for whole.

    `eigenvalues` are the half with negative imaginary parts (or all), `vectors` (V) maps the diagonal state to HiPPO's
    coordinates and `inverse` (V^H) back. Each column of V is defined up to a unit phase only.
    """

    eigenvalues: Complex128[np.ndarray, " state"]
    vectors: Complex128[np.ndarray, "size state"]
    inverse: Complex128[np.ndarray, "state size"]


def hippo_matrix(size: int) -> Float64[np.ndarray, "size size"]:
    """HiPPO-LegS: `A = -(tril(p p^T) - diag(n))` with `p_n = sqrt(1 + 2n)`."""
    n = np.arange(size)
    p = np.sqrt(1.0 + 2 * n)
    return -(np.tril(np.outer(p, p)) - np.diag(n.astype(np.float64)))


def normal_matrix(size: int) -> Float64[np.ndarray, "size size"]:
    """HiPPO-LegS plus its low-rank part, `S = A + P P^T` with `P_n = sqrt(n + 1/2)`."""
    p = np.sqrt(np.arange(size) + 0.5)
    return hippo_matrix(size) + np.outer(p, p)


@functools.lru_cache
def hippo(size: int, blocks: int = 1, conjugate: bool = True) -> Hippo:
    """Diagonalise `blocks` copies of HiPPO-LegS on the diagonal of a `size` x `size` matrix.

    Of each block the first half of the eigenvalues is kept, in ascending order of the imaginary part; all of them
    without `conjugate`.

    **Raises** `ValueError` if `size` is not an even multiple of `blocks`.
    """
    block, rest = divmod(size, blocks)
    if rest or block % 2:
        raise ValueError(f"a state of size {size} cannot be split into {blocks} blocks of equal, even size")
    normal = normal_matrix(block)
    real = np.mean(np.diagonal(normal))
    imaginary, vectors = np.linalg.eigh(-1j * normal)
    half = block // 2 if conjugate else block
    eye = np.eye(blocks)
    vectors = np.kron(eye, vectors[:, :half])
    return Hippo(np.tile(real + 1j * imaginary[:half], blocks), vectors, vectors.conj().T)


def input_planes(
    raw: Float[Array, "size *rest"], basis: Hippo
) -> tuple[Float[Array, "state *rest"], Float[Array, "state *rest"]]:
    """Real and imaginary part of `V^H raw`: an input matrix of HiPPO's coordinates in the diagonal ones."""
    re, im = (jnp.asarray(part, jnp.float32) for part in (np.real(basis.inverse), np.imag(basis.inverse)))
    return jnp.tensordot(re, raw, 1), jnp.tensordot(im, raw, 1)


def output_planes(
    raw: Float[Array, "*rest size"], basis: Hippo
) -> tuple[Float[Array, "*rest state"], Float[Array, "*rest state"]]:
    """Real and imaginary part of `raw V`: an output matrix of HiPPO's coordinates in the diagonal ones."""
    re, im = (jnp.asarray(part, jnp.float32) for part in (np.real(basis.vectors), np.imag(basis.vectors)))
    return jnp.tensordot(raw, re, 1), jnp.tensordot(raw, im, 1)


def log_steps(size: int, low: float, high: float, *, key: PRNGKeyArray) -> Float[Array, " {size}"]:
    """Logarithms of time steps, uniform between `log low` and `log high`."""
    return jax.random.uniform(key, (size,), minval=np.log(low), maxval=np.log(high))
