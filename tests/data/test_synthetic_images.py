"""Doubles of the image sets: what is in the pictures, and that they are the same everywhere."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, strategies as st

from slotzoo.data import open_source, resize
from slotzoo.data.image_sets import IMAGE_SETS
from slotzoo.data.registry import source_options
from slotzoo.data.spec import Source, check_record
from slotzoo.data.synthetic.clevr import COLORS, RGB, TARGET, ClevrScenes, _camera
from slotzoo.data.synthetic.digit_canvases import DigitCanvases
from slotzoo.data.synthetic.raytrace import (
    CUBE,
    CYLINDER,
    SPHERE,
    Solids,
    intersect,
    look_at,
    majority,
    trace,
)
from slotzoo.data.synthetic.rooms import Rooms, hue_colour
from slotzoo.data.synthetic.solid_textures import PATTERNS, random_material
from slotzoo.data.synthetic.sprites import BoxWorld, MultiDSprites, Tetrominoes, tetromino_shapes
from slotzoo.data.synthetic.tables import TableScenes
from slotzoo.errors import ConfigError, DataError


SCENES = {
    "tetrominoes": Tetrominoes(),
    "multi_dsprites": MultiDSprites(size=48),
    "multi_dsprites binarized": MultiDSprites(variant="binarized"),
    "multi_dsprites colored": MultiDSprites(variant="colored_on_colored"),
    "clevr6": ClevrScenes(size=48, attributes=True),
    "clevr10": ClevrScenes(size=40, max_objects=10, masks=False, attributes=True),
    "clevr whole": ClevrScenes(size=40, max_objects=10, crop="whole"),
    "clevrtex": ClevrScenes(size=40, max_objects=8, textured="full"),
    "clevrtex camo": ClevrScenes(size=24, textured="camo"),
    "clevrtex plain background": ClevrScenes(size=24, textured="pbg"),
    "clevrtex grass": ClevrScenes(size=24, textured="grassbg"),
    "clevrtex background": ClevrScenes(size=24, textured="vbg"),
    "rooms": Rooms(size=32),
    "ravens": TableScenes(size=32),
    "sketchy": TableScenes(size=32, masks=False),
    "boxworld": BoxWorld(),
    "mnist4": DigitCanvases(size=64),
}


def draw(scenes, index=0):
    return scenes.draw(np.random.default_rng([0, 0, index]))


@pytest.mark.parametrize("name", SCENES)
def test_records_are_what_the_spec_says(name):
    scenes = SCENES[name]
    for index in range(4):
        record = draw(scenes, index)
        check_record(record, scenes.spec, name)
        assert record.keys() == scenes.spec.keys()
        if "mask" in record:
            shown = np.unique(record["mask"])
            labels = np.flatnonzero(record["visible"]) + 1
            assert set(labels) == set(shown) - {0}, name  # every object that counts can be seen, and no other
        if "targets" in record:
            count = int(record["targets"][:, -1].sum())
            assert scenes.min_objects <= count <= scenes.max_objects


# Of the first two pictures, made on x86-64 and meant to hold on every machine; a change needs a new `version`.
PICTURES = {
    "tetrominoes": "90d7bd3c3995",
    "multi_dsprites": "85c4994c40b7",
    "clevr6": "217dbe018983",
    "clevrtex": "5dc912f65b60",
    "rooms": "06f5a32b030c",
    "sketchy": "f8e6e41eb2c0",
    "boxworld": "7ca011bc3d83",
    "mnist4": "a156b1675e68",
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_do_not_change(name):
    digest = hashlib.sha256()
    for index in range(2):
        record = draw(SCENES[name], index)
        for field in sorted(record):
            digest.update(record[field].tobytes())
    assert digest.hexdigest()[:12] == PICTURES[name]


@pytest.mark.parametrize("name", sorted(IMAGE_SETS))
def test_doubles_are_opened_by_name(name, tmp_path):
    options = {"clips": 3, "size": 24}
    source = open_source(name, "test", **options)
    assert isinstance(source, Source) and source.provenance == "embedded double" and len(source) == 3
    assert set(options) <= set(source_options(name))
    cached = open_source(name, "test", cache=tmp_path, **options)
    # The double's options are all taken; the reader's alone are left unused, not refused.
    given = {"max_objects": 4, "crop": "whole", "antialias": True, "masks": True, "seed_splits": True}
    unused = {k: v for k, v in given.items() if k in source_options(name)}
    assert len(open_source(name, "test", **options, **unused)) == 3
    for i in range(3):
        a, b, c = source[i], cached[i], pickle.loads(pickle.dumps(source))[i]
        assert a.keys() == b.keys() and all(
            np.array_equal(a[k], b[k]) and np.array_equal(a[k], c[k]) for k in a
        )
    others = [
        open_source(name, "train", **options),
        open_source(name, "val", **options),
        open_source(name, "test", **options, seed=1),
    ]
    assert len({s.fingerprint for s in (source, *others)}) == 4
    assert all(not np.array_equal(s[0]["image"], source[0]["image"]) for s in others)
    with pytest.raises(IndexError):
        source[3]


def test_none_is_the_published_size():
    assert open_source("tetrominoes", "train", size=None).spec["image"].shape == (35, 35, 3)


def test_there_are_seventeen_tetrominoes():
    shapes = tetromino_shapes()
    assert len(shapes) == 17 and all(shape.sum() == 4 * 25 for shape in shapes)
    for index in range(8):
        record = draw(Tetrominoes(), index)
        # Nothing hides a part of a piece: each has all of its 100 pixels, in one pure colour.
        assert np.bincount(record["mask"].ravel()).tolist()[1:] == [100, 100, 100]
        assert not record["image"][record["mask"] == 0].any()
        for label in (1, 2, 3):
            colours = np.unique(record["image"][record["mask"] == label], axis=0)
            assert len(colours) == 1 and set(colours[0]) == {0, 255}


def test_binarized_sprites_are_black_and_white():
    image = draw(SCENES["multi_dsprites binarized"])["image"]
    assert set(np.unique(image)) == {0, 255}


def test_more_objects_are_possible_than_in_training():
    counts = [draw(ClevrScenes(size=24, min_objects=7, max_objects=10), i)["visible"].sum() for i in range(6)]
    assert min(counts) >= 7 and max(counts) <= 10


def test_targets_describe_the_picture():
    scenes = ClevrScenes(size=96, attributes=True, min_objects=1, max_objects=1)
    for index in range(12):
        record = draw(scenes, index)
        row = record["targets"][0]
        assert row.shape == (TARGET,) and row[-1] == 1
        assert [row[3:5].sum(), row[5:7].sum(), row[7:10].sum(), row[10:18].sum()] == [1, 1, 1, 1]
        # The object has the hue that the target names: the largest and the least channel agree.
        colour = RGB[row[10:18].argmax()]
        shown = record["image"][record["mask"] == 1].astype(float).mean(axis=0)
        if COLORS[row[10:18].argmax()] != "gray":
            assert shown.argmax() == colour.argmax() or np.ptp(np.sort(colour)[1:]) < 0.1
        x, y, z = row[:3] * 6 - 3
        assert z > 0 and abs(x) <= 3 and abs(y) <= 3


@pytest.mark.parametrize("crop", ["center", "whole"])
def test_targets_lie_where_the_picture_shows_the_object(crop):
    scenes = ClevrScenes(size=96, attributes=True, min_objects=1, max_objects=1, crop=crop)
    checked = 0
    for index in range(12):
        record = draw(scenes, index)
        rows, columns = np.nonzero(record["mask"])
        if 0 in (*rows, *columns) or 95 in (*rows, *columns):
            continue  # cut off by the border
        camera = _camera(np.random.default_rng([0, 0, index]), crop)  # the first that is drawn
        column, row, _ = camera.project(*(record["targets"][0, :3].astype(float) * 6 - 3))
        # The middle of what is seen, where the near side looks larger than the far one.
        assert abs(np.mean(rows) + 0.5 - 96 * row) < 2 and abs(np.mean(columns) + 0.5 - 96 * column) < 2
        checked += 1
    assert checked > 6


def test_wrong_scenes_are_sentences():
    for make, message in (
        (lambda: ClevrScenes(size=4), "at least 8 pixels"),
        (lambda: open_source("clevr", "train", crop="seed"), "no crop=seed; they take center, whole"),
        (lambda: ClevrScenes(max_objects=11), "1 to 10 objects"),
        (lambda: ClevrScenes(min_objects=7), "min_objects at most max_objects; got 7 and 6"),
        (lambda: MultiDSprites(size=2), "at least 8"),
        (lambda: Tetrominoes(size=0), "at least 1 pixel"),
        (lambda: Rooms(size=1), "at least 8"),
        (lambda: TableScenes(max_objects=12), "1 to 11 objects"),
        (lambda: BoxWorld(max_objects=10), "1 to 9 objects"),
        (lambda: open_source("tetrominoes", "train", clips=0), "clips of at least 1"),
        (lambda: open_source("tetrominoes", "train", seed=-1), "seed of at least 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()


def single(shape, radius=0.8):
    one = lambda value: np.asarray([value])
    return Solids(one(shape), one(0.3), one(-0.2), one(0.9), one(radius), one(0.8), one(0.6))


@pytest.mark.parametrize("shape", [CYLINDER, CUBE, SPHERE])
def test_rays_meet_surfaces(shape):
    """Where a ray is said to meet a solid lies on its surface, the normal has length 1 and faces the ray."""
    rng = np.random.default_rng(0)
    solids = single(shape)
    origin = rng.normal(size=(3, 4000)) * 0.3 + np.asarray([[4.0], [-3.0], [3.0]])
    ray = np.asarray([[0.3], [-0.2], [0.9]]) + rng.normal(size=(3, 4000)) * 0.4 - origin
    ray /= np.sqrt((ray * ray).sum(axis=0))
    origin, ray = origin.astype(np.float32), ray.astype(np.float32)
    t, normal = intersect(solids, 0, tuple(origin), tuple(ray))
    hit = t < 1e8
    assert 0.3 < hit.mean() < 1
    p = (origin + t * ray)[:, hit].astype(np.float64) - np.asarray([[0.3], [-0.2], [0.9]])
    n = np.stack(normal)[:, hit]
    np.testing.assert_allclose((n * n).sum(axis=0), 1, atol=1e-4)
    assert ((n * ray[:, hit]).sum(axis=0) <= 1e-3).all()
    x, y, z = 0.8 * p[0] + 0.6 * p[1], 0.8 * p[1] - 0.6 * p[0], p[2]
    if shape == SPHERE:
        outside = np.sqrt(x * x + y * y + z * z) / 0.8
    elif shape == CUBE:
        outside = np.abs(np.stack([x, y, z])).max(axis=0) / (0.8 * 0.70710678)
    else:
        outside = np.maximum(np.sqrt(x * x + y * y), np.abs(z)) / 0.8
    np.testing.assert_allclose(outside, 1, atol=1e-4)


def test_nearer_objects_hide_farther_ones():
    two = lambda a, b: np.asarray([a, b])
    solids = Solids(two(0, 1), two(0, 2), two(0, 0), two(0.5, 0.5), two(0.5, 0.5), two(1, 1), two(0, 0))
    camera = look_at(np.asarray([8.0, 0.0, 0.6]), np.zeros(3), left=-0.2, top=0.2, width=0.4)
    label = majority(trace(solids, camera, 32).label)
    assert label[16, 16] == 2 and (label == 1).sum() < (label == 2).sum()


def test_majority_label_of_a_pixel():
    samples = np.asarray([[1, 1, 1, 2, 3], [1, 2, 2, 1, 4], [2, 3, 2, 0, 5], [2, 3, 3, 0, 6]], np.uint8)
    assert majority(samples[:, None, :])[0].tolist() == [1, 3, 2, 0, 3]


def test_textures_stay_in_range():
    points = np.random.default_rng(0).uniform(-5, 5, (3, 500)).astype(np.float32)
    seen = set()
    for seed in range(60):
        material = random_material(np.random.default_rng(seed))
        seen.add(material.pattern)
        for plane in material.colour(*points):
            assert plane.dtype == np.float32 and 0 <= plane.min() and plane.max() <= 1
    assert seen == set(PATTERNS)


def test_hues_are_pure():
    for hue in np.arange(10) / 10:
        assert hue_colour(hue).max() == 1 and hue_colour(hue).min() == 0
    assert hue_colour(0.0).tolist() == [1, 0, 0]


# Resampling.


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
def test_bilinear_without_antialias_interpolates_at_centres(old, new, seed):
    row = np.random.default_rng(seed).random(old)
    found = resize.resize_bilinear(row[None, :, None], (1, new))[0, :, 0]
    where = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    np.testing.assert_allclose(found, np.interp(where, np.arange(old), row), atol=1e-6)


def test_antialiased_bilinear_is_pillows():
    from PIL import Image

    image = np.random.default_rng(0).random((23, 31)).astype(np.float32)
    for size in ((7, 9), (40, 50), (23, 5)):
        wanted = np.asarray(Image.fromarray(image, "F").resize((size[1], size[0]), Image.Resampling.BILINEAR))
        found = resize.resize_bilinear(image[..., None], size, antialias=True)[..., 0]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 40))
def test_nearest_takes_floors(old, new):
    found = resize.resize_nearest(np.arange(old)[:, None], (new, 1))[:, 0]
    exact = np.arange(new) * old // new
    # In float32 a quotient may fall just below a whole number, as it does in torch.
    assert (np.abs(found - exact) <= 1).all() and found[0] == 0 and (np.diff(found) >= 0).all()
    if old % new == 0 or new % old == 0 and (new // old) & (new // old - 1) == 0:
        assert (found == exact).all()


def test_canvases_have_a_digit_in_every_quarter(tmp_path):
    # Half of MNIST's digits are of one ink, half of another: what is drawn comes from the file that is given.
    inks = np.repeat(np.asarray([150, 250], np.uint8), 5)
    images = np.broadcast_to(inks[:, None, None], (10, 28, 28))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 10, 28, 28) + images.tobytes())
    source = open_source("mnist4", "train", root=tmp_path, clips=20, size=64)
    assert source.provenance == "real" and len(source) == 20
    assert source.fingerprint != open_source("mnist4", "train", clips=20, size=64).fingerprint
    for i in range(20):
        record = source[i]
        check_record(record, source.spec, "image")
        assert set(np.unique(record["image"])) <= {0, 150, 250} and record["visible"].all()
        for k, corner in enumerate(((0, 0), (0, 32), (32, 0), (32, 32))):
            rows, columns = np.nonzero(record["mask"] == k + 1)
            assert len(rows) == 28 * 28
            for low, found in zip(corner, (rows, columns), strict=True):
                assert low <= found.min() and found.max() < low + 32
    with pytest.raises(DataError, match="no training images of MNIST"):
        open_source("mnist4", "train", root=tmp_path / "..")
    with pytest.raises(ConfigError, match="at least 16 pixels, got 8"):
        DigitCanvases(size=8)
