"""Each published image set as its reader gives it: splits, filters, crops and labels; and pictures that are wrong."""

import shutil

import numpy as np
import pytest
from PIL import Image

from slotzoo.data import open_source
from slotzoo.data.sources import picture_sets
from slotzoo.data.spec import check_record
from slotzoo.data.synthetic.clevr import COLORS, MATERIALS, SHAPES, SIZES, TARGET
from slotzoo.errors import ConfigError, DataError
from tests.data.image_files import (
    double,
    visible_file,
    write_clevr,
    write_clevrtex,
    write_hdf5,
    write_tetrominoes,
)


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


def test_clevrtex_is_split_by_the_numbers_of_its_pictures(tmp_path):
    write_clevrtex(tmp_path, [3] * 20)
    top = tmp_path / "clevrtex_full"
    for old, new in (("0", "10"), ("1", "9")):  # as a folder 10 comes before a folder 9
        (top / old).rename(top / new)
    numbers = lambda split: [
        int(path.stem.split("_")[-1]) for path in open_source("clevrtex", split, root=tmp_path).files.images
    ]
    assert [numbers(split) for split in ("test", "val", "train")] == [[0, 1], [2, 3], list(range(4, 20))]


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


def test_missing_masks_are_a_sentence(tetrominoes, tmp_path):
    import h5py

    path = shutil.copy(tetrominoes / "tetrominoes.h5", tmp_path / "tetrominoes.h5")
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
