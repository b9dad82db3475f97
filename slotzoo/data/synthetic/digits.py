"""Handwritten digits: the user's MNIST files where there are some, else the 1,000 that ship with the package.

Licence and origin of the shipped ones: `assets/NOTICE`.
"""

import functools
import gzip
import hashlib
import pathlib
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from slotzoo.errors import DataError


_FILE = pathlib.Path(__file__).parent / "assets" / "mnist_1000_digits.npz"
SIDE = 28
# As Yann LeCun's page names the file, as some copies do, and where torchvision puts it.
_NAMES = tuple(
    f"{folder}{name}{suffix}"
    for folder in ("", "raw/", "MNIST/raw/")
    for name in ("train-images-idx3-ubyte", "train-images.idx3-ubyte")
    for suffix in ("", ".gz")
)
_MAGIC = 0x803  # unsigned bytes, three axes


def find_idx(folder: str | pathlib.Path) -> pathlib.Path | None:
    """The file of MNIST's training images in a folder, None where there is none."""
    folder = pathlib.Path(folder).expanduser()
    return next((path for name in _NAMES if (path := folder / name).is_file()), None)


def read_idx(path: str | pathlib.Path) -> UInt8[np.ndarray, "digit 28 28"]:
    """The images of an IDX file, gzipped or not. Raises `DataError` for anything else."""
    path = pathlib.Path(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        magic, count, rows, columns = struct.unpack_from(">4i", data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path}: cannot be read as MNIST images ({error}); fetch the file again.") from error
    if magic != _MAGIC or (rows, columns) != (SIDE, SIDE):
        raise DataError(
            f"{path}: not the images of MNIST: it begins with {magic:#x} and a size of {rows} x {columns}, "
            f"expected {_MAGIC:#x} and {SIDE} x {SIDE}."
        )
    if count < 1 or len(data) != 16 + count * SIDE * SIDE:
        raise DataError(
            f"{path}: has {len(data)} bytes, {count} images need {16 + count * SIDE * SIDE}; fetch the file again."
        )
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, SIDE, SIDE)


@functools.lru_cache(maxsize=4)
def digits(mnist: str | None = None, side: int = SIDE) -> UInt8[np.ndarray, "digit side side"]:
    """All digits at `side` x `side` pixels, each the mean over the area it covers.

    `mnist` is a folder with MNIST's training images (IDX), None takes the shipped 1,000.
    """
    if mnist is None:
        with np.load(_FILE) as file:
            images = file["x"]
    else:
        images = read_idx(idx_of(mnist))
    if side != SIDE:
        size = (side, side)
        images = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BOX)) for x in images])
    images.setflags(write=False)
    return images


@functools.lru_cache(maxsize=4)
def digits_hash(mnist: str | None = None) -> str:
    """SHA-256 of the digits' file: part of the identity of every video made from it."""
    return hashlib.sha256((_FILE if mnist is None else idx_of(mnist)).read_bytes()).hexdigest()


def idx_of(mnist: str) -> pathlib.Path:
    """The file of MNIST's training images in a folder. Raises `DataError` where there is none."""
    path = find_idx(mnist)
    if path is None:
        raise DataError(f"{mnist} holds none of {', '.join(_NAMES[:4])}: no training images of MNIST.")
    return path
