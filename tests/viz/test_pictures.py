"""Pictures, strips and videos: sizes, colours, and files that other programs can read."""

import io

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from slotzoo.errors import DataError, ShapeError
from slotzoo.viz import (
    image_grid,
    labelled_rows,
    png_bytes,
    prediction_strip,
    side_by_side,
    to_uint8,
    videos,
    write_gif,
    write_png,
    write_video,
)
from slotzoo.viz.images import CONTEXT, PREDICTED
from slotzoo.viz.strips import choose_frames, whole_clip


def clip(time=10, size=8, seed=0):
    return np.random.default_rng(seed).uniform(size=(time, size, size, 3)).astype(np.float32)


def test_to_uint8_rounds_and_clips():
    values = np.asarray([0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.7, -3.0, np.nan], np.float32)
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255, 0, 0]
    assert to_uint8(np.asarray([-1.0, 0.0, 1.0], np.float32), value_range=(-1.0, 1.0)).tolist() == [0, 128, 255]
    already = np.asarray([3, 4], np.uint8)
    assert to_uint8(already) is already


def test_png_is_lossless(tmp_path):
    image = to_uint8(clip()[0])
    path = write_png(tmp_path / "deep" / "er" / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    grey = image[:, :, :1]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(grey)))), grey.repeat(3, -1))
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_grid_places_each_image():
    images = to_uint8(clip(5))
    grid = image_grid(images, columns=3, gap=1, scale=1)
    assert grid.shape == (2 * 8 + 1, 3 * 8 + 2, 3)
    np.testing.assert_array_equal(grid[9:, 9:17], images[4])
    assert np.all(grid[9:, 18:] == 255)


def test_wrong_channels_are_said():
    with pytest.raises(ShapeError, match="1 or 3 channels, got 4"):
        image_grid(np.zeros((2, 8, 8, 4), np.uint8))


@given(length=st.integers(2, 400), columns=st.integers(2, 20), data=st.data())
def test_frames_of_a_strip(length, columns, data):
    context = data.draw(st.integers(1, length - 1))
    times = choose_frames(length, context, columns)
    assert times == sorted(set(times)) and 0 <= times[0] and times[-1] < length
    assert len(times) <= columns
    # The boundary is always there: the last frame that was given and the first that was not.
    assert context - 1 in times and context in times


def test_strip_marks_context_and_prediction():
    truth = clip(10)
    strip = prediction_strip(truth, {"model": truth[4:], "other": truth}, context=4, columns=10, scale=2)
    colours = {tuple(c) for c in strip.reshape(-1, 3)}
    assert CONTEXT in colours and PREDICTED in colours
    # A perfect prediction is drawn exactly as the truth above it.
    height = (strip.shape[0] - 18) // 3
    first, second = strip[18 : 18 + height], strip[18 + height : 18 + 2 * height]
    width = 10 * (8 * 2 + 4 + 2)
    np.testing.assert_array_equal(first[:, -width:], second[:, -width:])


def test_strip_says_what_does_not_fit():
    truth = clip(10)
    with pytest.raises(ShapeError, match="has 3 frames; expected 10 .* or 6"):
        prediction_strip(truth, {"model": truth[:3]}, context=4)
    with pytest.raises(ShapeError, match="context must lie between 1 and 9"):
        prediction_strip(truth, {"model": truth}, context=10)
    with pytest.raises(ShapeError, match="same shape: 'b'"):
        labelled_rows({"a": truth, "b": truth[:2]})
    with pytest.raises(ShapeError, match="at least one row"):
        labelled_rows({})


def test_whole_clip_takes_the_given_frames_from_the_truth():
    truth, other = clip(6), clip(6, seed=1)
    expected = np.concatenate([truth[:2], other[2:]])
    np.testing.assert_array_equal(whole_clip(truth, other, 2), expected)
    np.testing.assert_array_equal(whole_clip(truth, other[2:], 2), expected)


def test_a_truth_in_bytes_fits_a_prediction_from_0_to_1():
    truth = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    made = (truth / 255).astype(np.float32)
    for part in (made, made[2:]):
        strip = prediction_strip(truth, {"model": part}, context=2)
        np.testing.assert_array_equal(strip, prediction_strip(truth, {"model": truth}, context=2))
        frames = side_by_side({"truth": truth, "model": part}, context=2)
        np.testing.assert_array_equal(frames, side_by_side({"truth": truth, "model": truth}, context=2))


def test_side_by_side_and_gif(tmp_path):
    truth = clip(7)
    frames = side_by_side({"truth": truth, "model": truth[3:]}, context=3)
    assert frames.dtype == np.uint8 and frames.shape[0] == 7
    assert all(np.any(np.all(f == CONTEXT, -1)) for f in frames[:3])
    assert not any(np.any(np.all(f == CONTEXT, -1)) for f in frames[3:])
    np.testing.assert_array_equal(side_by_side({"truth": truth, "model": truth}, context=3), frames)
    with pytest.raises(ShapeError, match="has 2 frames; expected 7"):
        side_by_side({"truth": truth, "model": truth[:2]}, context=3)
    with pytest.raises(ShapeError, match="at least one clip"):
        side_by_side({}, context=3)
    path = write_gif(tmp_path / "a.gif", frames, fps=8)
    with Image.open(path) as picture:
        assert picture.n_frames == 7 and picture.info["loop"] == 0
        assert picture.size == (frames.shape[2], frames.shape[1])


@pytest.mark.parametrize("size", [(16, 16), (17, 33)])
def test_mp4_can_be_read_back(tmp_path, size):
    av = pytest.importorskip("av", reason="the extra `video` is not installed")
    smooth = np.linspace(0, 255, size[0] * size[1] * 3).reshape(*size, 3)
    frames = np.stack([np.roll(smooth, t, 0) for t in range(6)]).astype(np.uint8)
    path = write_video(tmp_path / "run.v1", frames, fps=5)
    assert path.name == "run.v1.mp4"
    with av.open(str(path)) as container:
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(read) == 6
    difference = np.abs(np.stack(read)[:, : size[0], : size[1]].astype(int) - frames.astype(int))
    assert difference.mean() < 12


def test_gif_where_mp4_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "CODECS", ())
    frames = to_uint8(clip(3))
    assert write_video(tmp_path / "a.mp4", frames).name == "a.gif"
    with pytest.raises(DataError, match="GIF|video"):
        videos.mp4_bytes(frames)


def test_empty_videos_are_said():
    nothing = np.zeros((0, 8, 8, 3), np.uint8)
    for function in (videos.gif_bytes, videos.mp4_bytes):
        with pytest.raises(ShapeError, match="at least one frame"):
            function(nothing)
