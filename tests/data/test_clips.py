"""Clips of moving objects: what SAVi does to them, and the ray-traced doubles of MOVi and CLEVRER."""

import hashlib
import pickle
from typing import Any

import numpy as np
import pytest

from slotzoo.data import clip_ops, make_pipeline, open_source, prepare
from slotzoo.data.export_movi import export_movi
from slotzoo.data.movi_layout import LAYOUTS, quantized, record_spec, rescaled
from slotzoo.data.object_clips import ObjectClips
from slotzoo.data.sources.array_record import ArrayRecordSource
from slotzoo.data.sources.movi import MoviFiles
from slotzoo.data.spec import AugmentedSource, View, WindowSource, check_record
from slotzoo.data.synthetic.clevrer import ClevrerDouble
from slotzoo.data.synthetic.motion import slide
from slotzoo.data.synthetic.movi import MoviScenes
from slotzoo.errors import ConfigError, DataError


SMALL: dict[str, Any] = {"length": 5, "size": 24, "clips": 3}
NAMES = sorted(LAYOUTS)


@pytest.mark.parametrize("name", [*NAMES, "clevrer"])
def test_a_clip_depends_on_seed_split_and_index_alone(name):
    source = open_source(name, "train", **SMALL)
    assert isinstance(source, WindowSource)
    same = pickle.loads(pickle.dumps(source))
    others = [open_source(name, "test", **SMALL), open_source(name, "train", **SMALL, seed=1)]
    for index in range(2):
        record = source[index]
        check_record(record, source.spec, name)
        assert record.keys() == source.spec.keys()
        assert all(np.array_equal(record[key], same[index][key]) for key in record)
        assert not any(np.array_equal(record["video"], other[index]["video"]) for other in others)
        part = source.window(index, 1, 3)
        for key, field in source.spec.items():
            if field.time:
                np.testing.assert_array_equal(part[key], record[key][1:4], err_msg=key)
    assert source.fingerprint not in [other.fingerprint for other in others]


def test_the_doubles_differ_from_each_other():
    first = {name: open_source(name, "train", **SMALL)[0]["video"].tobytes() for name in NAMES}
    assert len(set(first.values())) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_double_has_as_many_objects_as_the_published_set(name):
    least, most = LAYOUTS[name].objects
    clips = [MoviScenes(name, "train", length=2, size=16, clips=6)[i] for i in range(6)]
    counts = [record["boxes"].shape[1] for record in clips]
    assert max(counts) <= most
    assert max(counts) > 3
    if least > 3:  # some are hidden behind others, few
        assert min(counts) > least // 2


def test_few_objects_move_in_movi_d_and_the_camera_in_movi_e():
    d = MoviScenes("movi_d", "train", length=4, size=16).clip(0)
    moving = np.abs(d["instances/velocities"][:, 0]).sum(axis=-1) > 1e-6
    assert np.array_equal(moving, d["instances/is_dynamic"])
    assert 1 <= moving.sum() <= 3
    assert (d["camera/positions"] == d["camera/positions"][:1]).all()
    e = MoviScenes("movi_e", "train", length=4, size=16).clip(0)["camera/positions"]
    steps = np.diff(e, axis=0)
    assert np.abs(steps).max() > 0
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1], steps.shape), atol=1e-6)


def test_objects_can_be_enlarged_for_small_frames():
    clips = {
        scale: MoviScenes("movi_a", "train", length=1, size=32, object_scale=scale) for scale in (1.0, 2.0)
    }
    covered = {
        scale: np.mean([(clip[i]["mask"] > 0).mean() for i in range(6)]) for scale, clip in clips.items()
    }
    assert covered[2.0] > 2 * covered[1.0]
    assert clips[1.0].fingerprint != clips[2.0].fingerprint
    with pytest.raises(ConfigError, match="object_scale from 0.1 to 3, got 9"):
        MoviScenes("movi_a", "train", object_scale=9.0)


@pytest.mark.parametrize("name", ["movi_a", "movi_e"])
def test_labels_boxes_and_visibility_tell_the_same(name):
    clip = MoviScenes(name, "train", length=6, size=32).clip(1)
    mask, count = clip["segmentations"][..., 0], len(clip["instances/visibility"])
    assert mask.max() == count == clip["metadata/num_instances"]
    totals = np.bincount(mask.ravel(), minlength=count + 1)[1:]
    assert (np.diff(totals) <= 0).all()
    np.testing.assert_array_equal(clip["instances/visibility"].sum(axis=1), totals)
    boxes = MoviScenes(name, "train", length=6, size=32)[1]["boxes"]
    for t in range(6):
        for k in range(count):
            rows, columns = np.nonzero(mask[t] == k + 1)
            if rows.size:
                edges = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
                np.testing.assert_allclose(boxes[t, k] * 32, edges, atol=1e-5)
            else:
                assert not boxes[t, k].any()


@pytest.mark.parametrize("name", ["movi_a", "movi_e"])
def test_flow_leads_to_the_same_object_in_the_neighbouring_frame(name):
    size = 64
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    found, moving = {1: 0, 0: 0, -1: 0}, 0
    for index, direction, step in ((0, "backward_flow", -1), (1, "forward_flow", 1), (3, "backward_flow", -1)):
        clip = MoviScenes(name, "train", length=6, size=size).clip(index, full=False)
        mask = clip["segmentations"][..., 0].astype(np.int32)
        flow = rescaled(clip[direction], clip[f"metadata/{direction}_range"])
        for t in range(1, 5):
            fast = (np.hypot(flow[t, ..., 0], flow[t, ..., 1]) > 1) & (mask[t] > 0)
            moving += int(fast.sum())
            for way in found:
                there = [np.rint(axis + way * flow[t, ..., i]) for i, axis in enumerate((rows, columns))]
                row, column = (np.clip(x, 0, size - 1).astype(int) for x in there)
                found[way] += int((mask[t + step][row, column] == mask[t])[fast].sum())
    assert moving > 100
    assert found[1] > 0.85 * moving  # the others are at edges, or hidden in the other frame
    assert found[1] > found[0] > found[-1]


def test_the_first_flow_is_that_of_the_motion_before_the_clip():
    clip = MoviScenes("movi_a", "train", length=3, size=32).clip(0)
    flow = rescaled(clip["backward_flow"], clip["metadata/backward_flow_range"])
    moving = clip["segmentations"][0, ..., 0] > 0
    assert np.hypot(flow[0, ..., 0], flow[0, ..., 1])[moving].max() > 0.1


def test_depth_is_the_distance_to_the_camera():
    clip = MoviScenes("movi_a", "train", length=2, size=32).clip(0)
    depth = rescaled(clip["depth"], clip["metadata/depth_range"])[0, ..., 0]
    places, eye = clip["instances/positions"][:, 0], clip["camera/positions"][0]
    mask = clip["segmentations"][0, ..., 0]
    for k, place in enumerate(places):
        if (mask == k + 1).sum() > 8:
            far = np.linalg.norm(place - eye)
            assert abs(np.median(depth[mask == k + 1]) - far) < 0.9  # no more than an object's size
    assert depth[0].mean() > depth[-1].mean()  # the floor at the horizon, at the feet


def test_places_in_the_picture_are_those_of_the_pixels():
    clip = MoviScenes("movi_a", "train", length=2, size=48).clip(0)
    mask = clip["segmentations"][0, ..., 0]
    sizes = np.bincount(mask.ravel(), minlength=1 + len(clip["instances/mass"]))[1:]
    k = int(np.argmax(sizes))
    rows, columns = np.nonzero(mask == k + 1)
    x, y = clip["instances/image_positions"][k, 0]
    np.testing.assert_allclose([columns.mean() / 48, rows.mean() / 48], [x, y], atol=0.08)


def test_collisions_conserve_momentum():
    place = np.asarray([[0.0, 0.0], [1.0, 0.1]])
    speed = np.asarray([[2.0, 0.0], [0.0, 0.0]])
    ones, none = np.ones(2), np.zeros(2)
    mass = np.asarray([1.0, 3.0])
    motion = slide(place, speed, none, none, 0.3 * ones, mass, none, frames=12, fps=12)
    momentum = (motion.velocity * mass[None, :, None]).sum(axis=1)
    np.testing.assert_allclose(momentum, np.broadcast_to(momentum[:1], momentum.shape), atol=1e-12)
    assert len(motion.collisions) == 1
    assert motion.velocity[-1, 1, 0] > 0
    gaps = np.linalg.norm(motion.position[:, 0] - motion.position[:, 1], axis=-1)
    assert gaps.min() > 0.5  # they do not pass through each other
    braked = slide(place[:1], speed[:1], none[:1], none[:1], ones[:1], ones[:1], ones[:1], frames=12, fps=12)
    assert not braked.velocity[-1].any()


def test_integers_stand_for_values_between_their_bounds():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    steps, bounds = quantized(x)
    np.testing.assert_allclose(rescaled(steps, bounds), x, atol=(bounds[1] - bounds[0]) / 65535)
    still, around = quantized(np.zeros((2, 2), np.float32))
    assert not rescaled(still, around).any()


def test_what_is_trained_on_is_cut_out_of_what_is_kept():
    origin = MoviScenes("movi_c", "train", length=4, size=32, clips=2)
    clips = ObjectClips(origin, size=16, max_objects=2, depth=True, depth_scale="metres")
    record, kept = clips[0], origin[0]
    check_record(record, clips.spec, "clip")
    assert isinstance(clips, View)
    assert isinstance(clips, AugmentedSource)
    np.testing.assert_array_equal(record["boxes"], kept["boxes"][:, :2])
    assert record["mask"].max() <= 2 < kept["mask"].max()  # the others count as background
    means = kept["video"].reshape(4, 16, 2, 16, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(record["video"], means, atol=0.51)
    depth = rescaled(kept["depth"], kept["depth_range"]).reshape(4, 16, 2, 16, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(record["depth"], depth, rtol=1e-5)
    more = ObjectClips(origin, size=32, max_objects=8)[0]
    count = kept["boxes"].shape[1]
    assert more["boxes"].shape == (4, 8, 4)
    assert not more["boxes"][:, count:].any()
    assert not more["visible"][count:].any()
    np.testing.assert_array_equal(more["video"], kept["video"])


def test_a_mirrored_clip_mirrors_boxes_and_flow():
    rng = np.random.default_rng(0)
    clip = {
        "video": rng.random((2, 6, 8, 3)).astype(np.float32),
        "flow": rng.normal(size=(2, 6, 8, 2)).astype(np.float32),
        "segmentations": rng.integers(3, size=(2, 6, 8)),
        "boxes": np.asarray([[[0.1, 0.2, 0.5, 0.4], [0, 0, 0, 0]]] * 2, np.float32),
    }
    once = clip_ops.flip(clip, columns=True)
    np.testing.assert_allclose(once["boxes"][0, 0], [0.1, 0.6, 0.5, 0.8], atol=1e-6)
    assert not once["boxes"][:, 1].any()
    np.testing.assert_array_equal(once["flow"][..., 1], -clip["flow"][:, :, ::-1, 1])
    np.testing.assert_array_equal(once["flow"][..., 0], clip["flow"][:, :, ::-1, 0])
    both = clip_ops.flip(clip, rows=True, columns=True)
    np.testing.assert_allclose(both["boxes"][0, 0], [0.5, 0.6, 0.9, 0.8], atol=1e-6)
    for name, value in clip_ops.flip(once, columns=True).items():
        np.testing.assert_allclose(value, clip[name], atol=1e-6, err_msg=name)


def test_a_crop_of_everything_changes_nothing_and_one_outside_is_refused():
    source = MoviScenes("movi_a", "train", length=2, size=16)[0]
    clip = {"video": source["video"].astype(np.float32), "boxes": source["boxes"]}
    for name, value in clip_ops.resized_crop(clip, (0, 0, 16, 16), 16, 16).items():
        np.testing.assert_allclose(value, clip[name], atol=1e-6, err_msg=name)
    with pytest.raises(ConfigError, match="not inside frames of 16 x 16"):
        clip_ops.crop(clip, (8, 0, 16, 16))
    left = clip_ops.resized_crop(clip, (0, 0, 16, 8), 16, 16, relative_box_area=0.9)["boxes"]
    outside = clip["boxes"][..., 3] > 0.6
    assert not left[outside].any()


def test_training_windows_are_cropped_mirrored_and_begin_at_the_stride():
    origin = MoviScenes("movi_a", "train", length=8, size=24, clips=2)
    plain = ObjectClips(origin, size=24)
    whole = {i: plain[i]["video"] for i in range(2)}
    batches = iter(make_pipeline(plain, batch_size=2, seed=0, train=True, length=3, stride=3))
    starts = set()
    for _ in range(8):
        for video in next(batches)["video"]:
            found = [t for clip in whole.values() for t in range(6) if np.array_equal(video, clip[t : t + 3])]
            assert len(found) == 1
            starts.add(found[0])
    assert starts == {0, 3}
    changed = ObjectClips(origin, size=24, random_crop=True, flip=True)
    train, again = (
        next(iter(make_pipeline(changed, batch_size=2, seed=1, train=True, length=3, num_threads=n)))
        for n in (0, 2)
    )
    for name, value in train.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    same = next(iter(make_pipeline(plain, batch_size=2, seed=1, train=True, length=3)))
    assert not np.array_equal(train["video"], same["video"])
    evaluated = next(iter(make_pipeline(changed, batch_size=2, seed=1, train=False)))
    np.testing.assert_array_equal(evaluated["video"][0], whole[0])


def test_prepared_records_serve_every_size_and_option(tmp_path):
    options: dict[str, Any] = {"length": 7, "size": 24, "clips": 3, "max_objects": 4}
    double = open_source("movi_a", "train", **options)
    stored = prepare(double, tmp_path / "train")
    assert isinstance(stored, ArrayRecordSource)
    assert stored.spec.keys() == record_spec().keys()
    assert stored._chunk == 6
    opened = open_source("movi_a", "train", root=tmp_path, **options)
    for index in range(3):
        for name, value in double[index].items():
            np.testing.assert_array_equal(opened[index][name], value, err_msg=name)
    smaller = open_source("movi_a", "train", root=tmp_path, size=12, max_objects=2, depth=True, flow=False)
    assert smaller[0]["video"].shape == (7, 12, 12, 3)
    assert smaller[0].keys() == {"video", "mask", "boxes", "visible", "depth"}
    with pytest.raises(DataError, match="holds the data set 'movi_a', not 'movi_b'"):
        open_source("movi_b", "train", root=tmp_path)
    cached = open_source("movi_a", "train", cache=tmp_path / "cache", **options)
    np.testing.assert_array_equal(cached[1]["flow"], double[1]["flow"])


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_double_is_read_back_feature_by_feature(tmp_path, name):
    scenes = MoviScenes(name, "train", length=2, size=16, clips=3, max_objects=5, min_objects=2)
    export_movi(scenes, tmp_path, "train", per_shard=2)
    files = MoviFiles(name, tmp_path, "train")
    assert files.provenance == "embedded double"
    assert len(files) == 3
    for index in range(3):
        found, made = files.features(index), scenes.clip(index)
        assert found.keys() == made.keys()
        for feature, value in made.items():
            assert found[feature].dtype == value.dtype, feature
            np.testing.assert_array_equal(found[feature], value, err_msg=feature)
    with pytest.raises(DataError, match="has no shards of split 'validation'"):
        MoviFiles(name, tmp_path, "test")
    with pytest.raises(DataError, match="train and validation"):
        export_movi(scenes, tmp_path, "val")


def test_options_that_do_not_fit_are_sentences():
    with pytest.raises(ConfigError, match="size of at least 8"):
        open_source("movi_a", "train", size=4)
    with pytest.raises(ConfigError, match=r"1 to 10 objects.*got 5 and 4"):
        open_source("movi_a", "train", min_objects=5, max_objects=4)
    with pytest.raises(ConfigError, match="max_objects must lie between 1 and 255"):
        ObjectClips(MoviScenes("movi_a", "train"), max_objects=0)
    with pytest.raises(ConfigError, match=r"no depth_scale='log_pus'.*log_plus"):
        open_source("movi_a", "train", depth_scale="log_pus")
    with pytest.raises(ConfigError, match="flow must be true or false"):
        open_source("movi_a", "train", flow="yes")
    with pytest.raises(ConfigError, match="CLEVRER needs clips of at least 1"):
        ClevrerDouble("train", clips=0)


@pytest.mark.parametrize(
    ("name", "expected"), [("movi_a", "6f838c0b8bdf"), ("movi_e", "7fd1c6a4211f"), ("clevrer", "e17b1d308463")]
)
def test_the_doubles_are_the_same_pictures_everywhere(name, expected):
    """The cache of a double is told apart by VERSION: a changed picture needs a new one."""
    record = open_source(name, "train", length=2, size=16, clips=1)[0]
    assert hashlib.sha256(record["video"].tobytes()).hexdigest()[:12] == expected
