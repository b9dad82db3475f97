"""The recorded arrays of the image sets' readers: every file of the fixture, decoded and processed."""

import fnmatch
import functools
import pathlib

import numpy as np
import pytest

from slotzoo.data import open_source
from slotzoo.data.gzip_records import GzipRecords, parse_bytes_example
from slotzoo.data.sources import picture_sets
from slotzoo.data.sources.hdf5 import Hdf5Table
from slotzoo.data.sources.images import View
from slotzoo.errors import DataError
from tests.parity.harness import cases, fixture_root


FOLDER = "datasets_tiny"
RTOL = 1e-6  # of the range: float32 sums of a few weights
CHECKERS = {}


def checks(*patterns):
    def add(checker):
        CHECKERS.update(dict.fromkeys(patterns, checker))
        return checker

    return add


@functools.cache
def expected():
    with np.load(fixture_root() / FOLDER / "expected.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def group(prefix):
    return {k.removeprefix(f"{prefix}/"): v for k, v in expected().items() if k.startswith(f"{prefix}/")}


def same_picture(source, index, recorded, *, low):
    """The seed's picture (channel, height, width), in [-1, 1] or [0, 1] with `low`, before rounding; and the bytes."""
    scale = (255 / 2, -1) if low else (255, 0)
    recorded = recorded.transpose(1, 2, 0)
    pixels = source.view.pixels(source.raw(index).image)
    np.testing.assert_allclose(pixels / scale[0] + scale[1], recorded, rtol=0, atol=RTOL)
    # Bytes are what batches hold: half a step away at most.
    np.testing.assert_allclose(
        source[index]["image"] / scale[0] + scale[1], recorded, rtol=0, atol=0.5 / scale[0] + RTOL
    )


def one_hot(mask, entities, *, value=1):
    return (mask[None] == np.arange(entities)[:, None, None]).astype(np.uint8)[..., None] * np.uint8(value)


def check_multi_object(name, path, byte_keys):
    stored = {
        key: value
        for key, value in group(name).items()
        if "/" not in key and not key.startswith("indices_max_n_objects")
    }
    if path.suffix == ".h5":
        table = Hdf5Table(path)
        found = {key: table.read(key) for key in stored}
    else:
        count = len(stored["image"])
        records = GzipRecords(path, count)
        # Last record first: reading at random is reading.
        rows = {i: parse_bytes_example(records[i], path.name, stored) for i in reversed(range(count))}
        found = {key: np.stack([rows[i][key] for i in range(count)]) for key in stored}
        for key, value in stored.items():
            assert found[key].dtype == value.dtype, key
            found[key] = found[key].reshape(value.shape) if key not in byte_keys else found[key]
    for key, value in stored.items():
        if key not in byte_keys:
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@checks("clevr_with_masks*")
def check_clevr_with_masks(path):
    recorded = group("clevr_with_masks")
    check_multi_object("clevr_with_masks", path, ())
    source = open_source("clevr_with_masks", "train", root=path, size=64)
    processed = {k.removeprefix("processed64/"): v for k, v in recorded.items() if k.startswith("processed64/")}
    antialias = open_source("clevr_with_masks", "train", root=path, size=64, antialias=True)
    for i in range(len(processed["image_01"])):
        same_picture(source, i, processed["image_01"][i], low=False)
        same_picture(source, i, processed["image_pm1"][i], low=True)
        same_picture(antialias, i, processed["image_01_antialias"][i], low=False)
        same_picture(antialias, i, processed["image_pm1_antialias"][i], low=True)
    for i, mask in enumerate(processed["mask"]):
        record = source[i]
        np.testing.assert_array_equal(one_hot(record["mask"], 11, value=255), mask)
        np.testing.assert_array_equal(record["visible"], recorded["visibility"][i][1:])
    for most in (4, 7, 10):
        found = open_source("clevr_with_masks", "train", root=path, max_objects=most, seed_counting=True)
        np.testing.assert_array_equal(found.rows, recorded[f"indices_max_n_objects_{most}"])
        # Counted without the background, as CLEVR6 means: one object more each.
        right = open_source("clevr_with_masks", "train", root=path, max_objects=most - 1)
        np.testing.assert_array_equal(right.rows, found.rows)


@checks("tetrominoes*")
def check_tetrominoes(path):
    recorded = group("tetrominoes")
    check_multi_object("tetrominoes", path, ())
    source = open_source("tetrominoes", "train", root=path, size=64)
    for i, picture in enumerate(recorded["processed64/image_pm1"]):
        same_picture(source, i, picture, low=True)
    for i, mask in enumerate(recorded["processed64/mask"]):
        np.testing.assert_array_equal(one_hot(source[i]["mask"], 4, value=255), mask)
    rows = open_source("tetrominoes", "train", root=path, max_objects=3).rows
    np.testing.assert_array_equal(rows, recorded["indices_max_n_objects_3"])
    counts = source.files.visibility.sum(axis=1) - 1
    np.testing.assert_array_equal(np.flatnonzero(counts <= 2), recorded["indices_max_n_objects_2"])


@checks("multi_dsprites*")
def check_multi_dsprites(path):
    recorded = group("multi_dsprites")
    check_multi_object("multi_dsprites", path, ("mask",))
    source = open_source("multi_dsprites", "train", root=path, size=64)
    for i in range(len(recorded["image"])):
        record = source[i]
        np.testing.assert_array_equal(record["image"], recorded["image"][i])
        np.testing.assert_array_equal(one_hot(record["mask"], 6, value=255), recorded["mask"][i])
        np.testing.assert_array_equal(source.files.features(i, mask=True)["mask"], recorded["mask"][i][..., 0])
        np.testing.assert_array_equal(record["visible"], recorded["visibility"][i][1:])


@checks("3dshapes.h5")
def check_shapes3d(path):
    recorded = group("shapes3d")
    source = open_source("shapes3d", "train", root=path)
    assert len(source) == len(recorded["images"])
    for i in range(len(source)):
        np.testing.assert_array_equal(source[i]["image"], recorded["images"][i])
        np.testing.assert_allclose(source[i]["labels"], recorded["labels"][i], rtol=1e-7)
    same_picture(source, 0, recorded["item0_pm1"], low=True)


@checks("ravens/*_train.h5", "ravens/*_test.h5")
def check_ravens(path):
    recorded = group("ravens")
    split = "train" if path.stem.endswith("_train") else "test"
    table = Hdf5Table(path)
    np.testing.assert_array_equal(table.read("num_objects_on_table"), recorded[f"{split}/num_objects_on_table"])
    for crop, name in (("table", "altcrop"), ("center", "centercrop")):
        source = open_source("ravens", split, root=path.parent, size=64, crop=crop, max_objects=6)
        np.testing.assert_array_equal(source.rows, recorded[f"{name}/{split}_indices"])
        if split == "train":
            same_picture(source, 0, recorded[f"{name}/train_item0"], low=True)
        else:
            same_picture(source, 0, recorded[f"{name}/test_item0_image"], low=True)
            np.testing.assert_array_equal(one_hot(source[0]["mask"], 12), recorded[f"{name}/test_item0_mask"])
            # The seed looks at the labels before it crops, ours at those left in the picture; its first is label 0.
            whole = np.bincount(source.raw(0).mask.ravel(), minlength=12) > 0
            np.testing.assert_array_equal(whole, recorded[f"{name}/test_item0_vis"])
            left = np.bincount(source[0]["mask"].ravel(), minlength=12) > 0
            np.testing.assert_array_equal(source[0]["visible"], left[1:])


@checks("sketchy/processed/*.png")
def check_sketchy(path):
    folder = path.parents[1].name
    recorded = group(f"sketchy/{folder}")
    root = path.parents[3]
    source = open_source("sketchy", "train" if folder == "train" else "val", root=root)
    files = [str(source.files.images[row].relative_to(root)) for row in source.rows]
    assert files == recorded["files"].tolist()
    index = files.index(str(path.relative_to(root)))
    np.testing.assert_array_equal(source[index]["image"], recorded["images"][index])
    if index == 0:
        pixels = source[0]["image"] / 127.5 - 1
        np.testing.assert_allclose(
            [pixels.mean(), pixels.std(ddof=1)], recorded["item0_pm1_mean_std"], rtol=1e-5
        )


@checks("clevrtex/*")
def check_clevrtex(path):
    recorded = group("clevrtex")
    root = path.parents[2]
    described = sorted(root.rglob("CLEVRTEX_full_*.json"))
    np.testing.assert_array_equal(picture_sets._object_counts(described), recorded["num_objects"])
    for split in ("test", "val", "train"):
        everything = open_source("clevrtex", split, root=root, size=64)
        for most in (6, 10):
            wanted = recorded[f"{split}/max{most}/image_files"].tolist()
            if not wanted:
                with pytest.raises(DataError, match=f"at most {most} objects"):
                    open_source("clevrtex", split, root=root, size=64, max_objects=most)
                continue
            source = open_source("clevrtex", split, root=root, size=64, max_objects=most)
            assert [str(source.files.images[row].relative_to(root)) for row in source.rows] == wanted
        source = open_source("clevrtex", split, root=root, size=64, max_objects=10)
        same_picture(source, 0, recorded[f"{split}/item0_pm1"], low=True)
        if split != "train":  # the seed trains on pictures alone
            np.testing.assert_array_equal(one_hot(source[0]["mask"], 11), recorded[f"{split}/item0_mask"])
            # It counts entities after one-hot and always finds two (a bug); ours are those in the picture.
            assert recorded[f"{split}/item0_vis_as_peer"].sum() == 2
        labels = np.unique(source[0]["mask"])
        np.testing.assert_array_equal(
            np.flatnonzero(source[0]["visible"]) + 1, labels[labels > 0], err_msg=split
        )
        assert len(everything) >= len(source)


@checks("clevr_v1/*")
def check_clevr(path):
    root = pathlib.Path(str(path).split("clevr_v1")[0]) / "clevr_v1"
    for split in ("train", "val"):
        recorded = group(f"clevr_v1/{split}")
        source = open_source("clevr", split, root=root, crop="whole", max_objects=6)
        files = [str(source.files.images[row].relative_to(root)) for row in source.rows]
        assert files == recorded["files_max6"].tolist()
        np.testing.assert_array_equal(source[0]["image"], recorded["image0"])
        cut = open_source("clevr", split, root=root, crop="seed", max_objects=6)
        np.testing.assert_array_equal(cut[0]["image"], recorded["image0"][29:221, 64:256])


@checks("box_world*.h5")
def check_boxworld(path):
    recorded = group("boxworld")
    source = open_source("boxworld", "train", root=path)
    for i in range(len(recorded["image"])):
        np.testing.assert_array_equal(source[i]["image"], recorded["image"][i])
        np.testing.assert_array_equal(source[i]["mask"], recorded["segmentation_mask"][i])
    rows = open_source("boxworld", "train", root=path, max_objects=5).rows
    np.testing.assert_array_equal(rows, recorded["train_indices_max5"])


def _names():
    """One case per file, or per folder where the files are one set together."""
    found = []
    for name in cases(FOLDER):
        top = name.split("/")[0]
        found.append(f"{top}/*" if top in ("clevrtex", "clevr_v1") else name)
    return sorted(set(found) - {"expected.npz"})


@pytest.mark.parametrize("name", _names())
def test_case(name):
    checkers = [check for pattern, check in CHECKERS.items() if fnmatch.fnmatch(name, pattern)]
    assert checkers, f"no checker covers {name}"
    path = fixture_root() / FOLDER / name
    if name.endswith("/*"):
        path = next(
            p for p in sorted((fixture_root() / FOLDER).rglob("*.png")) if fnmatch.fnmatch(str(p), f"*{name}")
        )
    checkers[0](path)


def test_every_recorded_array_belongs_to_a_checked_set():
    sets = {name.split("/")[0] for name in expected()} - {"meta"}
    assert sets <= {
        "clevr_with_masks",
        "tetrominoes",
        "multi_dsprites",
        "shapes3d",
        "ravens",
        "sketchy",
        "clevrtex",
        "clevr_v1",
        "boxworld",
    }


def test_view_without_a_size_keeps_the_pixels():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    np.testing.assert_array_equal(View(None, None).image(image), image)
    np.testing.assert_array_equal(View((1, 2, 3, 4), None).image(image), image[1:4, 2:6])
