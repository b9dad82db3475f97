"""Reads and writes the msgpack files of flax (`flax.training.checkpoints`, `flax.serialization`) without flax.

Only plain maps, lists, strings, numbers and dense numeric arrays are understood; nothing in a file is executed.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from slotzoo.errors import WeightsError
from slotzoo.files import write_bytes


ARRAY, COMPLEX, SCALAR = 1, 2, 3  # flax's msgpack extension types
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
)
CHUNKED = "__msgpack_chunked_array__"
MOST_BYTES = 64 << 30
MOST_ARRAY_BYTES = 1 << 30


def read_flax(path: str | Path) -> dict[str, Any]:
    """The tree of a flax checkpoint file: nested dictionaries with numpy arrays as leaves.

    **Raises** `WeightsError` for a file that is not such a tree or holds anything but numbers.
    """
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"'{path}' is a folder; flax's legacy checkpoints are single msgpack files.")
    if path.stat().st_size > MOST_BYTES:
        raise WeightsError(f"'{path}' is larger than {MOST_BYTES >> 30} GiB, which no known checkpoint is.")
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, raw=False, strict_map_key=False)
        tree = _joined(tree)
    except WeightsError as error:
        raise WeightsError(f"'{path}': {error}") from error
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WeightsError(f"'{path}' is not a flax msgpack file ({type(error).__name__}: {error}).") from error
    if not isinstance(tree, dict):
        raise WeightsError(f"'{path}' holds a {type(tree).__name__}, not a tree of named arrays.")
    return tree


def flat(tree: dict[Any, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Nested dictionaries of arrays as one, keys joined by `/`."""
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{name}/")
        elif isinstance(value, np.ndarray):
            found[name] = value
        else:
            raise WeightsError(f"'{name}' is a {type(value).__name__}, not an array.")
    return found


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`flat` undone: a dictionary for every part of a path before its last."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *above, name = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[name] = array
    return tree


def write_flax(path: str | Path, tree: Mapping[str, Any]) -> Path:
    """Write nested dictionaries of arrays as flax does.

    **Raises** `WeightsError` for an array of more than a gibibyte, which flax would cut into chunks.
    """

    def packed(x: Any) -> Any:
        if isinstance(x, Mapping):
            return {str(key): packed(value) for key, value in x.items()}
        if x.nbytes > MOST_ARRAY_BYTES:
            raise WeightsError(f"an array of {x.nbytes} bytes cannot be written to '{path}': it is too large.")
        return msgpack.ExtType(ARRAY, msgpack.packb((x.shape, x.dtype.name, x.tobytes()), use_bin_type=True))

    content = msgpack.packb(packed(tree), use_bin_type=True)
    assert content is not None  # its type says that it may be
    return write_bytes(path, content)


def _extension(code: int, content: bytes) -> Any:
    if code in (ARRAY, SCALAR):
        array = _array(content)
        return array if code == ARRAY else array[()]
    raise WeightsError(f"it holds the msgpack extension type {code}; only arrays (1) and scalars (3) are read.")


def _array(content: bytes) -> np.ndarray:
    shape, name, data = msgpack.unpackb(content, raw=False, use_list=True)
    if name not in DTYPES:
        raise WeightsError(f"it holds an array of dtype {name!r}, which is not numeric.")
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise WeightsError(f"it holds an array of shape {shape!r}.")
    if name == "bfloat16":
        return (_buffer(data, np.dtype("<u2"), shape).astype(np.uint32) << 16).view(np.float32)
    return _buffer(data, np.dtype(name), shape)


def _buffer(data: bytes, dtype: np.dtype, shape: list[int]) -> np.ndarray:
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise WeightsError(
            f"it holds {len(data)} bytes for an array of shape {tuple(shape)} and dtype {dtype}."
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _joined(tree: Any) -> Any:
    """Put arrays of more than a gibibyte, which flax cuts into chunks, together again."""
    if not isinstance(tree, dict):
        return tree
    if CHUNKED not in tree:
        return {key: _joined(value) for key, value in tree.items()}
    try:
        shape = [int(tree["shape"][str(i)]) for i in range(len(tree["shape"]))]
        parts = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"it holds an array in chunks that lacks {error}.") from error
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts]).reshape(shape)
