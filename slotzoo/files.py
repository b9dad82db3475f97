"""Writing files whole: a reader, or what is left after a crash, has the old file or the new one, never a part."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def beside(path: Path) -> Path:
    """A hidden name in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """The name of a new file beside `path`, which takes its place unless the block raises; makes the folder.

    `durable` waits until the disk has it, so that it also outlasts a loss of power. A process that is killed inside
    the block leaves a file `.<name>.<random>.tmp` behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes, *, durable: bool = False) -> Path:
    """Write a file; see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str, *, durable: bool = False) -> Path:
    """Write a text file in UTF-8; see `replacing`."""
    return write_bytes(path, text.encode(), durable=durable)


def write_npz(path: str | Path, **arrays: np.ndarray) -> Path:
    """Write named arrays, compressed; see `replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return Path(path)


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """What to sort names by so that numbers in them count as numbers: clip_2 before clip_10."""
    parts = re.split(r"(\d+)", name)  # text and numbers take turns
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)], name
