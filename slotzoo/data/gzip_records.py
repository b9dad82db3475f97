"""GZIP TFRecord files at random, and `tf.train.Example` messages with one string per byte.

Multi-Object Datasets stores a picture as a list of 230,400 strings of one byte. Each takes three bytes in the
message: tag, length 1, value. So the picture is every third byte of the list, and nothing needs decoding.

A GZIP file can only be read from the front; but the state of the decompression can be copied. A copy is kept at
evenly spaced records, so that later reads begin at the nearest copy before them.
"""

import os
import pathlib
import struct
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from slotzoo.data.tfrecord import masked_crc32c
from slotzoo.errors import DataError


_READ = 1 << 14  # compressed bytes read at once; a copy of the state keeps those that wait
_COPIES = 512  # of the decompression's state, about 64 kB each
_RECENT = 16  # records kept for threads that ask a little out of order


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number longer than ten bytes")


def _chunks(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Fields of a message as (number, content); only fields that state their length, as all of these do."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 != 2:
            raise ValueError(f"wire type {tag & 7} where a length was expected")
        length, position = _varint(data, position)
        if position + length > len(data):
            raise ValueError("a field that ends after its message")
        yield tag >> 3, data[position : position + length]
        position += length


def _bytes(data: memoryview) -> np.ndarray:
    """Strings of a BytesList put together, uint8."""
    x = np.frombuffer(data, np.uint8)
    if x.size % 3 == 0 and (x[0::3] == 10).all() and (x[1::3] == 1).all():
        return x[2::3]
    return np.frombuffer(b"".join(bytes(value) for _, value in _chunks(data)), np.uint8)


def _floats(data: memoryview) -> np.ndarray:
    x = np.frombuffer(data, np.uint8)
    if x.size % 5 == 0 and x.size and (x[0::5] == 13).all():  # one tag per number
        return np.ascontiguousarray(x.reshape(-1, 5)[:, 1:]).view("<f4").ravel()
    parts = [np.frombuffer(value, "<f4") for _, value in _chunks(data)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def parse_bytes_example(data: bytes, where: str, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Features `keys` of a `tf.train.Example`: uint8 vectors from byte lists, float32 from float lists."""
    wanted, found = set(keys), {}
    try:
        for _, features in _chunks(memoryview(data)):
            for _, entry in _chunks(features):
                parts = dict(_chunks(entry))
                name = bytes(parts[1]).decode()
                if name in wanted:
                    for kind, content in _chunks(parts[2]):
                        found[name] = _floats(content) if kind == 2 else _bytes(content)
    except (ValueError, IndexError, KeyError) as error:
        raise DataError(f"{where}: not a tf.train.Example of byte strings ({error}).") from error
    missing = sorted(wanted - set(found))
    if missing:
        raise DataError(f"{where}: no feature {missing[0]!r}; the file belongs to another data set.")
    return found


class _Stream:
    """Decompressed bytes from some place of a GZIP file on."""

    def __init__(self, path: pathlib.Path, offset: int = 0, state: Any = None):
        try:
            self.file = open(path, "rb")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        self._close = weakref.finalize(self, self.file.close)
        self.file.seek(offset)
        self.state = zlib.decompressobj(31) if state is None else state
        self.path = path

    def copy(self) -> tuple[int, Any]:
        """Where to open the file, and the state to go on from there."""
        return self.file.tell(), self.state.copy()

    def read(self, size: int) -> bytes:
        """So many bytes; fewer only at the end of the file."""
        parts, left = [], size
        try:
            while left:
                waiting = self.state.unconsumed_tail
                if self.state.eof:  # another member may follow
                    waiting = self.state.unused_data or self.file.read(_READ)
                    if not waiting:
                        break
                    self.state = zlib.decompressobj(31)
                elif not waiting:
                    waiting = self.file.read(_READ)
                part = self.state.decompress(waiting, left)
                if not part and not waiting and not self.state.eof:
                    raise DataError(f"{self.path}: the file is cut off; fetch it again.")
                parts.append(part)
                left -= len(part)
        except zlib.error as error:
            raise DataError(f"{self.path}: not a GZIP file, or damaged ({error}); fetch it again.") from error
        return b"".join(parts)

    def record(self, number: int) -> bytes | None:
        """Data of the record that begins here, None at the end of the file."""
        header = self.read(12)
        if not header:
            return None
        where = f"{self.path}, record {number}"
        if len(header) < 12:
            raise DataError(f"{where}: the file is cut off within it; fetch it again.")
        length, crc = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != crc:
            raise DataError(f"{where}: the checksum of its length is wrong; not a TFRecord file, or damaged.")
        data = self.read(length + 4)
        if len(data) != length + 4:
            raise DataError(f"{where}: the file is cut off within it; fetch it again.")
        return data[:-4]

    def close(self) -> None:
        self._close()


class GzipRecords:
    """Records of a GZIP TFRecord file by number. Fast in order; at random, a part is decompressed for each.

    Picklable and safe in threads and after a fork. `count` is the number of records, where it is known: it sets
    how far apart the copies of the decompression's state lie. The data's own checksums are not compared, which
    would take longer than everything else. GZIP has one over the whole file, at its end: only a `scan` without a
    `limit` below the number of records gets there. Reading single records notices what cannot be decompressed, no more.
    """

    def __init__(self, path: str | pathlib.Path, count: int = 0):
        self.path, self.count = pathlib.Path(path), count
        self._forget()

    def _forget(self) -> None:
        self._lock, self._process = threading.Lock(), os.getpid()
        self._stream: _Stream | None = None
        self._next = 0
        self._copies: dict[int, tuple[int, Any]] = {}
        self._recent: OrderedDict[int, bytes] = OrderedDict()

    def scan(self, read: Callable[[int, bytes], None], limit: int | None = None) -> int:
        """Call `read(number, data)` for every record, or the first `limit`, in order; return how many.

        To the end of the file it also compares GZIP's checksum. **Raises** `DataError` where that is wrong, or the
        file is cut off.
        """
        stream = _Stream(self.path)
        try:
            number = 0
            while limit is None or number < limit:
                data = stream.record(number)
                if data is None:
                    break
                read(number, data)
                number += 1
            return number
        finally:
            stream.close()

    def __getitem__(self, number: int) -> bytes:
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            if number in self._recent:
                return self._recent[number]
            spacing = max(1, self.count // _COPIES)
            start = max((at for at in self._copies if at <= number), default=0)
            if self._stream is None or number < self._next or start > self._next:
                self._open(start)
            while True:
                stream, at = self._stream, self._next
                assert stream is not None
                if at % spacing == 0 and at not in self._copies and len(self._copies) < 2 * _COPIES:
                    self._copies[at] = stream.copy()
                self._stream = None  # after an error its place is unknown
                data = stream.record(at)
                self._stream = stream
                if data is None:
                    raise DataError(f"{self.path}: no record {number}, the file ends after {at}.")
                self._next = at + 1
                if number - at < _RECENT:
                    self._recent[at] = data
                    while len(self._recent) > _RECENT:
                        self._recent.popitem(last=False)
                if at == number:
                    return data

    def _open(self, start: int) -> None:
        if self._stream is not None:
            self._stream.close()
        if start in self._copies:
            offset, state = self._copies[start]
            self._stream = _Stream(self.path, offset, state.copy())
        else:
            self._stream = _Stream(self.path)
        self._next = start

    def close(self) -> None:
        """Close the file and forget what was kept."""
        if self._stream is not None and self._process == os.getpid():
            self._stream.close()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "count": self.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.count = state["path"], state["count"]
        self._forget()
