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
    rates, vectors = _normal_modes(block)
    eigenvalues = -0.5 - 1j * rates[::-1]
    vectors = vectors[:, ::-1]
    if not conjugate:
        eigenvalues = np.concatenate([eigenvalues, eigenvalues[::-1].conj()])
        vectors = np.concatenate([vectors, vectors[:, ::-1].conj()], 1)
    vectors = np.kron(np.eye(blocks), vectors)
    return Hippo(np.tile(eigenvalues, blocks), vectors, vectors.conj().T)


def _normal_modes(size: int) -> tuple[Float64[np.ndarray, " half"], Complex128[np.ndarray, "{size} half"]]:
    """The positive w in ascending order, and unit v with `normal_matrix(size) v = (-1/2 - i w) v`, v_0 > 0.

    The matrix is `-1/2 I + S`, `S_nk = sign(k - n) p_n p_k / 2`. Differences of neighbouring rows of `S v = -i w v`
    tie each entry of v to the next by a factor that w alone sets, and with `a_n = arctan(2 w / p_n^2)`

        v_n = (-1)^n cos(a_n) / p_n * exp(-i (a_0 - 2 (a_0 + ... + a_{n-1}) - a_n)),
        a_0 + ... + a_{size-1} = (m + 1/2) pi,  m = 0, 1, ..., size/2 - 1.

    The sum grows with w, so that each m has one w, and half its slope is the square of the length of v. Newton's
    method therefore takes O(size^2) where a general eigensolver takes O(size^3): of 2048, a tenth of a second.
    """
    squares = 1.0 + 2 * np.arange(size)
    wanted = (np.arange(size // 2) + 0.5) * np.pi

    def angles(w: np.ndarray) -> np.ndarray:
        return np.arctan(2 * w[None, :] / squares[:, None])

    # The sum is at most w times its slope at 0, and at least size pi / 2 - size^2 / (2 w). A line between points
    # of a logarithmic grid is right to a thousandth, which Newton's steps square.
    grid = np.geomspace(np.pi / 4 / np.sum(1 / squares), size**2 / np.pi, 256)
    log_w = np.interp(wanted, angles(grid).sum(0), np.log(grid))
    for _ in range(4):
        a = angles(np.exp(log_w))
        log_w += (wanted - a.sum(0)) / (np.sin(2 * a) / 2).sum(0)
    w = np.exp(log_w)
    a = angles(w)
    phase = a[:1] - 2 * np.cumsum(a, 0) + a
    signs = np.where(np.arange(size) % 2, -1.0, 1.0)
    vectors = (signs / np.sqrt(squares))[:, None] * np.cos(a) * np.exp(-1j * phase)
    return w, vectors / np.linalg.norm(vectors, axis=0)


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
