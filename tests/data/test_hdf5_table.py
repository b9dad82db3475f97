"""Records of HDF5 files at random; and files that are damaged."""

import sys

import numpy as np
import pytest

from slotzoo.data import make_pipeline, open_source
from slotzoo.data.sources import hdf5
from slotzoo.data.sources.hdf5 import Hdf5Table
from slotzoo.errors import DataError
from tests.data.image_files import write_hdf5


def test_a_truncated_hdf5_file_is_a_sentence(tetrominoes, tmp_path):
    data = (tetrominoes / "tetrominoes.h5").read_bytes()
    path = tmp_path / "tetrominoes.h5"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="tetrominoes.h5 is cut off or not an HDF5 file.*fetch it again"):
        open_source("tetrominoes", "train", root=path)
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="is cut off or not an HDF5 file"):
        open_source("tetrominoes", "train", root=path)


def test_a_damaged_hdf5_record_is_a_sentence_or_skipped(tmp_path):
    path = tmp_path / "3dshapes.h5"
    images = np.random.default_rng(0).integers(256, size=(6, 64, 64, 3)).astype(np.uint8)
    arrays = {"images": images, "labels": np.zeros((6, 6))}
    write_hdf5(path, arrays, chunks=None)
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(1, 64, 64, 3), compression="gzip")
        file.create_dataset("labels", data=arrays["labels"])
        offset = file["images"].id.get_chunk_info(2).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(64))
    source = open_source("shapes3d", "train", root=path)
    assert np.array_equal(source[1]["image"], images[1])
    with pytest.raises(DataError, match="'images', record 2: cannot be read"):
        source[2]
    batches = make_pipeline(source, batch_size=6, seed=0, train=False, on_error="skip")
    assert next(iter(batches))["valid"].tolist() == [True, True, False, True, True, True]


def test_chunks_of_many_records_are_unpacked_once(tmp_path, caplog, monkeypatch):
    images = np.random.default_rng(0).integers(256, size=(200, 64, 64, 3)).astype(np.uint8)
    path = write_hdf5(tmp_path / "images.h5", {"images": images}, chunks=(80, 32, 16, 1), compression="gzip")
    import h5py

    reads = []
    read = h5py.Dataset.__getitem__
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda self, *a: reads.append(a) or read(self, *a))
    table = Hdf5Table(path)
    for row in range(200):
        assert np.array_equal(table.read("images", row), images[row])
    assert len(reads) == 3 and "chunks of 80 records, slow to read at random" in caplog.text
    for row in (79, 80, 79, 80):
        table.read("images", row)
    assert len(reads) == 5  # both sides of a border are kept
    monkeypatch.setattr(hdf5, "_BLOCK", 10 * images[0].nbytes)
    assert np.array_equal(Hdf5Table(path).read("images", 123), images[123])
    assert reads[-1] == (slice(120, 130),)


def test_a_damaged_chunk_of_several_records_costs_those(tmp_path):
    import h5py

    path, images = tmp_path / "images.h5", np.arange(6 * 4, dtype=np.uint8).reshape(6, 4)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", data=images, chunks=(3, 2), compression="gzip")
        offset = data.id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(8))
    table = Hdf5Table(path)
    for row in range(6):
        if row < 3:
            with pytest.raises(DataError, match=f"'x', record {row}: cannot be read"):
                table.read("x", row)
        else:
            assert np.array_equal(table.read("x", row), images[row])


def test_hdf5_without_h5py_is_a_sentence(tetrominoes, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"needs h5py, pip install 'slotzoo\[hdf5\]'"):
        Hdf5Table(tetrominoes / "tetrominoes.h5")


def test_damaged_headers_are_sentences(tmp_path):
    import h5py

    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        header = h5py.h5o.get_info(file.create_dataset("image", data=np.zeros((2, 3))).id).addr
    intact = path.read_bytes()
    path.write_bytes(intact[:header] + b"\xff" * 16 + intact[header + 16 :])
    table = Hdf5Table(path)
    for ask in (lambda: table.shape("image"), lambda: table.read("image", 0)):
        with pytest.raises(DataError, match=r"a.h5, 'image': cannot be read .*the file is damaged"):
            ask()
    table.close()
    path.write_bytes(intact.replace(b"SNOD", b"SNUD"))
    with pytest.raises(DataError, match=r"a.h5: cannot be read .*the file is damaged"):
        Hdf5Table(path)
