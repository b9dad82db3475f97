"""TFRecord and tf.train.Example, against known checksums and bytes."""

import struct

import numpy as np
import pytest
from hypothesis import given, strategies as st

from slotzoo.data.tfrecord import (
    build_example,
    crc32c,
    index_file,
    masked_crc32c,
    parse_example,
    read_at,
    write_file,
)
from slotzoo.errors import DataError


@pytest.mark.parametrize(
    "data, expected",
    [
        # RFC 3720, section B.4, and the usual check value of the polynomial.
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_of_published_vectors(data, expected):
    assert crc32c(data) == expected


@pytest.mark.parametrize("size", [255, 256, 257, 4096, 5000, 65537])
def test_the_wide_form_equals_the_plain_one(size):
    data = np.random.default_rng(size).integers(256, size=size, dtype=np.uint8).tobytes()
    crc, table = 0xFFFFFFFF, [crc32c_of_byte(i) for i in range(256)]
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def crc32c_of_byte(byte):
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


@pytest.mark.parametrize("data", [b"", b"abc", struct.pack("<Q", 1234), bytes(3000)])
def test_mask_is_that_of_tensorboard_files(data):
    writer = pytest.importorskip("tensorboardX.record_writer", reason="the extra `log` is not installed")
    assert masked_crc32c(data) == writer.masked_crc32c(data)


@given(records=st.lists(st.binary(max_size=50), max_size=6))
def test_files_are_read_back_at_random(records, tmp_path_factory):
    path = tmp_path_factory.mktemp("tfrecord") / "x.tfrecord"
    assert write_file(path, records) == len(records)
    places = index_file(path)
    assert [read_at(path, place, "here") for place in reversed(places)] == records[::-1]


def test_grain_reads_our_files(tmp_path):
    import grain

    records = [b"", b"one", bytes(5000)]
    write_file(tmp_path / "x.tfrecord", records)
    assert list(grain.experimental.TFRecordIterDataset(str(tmp_path / "x.tfrecord"))) == records


@given(
    numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
    reals=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5),
    texts=st.lists(st.binary(max_size=9), min_size=1, max_size=4),
)
def test_examples_are_read_back(numbers, reals, texts):
    made = {"n": np.asarray(numbers, np.int64), "r": np.asarray(reals, np.float32), "t": texts}
    found = parse_example(build_example(made), "here")
    assert (
        np.array_equal(found["n"], made["n"]) and np.array_equal(found["r"], made["r"]) and found["t"] == texts
    )
    assert set(parse_example(build_example(made), "here", keys=["n", "absent"])) == {"n"}


def test_an_example_is_the_bytes_that_tensorflow_writes():
    # tf.train.Example with feature {"a": int64_list [1, 300]}, spelled out by hand from the wire format.
    wire = bytes.fromhex("0a0e" + "0a0c" + "0a0161" + "1207" + "1a05" + "0a03" + "01ac02")
    assert build_example({"a": np.array([1, 300])}) == wire
    assert parse_example(wire, "here")["a"].tolist() == [1, 300]


def test_garbage_is_refused():
    with pytest.raises(DataError, match="here: not a tf.train.Example"):
        parse_example(b"\xff\xff\xff", "here")
    with pytest.raises(DataError, match="no-such.tfrecord: cannot be read"):
        import pathlib

        index_file(pathlib.Path("no-such.tfrecord"))
