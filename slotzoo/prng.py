"""Named random streams. Keys are derived, never stored, so that a resumed run draws the same numbers."""

import zlib

import jax
from jaxtyping import Array, Int, PRNGKeyArray


def stream(root: PRNGKeyArray, name: str, step: int | Int[Array, ""] | None = None) -> PRNGKeyArray:
    """Return `fold_in(fold_in(root, name), step)`: the key of the stream `name` at `step`.

    The name is folded in as its CRC-32, which is the same on every machine and Python version.
    """
    key = jax.random.fold_in(root, zlib.crc32(name.encode()))
    return key if step is None else jax.random.fold_in(key, step)
