"""Records of GZIP TFRecords at random; and files that are damaged."""

import os
import shutil

import numpy as np
import pytest

from slotzoo.data import open_source
from slotzoo.data.gzip_records import GzipRecords, parse_bytes_example
from slotzoo.data.tfrecord import build_example, byte_strings
from slotzoo.errors import DataError
from tests.data.image_files import COUNT, write_gzip


def test_records_are_counted_once(tetrominoes, tmp_path, monkeypatch):
    path = shutil.copy(tetrominoes / "tetrominoes_train.tfrecords", tmp_path)
    scans = []
    scan = GzipRecords.scan
    monkeypatch.setattr(GzipRecords, "scan", lambda self, *a: scans.append(1) or scan(self, *a))
    for _ in range(2):
        assert len(open_source("tetrominoes", "train", root=path, cache=tmp_path)) == COUNT
    assert len(scans) == 1
    os.utime(path, (1, 1))  # another file, for all one can tell
    open_source("tetrominoes", "train", root=path, cache=tmp_path)
    assert len(scans) == 2
    for index in (tmp_path / "index").iterdir():
        index.write_bytes(b"torn")
    assert len(open_source("tetrominoes", "train", root=path, cache=tmp_path)) == COUNT
    (tmp_path / "file").touch()
    assert len(open_source("tetrominoes", "train", root=path, cache=tmp_path / "file")) == COUNT


def test_a_gzip_file_of_several_members_is_one_file(tetrominoes, tmp_path):
    data = (tetrominoes / "tetrominoes_train.tfrecords").read_bytes()
    (tmp_path / "twice").write_bytes(data + data)
    records = GzipRecords(tmp_path / "twice", 2 * COUNT)
    assert records[COUNT + 2] == records[2]


@pytest.mark.parametrize("count", [COUNT, 5000])
def test_gzip_records_at_random_equal_those_in_order(tetrominoes, count):
    """With copies of the state at every record, and (a count that is too high) at few."""
    path = tetrominoes / "tetrominoes_train.tfrecords"
    inorder = []
    assert GzipRecords(path).scan(lambda number, data: inorder.append(data)) == COUNT
    records = GzipRecords(path, count)
    for i in np.random.default_rng(0).permutation(np.tile(np.arange(COUNT), 3)):
        records._recent.clear()
        assert records[int(i)] == inorder[i]
    with pytest.raises(DataError, match=f"no record {COUNT}, the file ends after {COUNT}"):
        records[COUNT]


def test_byte_features_are_those_of_the_message():
    values = np.arange(256, dtype=np.uint8)
    floats = np.asarray([0.5, -2.0], np.float32)
    data = build_example(
        {"a": byte_strings(values), "b": floats, "c": [bytes(values)], "d": [b"xy", b"", b"z"]}
    )
    found = parse_bytes_example(data, "here", ("a", "b", "c", "d"))
    np.testing.assert_array_equal(found["a"], values)
    np.testing.assert_array_equal(found["b"], floats)
    np.testing.assert_array_equal(found["c"], values)
    assert bytes(found["d"]) == b"xyz"
    with pytest.raises(DataError, match="here: no feature 'e'"):
        parse_bytes_example(data, "here", ("e",))
    for broken in (data[:-3], b"\xff" * 20, b"\x08\x01"):
        with pytest.raises(DataError, match="here: not a tf.train.Example"):
            parse_bytes_example(broken, "here", ("a",))


def test_damaged_gzip_files_are_sentences(tetrominoes, tmp_path):
    data = (tetrominoes / "tetrominoes_train.tfrecords").read_bytes()
    path = tmp_path / "tetrominoes_train.tfrecords"
    for content, message in (
        (data[: len(data) // 2], "the file is cut off"),
        (b"TFRecord, but not compressed", "not a GZIP file, or damaged"),
        (data[:-8] + bytes(8), "not a GZIP file, or damaged"),
        (b"", "cut off"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_source("tetrominoes", "train", root=path)
    write_gzip(path, [b"no message"])
    with pytest.raises(DataError, match="record 0: not a tf.train.Example"):
        open_source("tetrominoes", "train", root=path)
    write_gzip(path, [build_example({"visibility": np.ones(11, np.float32)})])
    with pytest.raises(DataError, match="11 entities, tetrominoes has 4"):
        open_source("tetrominoes", "train", root=path)
