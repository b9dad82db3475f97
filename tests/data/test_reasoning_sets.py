"""Blinking Color Balls, bouncing balls and CATER: what they ask, and the files that CATER is read from."""

import hashlib
import pickle

import numpy as np
import pytest

from slotzoo.data import open_source
from slotzoo.data.reasoning_sets import REASONING_SETS
from slotzoo.data.sources.cater import evenly
from slotzoo.data.spec import check_record
from slotzoo.data.synthetic.balls import (
    PALETTE,
    RADIUS,
    BlinkingColorBalls,
    BouncingBalls,
    discs,
    final_colours,
    simulate,
)
from slotzoo.data.synthetic.cater import CaterDouble, cell, film
from slotzoo.data.synthetic.raytrace import CONE, Solids, intersect
from slotzoo.errors import ConfigError, DataError


SMALL = {"length": 4, "size": 16, "clips": 3}


@pytest.mark.parametrize("name", sorted(REASONING_SETS))
def test_a_clip_depends_on_seed_split_and_index_alone(name):
    source = open_source(name, "train", **SMALL)
    same = pickle.loads(pickle.dumps(source))
    others = [open_source(name, "test", **SMALL), open_source(name, "train", **SMALL, seed=1)]
    for index in range(len(source)):
        record = source[index]
        check_record(record, source.spec, name)
        assert record.keys() == source.spec.keys()
        assert all(np.array_equal(record[key], same[index][key]) for key in record)
        for other in others:
            assert not np.array_equal(other[index]["video"], record["video"])
    assert len({s.fingerprint for s in (source, *others)}) == 3
    with pytest.raises(IndexError):
        source[3]


# Of the first two clips, made on x86-64 and meant to hold on every machine; a change needs a new VERSION.
CLIPS = {
    "blinking_color_balls": "3eb5f347061d",
    "bouncing_balls": "7cb583d47612",
    "cater": "2484d9b3f580",
}


@pytest.mark.parametrize("name", CLIPS)
def test_clips_do_not_change(name):
    digest = hashlib.sha256()
    source = open_source(name, "test", **SMALL)
    for index in range(2):
        record = source[index]
        for field in sorted(record):
            digest.update(record[field].tobytes())
    assert digest.hexdigest()[:12] == CLIPS[name]


def test_the_colour_of_a_ball_follows_the_rule():
    chosen = np.asarray([0, 1, 0, 0, 1, 2])
    colours = np.asarray([3, 2, 1, 1, 4, 5])
    # Ball 1 had two colours once each: a tie, which the earlier one wins. Ball 3 was never chosen.
    assert final_colours(chosen, colours, 4, "earliest").tolist() == [3, 2, 5, 0]
    assert final_colours(chosen, colours, 4, "most_frequent").tolist() == [1, 2, 5, 0]


def test_one_ball_blinks_in_every_context_frame():
    source = BlinkingColorBalls("train", length=10, clips=5)
    for index in range(5):
        record = source[index]
        for frame in record["video"]:
            colours = {tuple(int(v) for v in c) for c in frame.reshape(-1, 3)} - {(0, 0, 0), (255, 255, 255)}
            assert len(colours) == 1 and colours <= {tuple(int(v) for v in c) for c in PALETTE[1:]}
        labels = record["target_mask"]
        assert np.array_equal(record["target"][labels > 0], PALETTE[record["colors"][labels[labels > 0] - 1]])
        assert not record["target"][labels == 0].any()


def test_balls_stay_on_the_canvas_and_apart():
    radii = np.full(4, RADIUS)
    for seed in range(20):
        path = simulate(np.random.default_rng(seed), radii, 40)
        assert path.min() >= RADIUS and path.max() <= 64 - RADIUS
        gap = np.sqrt(np.square(path[:, :, None] - path[:, None]).sum(-1))
        gap[:, np.arange(4), np.arange(4)] = np.inf
        # Looked for every quarter of a frame: two balls may have come that far, 2.5 pixels, into each other.
        assert gap.min() > 2 * RADIUS - 2.5
        speed = np.sqrt(np.square(np.diff(path, axis=0)).sum(-1))
        assert 0 < speed.max() < 10
    assert set(np.unique(discs(path, radii, 64))) == {0, 1, 2, 3, 4}


def test_balls_keep_their_energy():
    """Away from the walls, what one ball loses in a collision the other wins."""
    path = simulate(np.random.default_rng(0), np.full(2, RADIUS), 60)
    step = np.diff(path, axis=0)
    straight = np.all(np.abs(np.diff(step, axis=0)) < 1e-9, axis=(1, 2))  # nothing was hit in two frames
    energy = np.square(step[:-1][straight]).sum((1, 2))
    assert len(energy) > 5
    np.testing.assert_allclose(energy, energy[0], rtol=1e-9)


def test_a_window_of_bouncing_balls_is_a_part_of_the_clip():
    source = BouncingBalls("train", length=12, size=16, clips=2)
    whole, part = source[1], source.window(1, 5, 4)
    assert source.frames(1) == 12 and len(part["video"]) == 4
    for name in whole:
        assert np.array_equal(whole[name][5:9], part[name])
    assert np.array_equal(whole["video"].max(-1) > 0, whole["mask"] > 0)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("blinking_color_balls", {"rule": "latest"}, "no rule=latest"),
        ("blinking_color_balls", {"rule": 3}, "rule must be a word"),
        ("blinking_color_balls", {"balls": 9}, "balls=9 do not fit"),
        ("blinking_color_balls", {"balls": 3, "radius": 12}, "balls=3 do not fit.*2 of this radius"),
        ("bouncing_balls", {"length": 0}, "length of at least 1"),
        ("bouncing_balls", {"balls": 20}, "balls=20 do not fit"),
        ("cater", {"periods": 0}, "periods of at least 1"),
        ("cater", {"max_objects": 30}, "room for 10 objects"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        open_source(name, "train", **options)


def test_generated_sets_have_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match=r"clips are generated.*train/manifest\.json"):
        open_source("bouncing_balls", "train", root=tmp_path)


# --- CATER


def test_cells_are_counted_as_published():
    places = ((-3.0, -3.0), (2.9, -2.9), (-0.1, 0.1), (2.99, 2.99), (3.0, 3.0))
    assert [cell(*place) for place in places] == [0, 5, 20, 35, 35]


def test_the_snitch_moves_with_the_cone_over_it():
    hidden = 0
    for seed in range(60):
        snitch, *others = film(np.random.default_rng(seed), 30, 6, 6)
        assert np.array_equal(snitch.places[-1, :2], snitch.place)
        if snitch.inside is not None:
            hidden += 1
            assert np.array_equal(others[snitch.inside - 1].place, snitch.place)
        everything = (snitch, *others)
        for i, a in enumerate(everything):
            for b in everything[:i]:
                if a.inside is None and b.inside is None:  # what can be seen stands apart in the end
                    assert np.square(a.place - b.place).sum() > (a.radius + b.radius) ** 2
    assert 10 < hidden < 50  # a question that the last frame alone does not answer


def test_rays_meet_a_cone_where_it_is():
    one = np.ones(1)
    cone = Solids(np.asarray([CONE]), 0 * one, 0 * one, one, one, one, 0 * one)  # tip at z = 2, base at z = 0
    as_planes = lambda *v: tuple(np.asarray([x], np.float32) for x in v)
    distance, _ = intersect(cone, 0, as_planes(0.1, 0, 5), as_planes(0, 0, -1))
    assert distance[0] == pytest.approx(3.2)
    distance, normal = intersect(cone, 0, as_planes(-5, 0, 1), as_planes(1, 0, 0))
    assert distance[0] == pytest.approx(4.5)  # half as wide at half its height
    assert np.ravel(normal)[0] < 0 < np.ravel(normal)[2]
    assert np.square(normal).sum() == pytest.approx(1, rel=1e-5)
    distance, normal = intersect(cone, 0, as_planes(0, 0.5, -2), as_planes(0, 0, 1))
    assert distance[0] == pytest.approx(2) and np.ravel(normal)[2] == -1
    assert intersect(cone, 0, as_planes(-5, 0, 3), as_planes(1, 0, 0))[0][0] > 1e8


def write_video(path, frames):
    av = pytest.importorskip("av", reason="the extra `video` is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def cater(tmp_path):
    """Three published videos of 11 frames, each of one grey that grows from frame to frame."""
    (tmp_path / "all_actions" / "videos").mkdir(parents=True)
    lists = tmp_path / "all_actions" / "lists" / "localize"
    lists.mkdir(parents=True)
    for k in range(3):
        grey = (np.arange(11) * 20 + 10)[:, None, None, None]
        frames = np.broadcast_to(grey, (11, 24, 32, 3)).astype(np.uint8)
        write_video(tmp_path / "all_actions" / "videos" / f"CATER_new_{k:06d}.avi", frames)
    (lists / "train.txt").write_text("CATER_new_000002.avi 35\nCATER_new_000000.avi 7\n")
    (lists / "val.txt").write_text("CATER_new_000001.avi 0\n")
    return tmp_path


def test_published_videos_are_told_by_frames_spread_over_them(cater):
    source = open_source("cater", "train", root=cater, length=3, size=16)
    assert len(source) == 2 and source.provenance == "real"
    record = source[0]
    assert record["label"] == 35 and record["video"].shape == (3, 16, 16, 3)
    np.testing.assert_allclose(record["video"].mean((1, 2, 3)), [10, 110, 210], atol=4)
    assert open_source("cater", "test", root=cater / "all_actions", length=3)[0]["label"] == 0
    assert source.fingerprint != open_source("cater", "train", root=cater, length=4, size=16).fingerprint
    assert evenly(301, 4) == [0, 100, 200, 300]


def test_what_is_wrong_with_published_files_is_said(cater):
    root = cater / "all_actions"
    source = open_source("cater", "train", root=root, length=12)
    with pytest.raises(DataError, match=r"000002\.avi \(clip 0\): has 11 frames, fewer than data\.length=12"):
        source[0]
    with pytest.raises(DataError, match=r"train_subsetV\.txt: no such file; CATER's lists\.zip"):
        open_source("cater", "val", root=root)
    path = root / "videos" / "CATER_new_000000.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    source = open_source("cater", "train", root=root, length=5)
    with pytest.raises(DataError, match=r"000000\.avi \(clip 1\): "):
        source[1]
    path.unlink()
    with pytest.raises(DataError, match=r"no such file; CATER's videos\.zip"):
        source[1]
    for line in ("CATER_new_000000.avi 36", "../CATER_new_000000.avi 3", "CATER_new_000000.avi"):
        (root / "lists" / "localize" / "val.txt").write_text(f"\n{line}\n")
        with pytest.raises(DataError, match=r"val\.txt, line 2: .* is not the name of a video and a cell"):
            open_source("cater", "test", root=root)
    (root / "lists" / "localize" / "val.txt").write_text("\n")
    with pytest.raises(DataError, match="names no video"):
        open_source("cater", "test", root=root)
    with pytest.raises(DataError, match="holds no CATER: it holds localize/"):
        open_source("cater", "test", root=root / "lists")


def test_a_square_of_every_frame_of_the_double():
    record = CaterDouble("train", length=3, size=24, clips=1)[0]
    assert record["video"].shape == (3, 24, 24, 3) and record["video"].std() > 5
