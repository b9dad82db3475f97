"""TFRecord files and `tf.train.Example` messages without TensorFlow.

A TFRecord is: length (8 bytes), masked CRC-32C of it (4), data, masked CRC-32C of the data (4), all
little-endian.
"""

import functools
import os
import pathlib
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from slotzoo.errors import DataError


_POLYNOMIAL = 0x82F63B78  # Castagnoli, reflected
_LANE = 64  # bytes that one lane of the checksum goes through; measured: 150 to 300 MB/s


@functools.cache
def _table() -> np.ndarray:
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = np.where(crc & 1, (crc >> 1) ^ np.uint32(_POLYNOMIAL), crc >> 1).astype(np.uint32)
    return crc


@functools.cache
def _shift_tables(size: int) -> np.ndarray:
    """(4, 256): what `size` zero bytes do to each byte of a checksum; XOR of the four gives the whole.

    Feeding zeros is linear over GF(2), so twice as many zeros is the map applied to itself.
    """
    values = np.arange(256, dtype=np.uint32)
    if size == 1:
        table = _table()
        tables = [table[values], *(values << np.uint32(8 * (byte - 1)) for byte in (1, 2, 3))]
        return np.stack(tables)
    half = _shift_tables(size // 2)
    return np.stack([_apply(half, half[byte]) for byte in range(4)])


def _apply(tables: np.ndarray, crc: np.ndarray) -> np.ndarray:
    out = tables[0][crc & np.uint32(255)]
    for byte in (1, 2, 3):
        out = out ^ tables[byte][(crc >> np.uint32(8 * byte)) & np.uint32(255)]
    return out


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli). Long data go through many lanes side by side, which are then joined pairwise."""
    x = np.frombuffer(data, np.uint8)
    table = _table()
    if x.size < 4 * _LANE:
        crc = 0xFFFFFFFF
        small = table.tolist()
        for byte in x.tolist():
            crc = small[(crc ^ byte) & 255] ^ (crc >> 8)
        return crc ^ 0xFFFFFFFF
    # A start value of 0xFFFFFFFF is the same as flipping the first four bytes; leading zeros then do nothing.
    lanes = 1 << (-(-x.size // _LANE) - 1).bit_length()
    padded = np.zeros(lanes * _LANE, np.uint8)
    padded[-x.size :] = x
    padded[lanes * _LANE - x.size :][:4] ^= 0xFF
    columns = np.ascontiguousarray(padded.reshape(lanes, _LANE).T)
    crcs = np.zeros(lanes, np.uint32)
    for column in columns:
        crcs = table[(crcs & np.uint32(255)) ^ column] ^ (crcs >> np.uint32(8))
    size = _LANE
    while len(crcs) > 1:
        crcs = _apply(_shift_tables(size), crcs[0::2]) ^ crcs[1::2]
        size *= 2
    return int(crcs[0]) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class Place(NamedTuple):
    """Where the data of a record lie; a `problem` says why they cannot be read."""

    offset: int
    length: int
    problem: str | None = None


def index_file(path: pathlib.Path) -> list[Place]:
    """Places of all records, from the headers alone. A file that was cut off ends with a place with a
    problem."""
    places: list[Place] = []
    try:
        total = os.path.getsize(path)
        with open(path, "rb") as file:
            position = 0
            while position < total:
                header = file.read(12)
                if len(header) < 12:
                    places.append(Place(position, 0, "the file is cut off within a header"))
                    break
                length, crc = struct.unpack("<QI", header)
                if masked_crc32c(header[:8]) != crc:
                    places.append(Place(position, 0, "the checksum of its length is wrong, the file ends here"))
                    break
                if position + 16 + length > total:
                    places.append(Place(position + 12, length, "the file is cut off within it"))
                    break
                places.append(Place(position + 12, length))
                position += 16 + length
                file.seek(position)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    return places


def read_at(path: pathlib.Path, place: Place, where: str) -> bytes:
    """Data of one record, checked against its checksum."""
    if place.problem is not None:
        raise DataError(f"{where}: {place.problem}; fetch the file again or use on_error=skip.")
    try:
        with open(path, "rb") as file:
            file.seek(place.offset)
            data = file.read(place.length + 4)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}).") from error
    if len(data) != place.length + 4:
        raise DataError(f"{where}: the file is cut off within it; fetch the file again or use on_error=skip.")
    if masked_crc32c(memoryview(data)[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise DataError(f"{where}: wrong checksum; fetch the file again or use on_error=skip.")
    return data[:-4]


def framed(data: bytes) -> bytes:
    """A record as it lies in a file: its data with length and checksums."""
    length = struct.pack("<Q", len(data))
    return b"".join(
        (length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data)))
    )


def write_file(path: pathlib.Path, records: Iterable[bytes]) -> int:
    """Write a TFRecord file; return the number of records."""
    count = 0
    with open(path, "wb") as file:
        for data in records:
            file.write(framed(data))
            count += 1
    return count


@functools.cache
def _example_class() -> Any:
    """The class of `tf.train.Example`, built from a description of its fields instead of generated code."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="slotzoo_example.proto", package="slotzoo", syntax="proto3")

    def message(name: str) -> Any:
        return file.message_type.add(name=name)

    def add(owner: Any, name: str, number: int, kind: int, repeated: bool = False, **more: Any) -> None:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        owner.field.add(name=name, number=number, type=kind, label=label, **more)

    kinds = (("bytes", field.TYPE_BYTES), ("float", field.TYPE_FLOAT), ("int64", field.TYPE_INT64))
    for name, kind in kinds:
        add(message(f"{name.title()}List"), "value", 1, kind, repeated=True)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(kinds, 1):
        type_name = f".slotzoo.{name.title()}List"
        add(feature, f"{name}_list", number, field.TYPE_MESSAGE, type_name=type_name, oneof_index=0)
    features = message("Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, type_name=".slotzoo.Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, True, type_name=".slotzoo.Features.FeatureEntry")
    add(message("Example"), "features", 1, field.TYPE_MESSAGE, type_name=".slotzoo.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("slotzoo.Example"))


Features = dict[str, np.ndarray | list[bytes]]


def parse_example(data: bytes, where: str, keys: Iterable[str] | None = None) -> Features:
    """Fields of a `tf.train.Example`: int64 or float32 vectors, or lists of bytes; with `keys` only those."""
    from google.protobuf.message import DecodeError

    try:
        feature = _example_class().FromString(data).features.feature
    except DecodeError as error:
        raise DataError(f"{where}: not a tf.train.Example message ({error}).") from error
    wanted = set(feature) if keys is None else set(keys) & set(feature)
    found: Features = {}
    for name in sorted(wanted):
        kind = feature[name].WhichOneof("kind")
        if kind == "int64_list":
            found[name] = np.asarray(feature[name].int64_list.value, np.int64)
        elif kind == "float_list":
            found[name] = np.asarray(feature[name].float_list.value, np.float32)
        else:
            found[name] = list(feature[name].bytes_list.value)
    return found


def byte_strings(x: np.ndarray) -> list[bytes]:
    """One string per byte, as Multi-Object Datasets stores pictures."""
    return [bytes([b]) for b in np.asarray(x, np.uint8).ravel().tolist()]


def build_example(features: Features) -> bytes:
    """The message with these fields; integers become int64 lists, floats float lists."""
    example = _example_class()()
    for name, value in features.items():
        entry = example.features.feature[name]
        if isinstance(value, list):
            entry.bytes_list.value.extend(value)
        elif np.issubdtype(value.dtype, np.integer):
            entry.int64_list.value.extend(value.ravel().tolist())
        else:
            entry.float_list.value.extend(value.ravel().tolist())
    return example.SerializeToString(deterministic=True)
