"""Videos of a user's own: every way to give one, and what is wrong with one."""

import json

import numpy as np
import pytest
from PIL import Image

from slotzoo.errors import DataError
from slotzoo.viz import write_gif, write_png
from slotzoo.viz.clips import cropped_boxes, read_boxes, read_clip, read_segments


@pytest.fixture
def frames():
    """A white square that moves over black frames of 20 x 30 pixels."""
    video = np.zeros((4, 20, 30, 3), np.uint8)
    for time in range(4):
        video[time, 8:12, 5 + 4 * time : 10 + 4 * time] = 255
    return video


def test_gif_folder_and_mp4_are_the_same_clip(frames, tmp_path):
    av = pytest.importorskip("av")
    write_gif(tmp_path / "clip.gif", frames)
    for number, frame in enumerate(frames):
        write_png(tmp_path / "folder" / f"{number}.png", frame)
    with av.open(str(tmp_path / "clip.mp4"), mode="w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 30, 20, "yuv420p", 10**6
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    expected = frames[:, ::2, 5:25:2].astype(np.float32)
    for name in ("clip.gif", "folder", "clip.mp4"):
        clip = read_clip(tmp_path / name, 10)
        assert clip.video.shape == (4, 10, 10, 3) and (clip.height, clip.width) == (20, 30)
        assert np.abs(clip.video - expected).mean() < 12, name
    assert len(read_clip(tmp_path / "folder", 10, frames=2).video) == 2


@pytest.mark.parametrize("name", ["frame_{}.png", "{}/frame.png"], ids=["files", "folders"])
def test_frames_come_in_the_order_of_their_numbers(name, tmp_path):
    for number in range(12):
        write_png(tmp_path / name.format(number), np.full((2, 2, 3), number, np.uint8))
    assert read_clip(tmp_path, 2).video[:, 0, 0, 0].tolist() == list(range(12))


def test_what_is_no_video(frames, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    (tmp_path / "torn.gif").write_bytes(b"no picture")
    write_png(tmp_path / "folder" / "0.png", frames[0])
    write_png(tmp_path / "folder" / "1.png", frames[0, :10])
    for name, sentence in (
        ("torn.mp4", "cannot be decoded"),
        ("torn.gif", "cannot be read as a picture that moves"),
        ("nowhere.mp4", "no such file"),
        ("folder", r"differ in size: \(30, 10\), \(30, 20\)"),
    ):
        with pytest.raises(DataError, match=sentence):
            read_clip(tmp_path / name, 10)


def test_boxes_follow_the_crop(tmp_path):
    expected = [[0.4, 0.25, 0.6, 0.5]]
    pixels, shares = [[8, 10, 12, 15]], [[0.4, 10 / 30, 0.6, 0.5]]
    np.testing.assert_allclose(cropped_boxes(np.asarray(pixels, float), 20, 30), expected, rtol=1e-6)
    np.testing.assert_allclose(cropped_boxes(np.asarray(shares, float), 20, 30), expected, rtol=1e-6)
    (tmp_path / "boxes.json").write_text(json.dumps(pixels))
    np.save(tmp_path / "boxes.npy", np.asarray(pixels))
    for given in (pixels, tmp_path / "boxes.json", str(tmp_path / "boxes.npy")):
        np.testing.assert_array_equal(read_boxes(given), pixels)


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        ([[8, 26, 12, 29]], "box 0, .* outside of the middle square of the frames of 20 x 30"),
        ([[0.5, 0.4, 0.5, 0.6]], "is empty"),
        ([1, 2, 3, 4], r"got an array of shape \(4,\)"),
        ([[np.nan, 0, 1, 1]], "a list of"),
    ],
    ids=["outside", "empty", "flat", "nan"],
)
def test_boxes_that_are_none(boxes, sentence):
    with pytest.raises(DataError, match=sentence):
        cropped_boxes(np.asarray(boxes, np.float64), 20, 30)


def test_files_that_hold_no_boxes(tmp_path):
    (tmp_path / "boxes.json").write_text("{")
    with pytest.raises(DataError, match=r"boxes.json: cannot be read"):
        read_boxes(tmp_path / "boxes.json")
    with pytest.raises(DataError, match="a list of"):
        read_boxes([[1, 2], [3]])


FIRST_FRAME = dict(height=20, width=30, num_slots=4)


def test_segments(tmp_path):
    labels = np.zeros((20, 30), np.uint8)
    labels[8:12, 10:14] = 3
    palette = Image.fromarray(labels)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    pictures = {
        "grey": Image.fromarray(labels),
        "palette": palette,
        "deep": Image.fromarray(labels.astype(np.uint16)),
        "grey_in_colours": Image.fromarray(labels).convert("RGBA"),
    }
    assert pictures["palette"].mode == "P"
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        found = read_segments(tmp_path / f"{name}.png", 10, **FIRST_FRAME)
        np.testing.assert_array_equal(found, labels[1::2, 6:25:2], err_msg=name)
    Image.fromarray(labels > 0).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(
        read_segments(tmp_path / "bits.png", 10, **FIRST_FRAME), (labels > 0)[1::2, 6:25:2]
    )
    with pytest.raises(DataError, match="picture of labels"):
        read_segments(tmp_path / "none.png", 10, **FIRST_FRAME)


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (
            np.diag([255] * 20)[:, :1].repeat(30, 1),
            r"has the labels 0, 255; for the 4 slots .* 0 for the background",
        ),
        (
            np.arange(600).reshape(20, 30) % 99,
            r"has the labels 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.; .* 1, 2, ..., 3 for",
        ),
        (np.ones((20, 30, 1)) * [1, 2, 3], "is a picture in colours; save it in grey"),
        (np.zeros((20, 29)), r"is of 20 x 29 pixels .* the frames are of 20 x 30"),
    ],
    ids=["white", "many", "colours", "size"],
)
def test_segments_that_would_tell_nothing(picture, sentence, tmp_path):
    Image.fromarray(np.asarray(picture, np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(DataError, match=sentence):
        read_segments(tmp_path / "labels.png", 10, **FIRST_FRAME)
