"""Readers of image sets: at random, in threads and processes; filters and splits; and files that are wrong."""

import concurrent.futures
import os
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from slotzoo.data import index_cache, list_sources, make_pipeline, open_source, prepare, verify
from slotzoo.data.gzip_records import GzipRecords, parse_bytes_example
from slotzoo.data.image_sets import IMAGE_SETS
from slotzoo.data.sources import hdf5, picture_sets
from slotzoo.data.sources.hdf5 import Hdf5Table
from slotzoo.data.spec import Source, check_record
from slotzoo.data.synthetic.clevr import COLORS, MATERIALS, SHAPES, SIZES, TARGET
from slotzoo.data.tfrecord import build_example
from slotzoo.errors import ConfigError, DataError
from tests.data.image_files import (
    byte_strings,
    write_clevr,
    write_clevrtex,
    write_gzip,
    write_hdf5,
    write_tetrominoes,
)


COUNT = 12


def double(**options):
    return open_source("tetrominoes", "train", clips=COUNT, **options)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_tetrominoes(folder / "tetrominoes_train.tfrecords", double())
    write_tetrominoes(folder / "tetrominoes.h5", double())
    return folder


@pytest.fixture(params=["tetrominoes_train.tfrecords", "tetrominoes.h5"])
def published(request, folder):
    return folder / request.param


def test_both_published_forms_give_the_records(published):
    source = open_source("tetrominoes", "train", root=published)
    assert isinstance(source, Source) and source.provenance == "real" and len(source) == COUNT
    for i in (5, 0, 11, 3):
        check_record(source[i], source.spec, "image")
        assert equal(source[i], double()[i])


def test_a_source_is_read_by_threads_and_copies(published):
    source = open_source("tetrominoes", "train", root=published)
    copy = pickle.loads(pickle.dumps(source))
    wanted = [double()[i]["image"] for i in range(COUNT)]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(COUNT), 4))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: source[int(i)]["image"], order))
    assert all(np.array_equal(image, wanted[i]) for image, i in zip(found, order, strict=True))
    assert equal(copy[7], source[7])
    source.close()
    assert equal(source[2], copy[2])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_source_is_read_after_a_fork(published):
    source = open_source("tetrominoes", "train", root=published)
    expected = source[4]["image"]
    # A lock that another thread holds during the fork stays locked in the child for ever.
    lock = source.files.table._lock if source.files.table is not None else source.files.records._lock
    held, release = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = bool(np.array_equal(source[4]["image"], expected))
        finally:
            os.write(writing, b"1" if same else b"0")
            os._exit(0)
    release.set()
    thread.join()
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    os.close(writing)
    assert np.array_equal(source[4]["image"], expected)


def test_batches_hold_images_masks_and_what_is_visible(published):
    source = open_source("tetrominoes", "train", root=published, size=24)
    batch = next(iter(make_pipeline(source, batch_size=4, seed=1, train=True)))
    assert batch["image"].shape == (4, 24, 24, 3) and batch["image"].dtype == np.uint8
    assert batch["mask"].shape == (4, 24, 24) and batch["visible"].shape == (4, 3)


def test_prepared_sets_hold_what_was_asked_for(published, tmp_path):
    source = open_source("tetrominoes", "train", root=published, size=20)
    prepare(source, tmp_path / "train", workers=3)
    found = open_source("tetrominoes", "train", root=tmp_path, size=20)
    assert len(found) == COUNT and all(equal(found[i], source[i]) for i in range(COUNT))
    assert found.fingerprint == source.fingerprint and verify(tmp_path / "train") == COUNT
    assert len(open_source("tetrominoes", "train", root=tmp_path)) == COUNT  # nothing asked, nothing to refuse
    for option, value, message in (
        ("size", 21, "was prepared with size=20, not 21; prepare it again with size=21"),
        ("max_objects", 2, "was prepared with max_objects=None, not 2"),
    ):
        with pytest.raises(DataError, match=message):
            open_source("tetrominoes", "train", root=tmp_path, **{option: value})
    with pytest.raises(DataError, match="holds another data set"):
        prepare(open_source("tetrominoes", "train", root=published, size=21), tmp_path / "train")


def test_records_are_counted_once(folder, tmp_path, monkeypatch):
    path = shutil.copy(folder / "tetrominoes_train.tfrecords", tmp_path)
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


def test_the_index_is_kept_under_its_whole_key(tmp_path):
    made = []

    def get(*key):
        return index_cache.remembered(tmp_path, key, lambda: made.append(key) or {"x": np.asarray(len(made))})

    assert get("a", [1, 2])["x"] == 1 and get("a", [1, 2])["x"] == 1
    assert get("a", [1, 3])["x"] == 2 and get("b", [1, 2])["x"] == 3


def test_a_gzip_file_of_several_members_is_one_file(folder, tmp_path):
    data = (folder / "tetrominoes_train.tfrecords").read_bytes()
    (tmp_path / "twice").write_bytes(data + data)
    records = GzipRecords(tmp_path / "twice", 2 * COUNT)
    assert records[COUNT + 2] == records[2]


@pytest.mark.parametrize("count", [COUNT, 5000])
def test_gzip_records_at_random_equal_those_in_order(folder, count):
    """With copies of the state at every record, and (a count that is too high) at few."""
    path = folder / "tetrominoes_train.tfrecords"
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


def visible_file(path, visible, entities=11, height=240, width=320):
    """CLEVR with masks, all black, with so many objects in each record."""
    n = len(visible)
    masks = np.zeros((n, entities, height, width, 1), np.uint8)
    masks[:, 0] = 255
    flags = np.zeros((n, entities), np.float32)
    for i, objects in enumerate(visible):
        flags[i, 0] = 1
        flags[i, list(objects)] = 1
        for k in objects:
            masks[i, 0, 100 + k] = 0
            masks[i, k, 100 + k] = 255
    images = np.zeros((n, height, width, 3), np.uint8)
    return write_hdf5(path, {"image": images, "mask": masks, "visibility": flags}, compression="gzip")


def test_clevr6_means_six_objects(tmp_path):
    path = visible_file(tmp_path / "clevr_with_masks.h5", [range(1, 6), range(1, 7), range(1, 8)])
    right = open_source("clevr_with_masks", "train", root=path, max_objects=6)
    assert right.rows.tolist() == [0, 1] and right.spec["visible"].shape == (6,)
    seed = open_source("clevr_with_masks", "train", root=path, max_objects=6, seed_counting=True)
    assert seed.rows.tolist() == [0] and seed.spec["visible"].shape == (5,)
    with pytest.raises(DataError, match="no image of clevr_with_masks has at most 4 objects; the fewest are 5"):
        open_source("clevr_with_masks", "train", root=path, max_objects=4)
    with pytest.raises(ConfigError, match="max_objects of clevr_with_masks must be at least 1"):
        open_source("clevr_with_masks", "train", root=path, max_objects=0)


def test_labels_of_objects_are_consecutive(tmp_path):
    path = visible_file(tmp_path / "clevr_with_masks.h5", [(2, 5)])
    record = open_source("clevr_with_masks", "train", root=path, max_objects=3)[0]
    assert np.unique(record["mask"]).tolist() == [0, 1, 2]
    assert record["visible"].tolist() == [1, 1, 0]
    assert (record["mask"][105 - 29] == 2).all() and (record["mask"][102 - 29] == 1).all()


def test_splits_have_no_gap_but_where_the_seed_is_followed(tmp_path, monkeypatch):
    from slotzoo.data.sources import multi_object

    layout = multi_object.TETROMINOES
    assert layout.ranges["val"][0] == layout.ranges["train"][1] and layout.ranges["test"][0] == 75_000
    assert layout.seed_ranges["val"] == (60_001, 75_000) and layout.seed_ranges["test"] == (75_001, 90_000)
    small = {
        "ranges": {"train": (0, 6), "val": (6, 9), "test": (9, 12)},
        "seed_ranges": {"train": (0, 6), "val": (7, 9), "test": (10, 12)},
    }
    for name, ranges in small.items():
        object.__setattr__(layout, name, ranges)
    try:
        path = write_tetrominoes(tmp_path / "tetrominoes.h5", double())
        rows = lambda split, **options: open_source("tetrominoes", split, root=path, **options).rows.tolist()
        assert rows("train") + rows("val") + rows("test") == list(range(12))
        assert rows("val", seed_splits=True) == [7, 8] and rows("test", seed_splits=True) == [10, 11]
    finally:
        object.__setattr__(layout, "ranges", multi_object._SMALL)
        object.__setattr__(layout, "seed_ranges", multi_object._SMALL_SEED)


def test_clevr_targets_follow_the_scene_file(tmp_path):
    root = write_clevr(tmp_path, "val", [2, 7])
    source = open_source("clevr", "test", root=root, size=16, attributes=True)
    record = source[0]
    check_record(record, source.spec, "image 0")
    assert record["targets"].shape == (10, TARGET) and record["image"].shape == (16, 16, 3)
    row = np.zeros(TARGET)
    row[:3] = np.asarray([4, 1, 3.35]) / 6
    start = 3
    for words, word in ((SIZES, "small"), (MATERIALS, "metal"), (SHAPES, "cube"), (COLORS, "red")):
        row[start + words.index(word)] = 1
        start += len(words)
    row[-1] = 1
    np.testing.assert_allclose(record["targets"][:2], [row, row], atol=1e-6)
    assert not record["targets"][2:].any()
    assert len(open_source("clevr", "val", root=root, max_objects=6)) == 1
    plain = write_clevr(tmp_path / "plain", "val", [2], attributes=False)
    with pytest.raises(DataError, match="no attributes; open the set without attributes"):
        open_source("clevr", "val", root=plain, attributes=True)


@pytest.mark.parametrize("crop, shape", [("whole", (36, 48)), ("center", (28, 28))])
def test_clevr_crops(tmp_path, crop, shape):
    root = write_clevr(tmp_path, "val", [1])
    source = open_source("clevr", "val", root=root, crop=crop)
    whole = np.asarray(Image.open(source.files.images[0]).convert("RGB"))
    top, left = (whole.shape[0] - shape[0]) // 2, (whole.shape[1] - shape[1]) // 2
    np.testing.assert_array_equal(source[0]["image"], whole[top : top + shape[0], left : left + shape[1]])


def test_clevrtex_variants_do_not_share_an_index(tmp_path, monkeypatch):
    root = write_clevrtex(tmp_path / "root", [3] * 9 + [7])
    write_clevrtex(root, [9] * 10, variant="camo")
    reads = []
    count = picture_sets._object_counts
    monkeypatch.setattr(picture_sets, "_object_counts", lambda paths: reads.append(len(paths)) or count(paths))
    of = lambda split, **options: open_source("clevrtex", split, root=root, cache=tmp_path / "c", **options)
    assert len(of("train", max_objects=6)) == 7 and len(of("train", max_objects=8)) == 8
    assert reads == [8]  # another limit needs no new reading
    with pytest.raises(DataError, match="at most 6"):
        of("train", max_objects=6, variant="camo")
    assert len(of("test")) == 1 and len(of("val")) == 1
    record = of("train", size=20)[0]
    check_record(record, of("train", size=20).spec, "image")
    assert np.array_equal(np.flatnonzero(record["visible"]) + 1, np.setdiff1d(np.unique(record["mask"]), [0]))
    with pytest.raises(DataError, match="CLEVRTEX_pbg_NNNNNN.png.*choose another variant"):
        of("train", variant="pbg")


def test_labels_beyond_the_objects_asked_for_are_closed_up(tmp_path):
    root = write_clevrtex(tmp_path, [3] * 10)
    source = open_source("clevrtex", "train", root=root, max_objects=3)
    assert source.spec["visible"].shape == (3,)
    plain = source[0]["mask"]
    path = source.files.masks[0]
    labels = np.asarray(Image.open(path))
    Image.fromarray(np.where(labels == 3, 9, labels).astype(np.uint8)).save(path)
    np.testing.assert_array_equal(source[0]["mask"], plain)
    Image.fromarray((labels + 10 * (np.arange(40) % 3)[None]).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match="'mask' has values from 0 to .*, expected 0 to 3"):
        source[0]


def ravens_file(path, counts):
    n = 3 * len(counts)
    rng = np.random.default_rng(len(counts))
    arrays = {
        "color": rng.integers(256, size=(n, 480, 640, 3)).astype(np.uint8),
        "segm": rng.integers(12, size=(n, 480, 640)).astype(np.uint8),
        "num_objects_on_table": np.asarray(counts, np.uint8),
    }
    return write_hdf5(path, arrays)


def test_ravens_joins_files_and_keeps_first_views(tmp_path):
    ravens_file(tmp_path / "ravens_a_train.h5", [4])
    ravens_file(tmp_path / "ravens_b_train.h5", [9, 3])
    source = open_source("ravens", "train", root=tmp_path, max_objects=6, size=32)
    assert source.rows.tolist() == [0, 6]
    with np.errstate(all="raise"):
        check_record(source[1], source.spec, "image")
    assert "ravens_b_train.h5, record 3" in source.files.where(6)
    views = open_source("ravens", "train", root=tmp_path, max_objects=6, crop="center", masks=False)
    assert views.rows.tolist() == [0, 1, 2, 6, 7, 8] and "mask" not in views[0]
    assert views[0]["image"].shape == (480, 500, 3)
    with pytest.raises(DataError, match=r"holds no file of RAVENS: it holds ravens_a_train.h5"):
        open_source("ravens", "test", root=tmp_path)


def test_boxworld_counts_pairs_where_asked(tmp_path):
    arrays = {
        "image": np.zeros((3, 42, 42, 3), np.uint8),
        "segmentation_mask": np.zeros((3, 42, 42), np.uint8),
        "num_objects": np.asarray([[3], [6], [9]]),
    }
    path = write_hdf5(tmp_path / "box_world_dataset.h5", arrays)
    assert len(open_source("boxworld", "train", root=path, max_objects=3)) == 1
    assert len(open_source("boxworld", "train", root=path, max_objects=3, grouped=True)) == 2
    with pytest.raises(DataError, match="the test split of boxworld begins at record 200000, the file has 3"):
        open_source("boxworld", "test", root=path)


# Files that are wrong.


def test_a_truncated_hdf5_file_is_a_sentence(folder, tmp_path):
    data = (folder / "tetrominoes.h5").read_bytes()
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


def test_missing_masks_are_a_sentence(folder, tmp_path):
    import h5py

    path = shutil.copy(folder / "tetrominoes.h5", tmp_path / "tetrominoes.h5")
    with h5py.File(path, "r+") as file:
        del file["mask"]
    with pytest.raises(DataError, match="no data set 'mask'; found image, visibility"):
        open_source("tetrominoes", "train", root=path)[0]
    assert "mask" not in open_source("tetrominoes", "train", root=path, masks=False)[0]
    root = write_clevrtex(tmp_path, [3] * 10)
    source = open_source("clevrtex", "train", root=root, size=16)
    source.files.masks[0].unlink()
    with pytest.raises(DataError, match=r"_flat.png: no such file"):
        source[0]
    assert "mask" not in open_source("clevrtex", "train", root=root, size=16, masks=False)[0]


def test_pictures_of_a_wrong_size_are_a_sentence(tmp_path):
    root = write_clevr(tmp_path / "clevr", "val", [1, 2])
    source = open_source("clevr", "val", root=root)
    Image.new("RGB", (40, 36)).save(source.files.images[1])
    with pytest.raises(DataError, match="the image is 36 x 40, those of this set are 36 x 48"):
        source[1]
    with pytest.raises(DataError, match="images of 36 x 48 are too small for the crop of 192 x 192"):
        open_source("clevr", "val", root=root, crop="seed")
    source.files.images[1].write_bytes(b"PNG?")
    with pytest.raises(DataError, match="cannot be read"):
        source[1]
    arrays = {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros((2, 6))}
    path = write_hdf5(tmp_path / "3dshapes.h5", arrays)
    with pytest.raises(DataError, match="those of 3D Shapes have 64 x 64"):
        open_source("shapes3d", "train", root=path)
    path = write_hdf5(tmp_path / "tetrominoes.h5", {"image": np.zeros((2, 9, 9, 3), np.uint8)})
    with pytest.raises(DataError, match=r"'image' has shape \(2, 9, 9, 3\), expected \(records, 35, 35, 3\)"):
        open_source("tetrominoes", "train", root=path)


def test_damaged_gzip_files_are_sentences(folder, tmp_path):
    data = (folder / "tetrominoes_train.tfrecords").read_bytes()
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


@pytest.mark.parametrize("name", sorted(IMAGE_SETS))
def test_an_empty_root_is_a_sentence(name, tmp_path):
    with pytest.raises(DataError, match=r"it is empty|no pictures|has no|holds no"):
        open_source(name, "train", root=tmp_path)
    with pytest.raises(DataError, match="no such folder or file"):
        open_source(name, "train", root=tmp_path / "nowhere")


def test_hdf5_without_h5py_is_a_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"needs h5py, pip install 'slotzoo\[hdf5\]'"):
        Hdf5Table(folder / "tetrominoes.h5")


def test_unknown_choices_are_sentences(folder):
    root = folder / "tetrominoes.h5"
    for options, message in (
        ({"crop": "middle"}, "no crop=middle; it takes center, whole"),
        ({"max_object": 3}, "Did you mean 'max_objects'"),
        ({"size": 0}, "at least 1 pixel"),
        ({"size": "big"}, "size must be a whole number, got 'big'"),
        ({"size": True}, "size must be a whole number, got True"),
        ({"masks": "no"}, "masks must be true or false, got 'no'"),
        ({"crop": 3}, "crop must be a word, got 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_source("tetrominoes", "train", root=root, **options)
    with pytest.raises(ConfigError, match="no variant 'gray'; it has colored_on_grayscale"):
        open_source("multi_dsprites", "train", root=root, variant="gray")
    with pytest.raises(ConfigError, match="'clevrtex' .*variant 'soft'|no variant 'soft'; it has full"):
        open_source("clevrtex", "train", variant="soft")
    with pytest.raises(ConfigError, match="no split 'val'; it has train, test"):
        open_source("dmlab", "val")
    assert set(IMAGE_SETS) <= set(list_sources())
