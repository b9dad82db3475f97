"""Label maps in colours, overlays, hulls, and the grids of images taken apart."""

import numpy as np
import pytest
from PIL import Image

from slotzoo.errors import ConfigError, DataError
from slotzoo.viz import Apart, object_grid, picture_row, segment_grid
from slotzoo.viz.clips import read_clip
from slotzoo.viz.photos import find_pictures, read_picture
from slotzoo.viz.segments import (
    COLOURS,
    colour_labels,
    convex_hull,
    draw_boxes,
    largest_segment,
    overlay,
    without_background,
)


def apart(**extra) -> Apart:
    rng = np.random.default_rng(0)
    masks = rng.random((3, 8, 8), np.float32)
    return Apart(
        rng.random((8, 8, 3), np.float32),
        rng.random((8, 8, 3), np.float32),
        masks / masks.sum(0),
        rng.random((3, 8, 8, 3), np.float32),
        extra,
        rng.integers(0, 3, (8, 8)),
    )


def test_colours_are_fixed_and_differ():
    np.testing.assert_array_equal(COLOURS[:3], [[0, 0, 0], [255, 0, 0], [0, 128, 0]])
    assert len({tuple(c) for c in COLOURS[:40]}) == 40
    np.testing.assert_array_equal(colour_labels(np.asarray([0, 1, 256])), COLOURS[[0, 1, 1]])


def test_overlay_leaves_the_background():
    image = np.full((6, 6, 3), 100, np.uint8)
    labels = np.zeros((6, 6), np.uint8)
    labels[2:5, 2:5] = 1
    made = overlay(image, labels)
    assert (made[labels == 0] == 100).all() and (made[2, 2] != 100).any()
    np.testing.assert_array_equal(made[4, 4], COLOURS[1])  # its outline


def test_hull_of_a_square_and_of_degenerate_points():
    points = np.argwhere(np.ones((4, 6), bool))
    assert sorted(map(tuple, convex_hull(points))) == [(0, 0), (0, 5), (3, 0), (3, 5)]
    assert len(convex_hull(np.asarray([[0, 0], [1, 1], [2, 2], [3, 3]]))) < 3
    assert len(convex_hull(np.zeros((0, 2), int))) == 0


def test_largest_by_area_or_by_distance():
    labels = np.zeros((20, 20), int)
    labels[5:15, 5:15] = 1  # a square of 100
    labels[0, :], labels[1, 0] = 2, 2  # a long sliver
    assert largest_segment(np.where(labels == 0, 3, labels)[1:, 1:], 3, "area") == 1
    assert largest_segment(labels, 3, "distance") == 0
    assert largest_segment(np.where(labels == 0, 7, labels), 3, "area") == 1
    assert largest_segment(np.where(labels == 0, 7, labels), 3, "distance") == 2


def test_background_modes():
    masks = np.zeros((2, 6, 6), np.float32)
    masks[0], masks[1, 2:4, 2:4], masks[0, 2:4, 2:4] = 0.9, 0.8, 0.2
    masks[:, 0, 0] = 0.4
    assert without_background(masks)[0, 0] == 0 and without_background(masks)[3, 3] == 2
    concentrated = without_background(masks, "concentrated", "area")
    assert concentrated[5, 5] == 0 and concentrated[3, 3] == 2
    with pytest.raises(ConfigError, match="Did you mean 'concentrated'"):
        without_background(masks, "concentrate")


def test_rows_are_in_the_published_order():
    assert list(picture_row(apart()))[:4] == ["image", "reconstruction", "segments", "sure (0.5)"]
    slate = picture_row(apart(dvae=np.zeros((8, 8, 3), np.float32), codes=np.zeros(4, np.int32)))
    assert list(slate) == ["image", "dVAE", "from slots", "slot 1", "slot 2", "slot 3"]
    boxes = np.asarray([[1.0, 1, 4, 5], [np.nan] * 4])
    gnm = apart(background=np.zeros((8, 8, 3), np.float32), presence=np.asarray([1.0, 0.0]), boxes=boxes)
    row = picture_row(gnm)
    assert list(row) == ["image", "reconstruction", "background", "cell 1", "cell 2"]
    np.testing.assert_array_equal(row["cell 1"][0, 0], [0, 255, 0])
    assert object_grid([gnm, gnm]).ndim == segment_grid([gnm]).ndim == 3


def test_boxes_stay_inside():
    image = np.zeros((6, 6, 3), np.uint8)
    made = draw_boxes(image, np.asarray([[-3.0, 2.0, 9.0, 5.0]]), np.ones(1))
    np.testing.assert_array_equal(made[0, 2], COLOURS[1])
    assert (made[3, 3] == 0).all() and not image.any()


def test_pictures_of_a_user(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no picture"):
        find_pictures(tmp_path)
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    assert [p.name for p in find_pictures(tmp_path)] == ["torn.jpg", "wide.png"]
    image, changed = read_picture(tmp_path / "wide.png", 4, 3)
    assert changed and (image == 200).all()
    assert read_picture(tmp_path / "wide.png", 4, 1)[0].shape == (4, 4, 1)
    held = Image.Exif()
    held[0x0112] = 6  # to be turned right by a quarter
    top = np.zeros((4, 4, 3), np.uint8)
    top[:2] = 255
    Image.fromarray(top).save(tmp_path / "turned.png", exif=held)
    upright, changed = read_picture(tmp_path / "turned.png", 4, 3)
    assert not changed and (upright[:, 2:] == 255).all() and not upright[:, :2].any()
    with pytest.raises(DataError, match=r"torn\.jpg: cannot be read as a picture"):
        read_picture(tmp_path / "torn.jpg", 4, 3)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_grey_of_16_bits_is_scaled(name, tmp_path):
    ramp = np.linspace(0, 65535, 16).round().astype(np.uint16).reshape(4, 4)
    (tmp_path / "frames").mkdir()
    Image.fromarray(ramp).save(tmp_path / "frames" / name)
    expected = (17 * np.arange(16)).reshape(4, 4, 1)
    np.testing.assert_array_equal(read_picture(tmp_path / "frames" / name, 4, 1)[0], expected)
    np.testing.assert_array_equal(read_picture(tmp_path / "frames" / name, 4, 3)[0], expected.repeat(3, -1))
    np.testing.assert_array_equal(read_clip(tmp_path / "frames", 4).video[0], expected.repeat(3, -1))


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_points_without_a_white_are_refused(mode, dtype, tmp_path):
    Image.fromarray(np.full((4, 4), 1000, dtype)).save(tmp_path / "0.tif")
    sentence = f"its mode is {mode}, 32 bits per point.* save it with 8 or 16 bits"
    with pytest.raises(DataError, match=sentence):
        read_picture(tmp_path / "0.tif", 4, 3)
    with pytest.raises(DataError, match=sentence):
        read_clip(tmp_path, 4)
