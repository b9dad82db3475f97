"""Pictures of tracks: colours that stay, boxes, depth and flow."""

import colorsys

import numpy as np

from slotzoo.viz.segments import COLOURS, draw_boxes
from slotzoo.viz.tracks import (
    Track,
    as_picture,
    attention_maps,
    boxes_of,
    flow_colours,
    flow_wheel,
    panels,
    slot_video,
    track_strip,
    track_video,
)


def track(background: bool) -> Track:
    """Slot 1 moves to the right over slot 0."""
    masks = np.zeros((3, 2, 8, 12), np.float32)
    for time in range(3):
        masks[time, 1, 2:6, time : time + 4] = 1
    masks[:, 0] = 1 - masks[:, 1]
    video = np.full((3, 8, 12, 3), 100, np.uint8)
    depth = np.linspace(0, 3, 3 * 96, dtype=np.float32).reshape(3, 8, 12, 1)
    return Track(
        video,
        masks,
        np.zeros((3, 2, 4), np.float32),
        {"depth": depth, "flow": np.ones((3, 8, 12, 3), np.float32)},
        {"depth": depth},
        np.full((3, 2, 6), 0.5, np.float32),
        masks[:, 1].astype(np.int32),
        np.asarray([[0.25, 0, 0.75, 0.25]], np.float32),
        background,
    )


def test_a_slot_keeps_its_colour():
    for background in (True, False):
        one = track(background)
        assert set(np.unique(one.labels)) == ({0, 1} if background else {1, 2})
        shown = panels(one)
        assert list(shown) == ["video", "boxes", "true", "found", "overlay", "depth, true", "depth", "flow"]
        for time in range(3):
            assert (shown["found"][time, 3, time + 1] == COLOURS[1 if background else 2]).all()
        np.testing.assert_array_equal(shown["depth"], shown["depth, true"])
        video, slots = track_video(one, scale=2), slot_video(one, scale=2)
        assert len(video) == len(slots) == 3 and video.dtype == slots.dtype == np.uint8
        assert track_strip([one, one], columns=2, scale=1).shape[0] > 2 * 8 * len(shown)


def test_long_clips_have_frames_of_one_size():
    one = track(True)
    repeat = lambda x: np.concatenate([x] * 4)
    long = Track(repeat(one.video), repeat(one.masks), repeat(one.slots), {})
    assert len(track_video(long, scale=1)) == len(slot_video(long, scale=1)) == 12


def test_boxes_are_drawn_in_the_colour_of_their_label():
    one = track(True)
    boxes, there = boxes_of(one.labels[1], 2)
    np.testing.assert_array_equal(boxes[0], [2, 1, 6, 5])
    np.testing.assert_array_equal(there, [1, 0])
    assert (panels(one)["boxes"][1, 2, 1] == COLOURS[1]).all()


def test_boxes_survive_being_drawn():
    """Of what is drawn around a box, the box is the same; also of boxes from 0 to 1, as hints are."""
    given = np.asarray([[2, 1, 6, 5], [0, 7, 8, 12], [3, 5, 4, 6]], np.float32)
    for box in given:
        for scaled in (box, (box / np.asarray([8, 12, 8, 12], np.float32)) * np.asarray([8, 12, 8, 12])):
            drawn = draw_boxes(np.zeros((8, 12, 3), np.uint8), scaled[None], np.ones(1))
            found, there = boxes_of((drawn == COLOURS[1]).all(-1).astype(np.int32), 1)
            np.testing.assert_array_equal(found[0], box)
            assert there[0] and drawn[int(box[0]), int(box[1])].any()
    hinted = panels(track(True))["boxes"][0]  # 0.25, 0, 0.75, 0.25 of 8 x 12
    np.testing.assert_array_equal(np.argwhere((hinted == COLOURS[1]).all(-1)).max(axis=0), [5, 2])


def test_attention_covers_its_pixels():
    maps = attention_maps(np.arange(6, dtype=np.float32).reshape(1, 1, 6), 8, 12)
    assert maps.shape == (1, 1, 8, 12) and maps[0, 0, 0, 0] == 0 and maps[0, 0, -1, -1] == 5
    assert maps[0, 0, 3, 4] == 1 and maps[0, 0, 4, 3] == 3


def test_depth_is_yellow_near_and_blue_far():
    picture = as_picture(np.asarray([[[0.0], [np.nan], [9.0]]], np.float32), (0.0, 9.0))
    np.testing.assert_array_equal(picture[0, 0], [253, 231, 37])
    np.testing.assert_array_equal(picture[0, 2], [68, 1, 84])


def test_flow_is_the_colour_wheel():
    flow = np.random.default_rng(0).normal(size=(4, 4, 2)).astype(np.float32)
    found = flow_colours(flow, scaling=0.5)
    for (a, b), colour in zip(flow.reshape(-1, 2), found.reshape(-1, 3), strict=True):
        hue, saturation = (np.arctan2(b, a) / np.pi + 1) / 2, min(np.hypot(a, b) * 0.5, 1)
        np.testing.assert_allclose(colour, colorsys.hsv_to_rgb(hue, saturation, 1.0), atol=1e-5)
    wheel = flow_wheel(9)
    assert (wheel[4, 4] == 255).all() and (wheel[0, 0] == 255).all() and (wheel[4, 0] != 255).any()
