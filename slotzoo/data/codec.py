"""A record as bytes: a JSON header and the raw arrays, read back without a copy."""

import json
import struct

import numpy as np

from slotzoo.data.spec import Record
from slotzoo.errors import DataError


_MAGIC = b"SZR1"
_ALIGN = 16


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def encode(record: Record) -> bytes:
    """Fields in sorted order, so that equal records are equal bytes; little-endian, C order."""
    arrays = {name: np.asarray(record[name], order="C") for name in sorted(record)}
    arrays = {name: x.astype(x.dtype.newbyteorder("<"), copy=False) for name, x in arrays.items()}
    header = json.dumps([[name, x.dtype.str, x.shape] for name, x in arrays.items()]).encode()
    parts = [_MAGIC, struct.pack("<I", len(header)), header]
    parts.append(bytes(_padded(8 + len(header)) - 8 - len(header)))
    for x in arrays.values():
        parts += [x.tobytes(), bytes(_padded(x.nbytes) - x.nbytes)]
    return b"".join(parts)


def decode(data: bytes, where: str) -> Record:
    """Read-only views into `data`. Anything unexpected is a `DataError` that starts with `where`."""
    try:
        if data[:4] != _MAGIC:
            raise ValueError(f"it begins with {data[:4]!r}, not {_MAGIC!r}")
        (length,) = struct.unpack_from("<I", data, 4)
        header = json.loads(data[8 : 8 + length])
        record, offset = {}, _padded(8 + length)
        for name, dtype, shape in header:
            kind = np.dtype(dtype)
            if kind.hasobject:
                raise ValueError(f"field {name!r} claims to hold Python objects")
            count = int(np.prod(shape, dtype=np.int64))
            record[name] = np.frombuffer(data, kind, count, offset).reshape(shape)
            offset += _padded(count * kind.itemsize)
        if offset != len(data):
            raise ValueError(f"it has {len(data)} bytes, its header asks for {offset}")
        return record
    except (ValueError, TypeError, struct.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{where}: not a record of slotzoo ({error}); prepare the data set again or use on_error=skip."
        ) from error
