"""The task of objects in videos: what it optimises, measures by two protocols, and draws."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, DataError
from slotzoo.tasks.follow import follow, painted_boxes, partners, tracker
from slotzoo.tasks.object_videos import ObjectVideosConfig, ObjectVideosTask
from tests.models.test_slotssm import OBJECTS, build
from tests.tasks.tracks import Follower, FollowerConfig, Forgetful


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture(scope="module")
def batch():
    """Two squares that move apart; a clip without objects; one whose second object comes late."""
    mask = np.zeros((3, 5, 8, 8), np.uint8)
    boxes = np.zeros((3, 5, 2, 4), np.float32)
    for clip in (0, 2):
        for time in range(5):
            if clip == 0 or time > 2:
                mask[clip, time, 5:7, 1:4] = 2
                boxes[clip, time, 1] = np.asarray([5, 1, 7, 4]) / 8
            mask[clip, time, 1:4, time : time + 3] = 1
            boxes[clip, time, 0] = np.asarray([1, time, 4, time + 3]) / 8
    video = np.asarray([0, 128, 255], np.uint8)[mask][..., None].repeat(3, -1)
    return {"video": video, "mask": mask, "boxes": boxes, "flow": video}


def evaluate(task, model, batches, folder, should_stop=lambda: False):
    folder.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(3)
    return task.evaluate(model, None, batches, key=key, step=1, folder=folder, should_stop=should_stop)


def table(folder, number=0):
    rows = json.loads((folder / "table.json").read_text())["tables"][number]["rows"]
    return {row["name"]: row for row in rows}


def test_loss_is_the_mean_over_clips(batch):
    model = eqx.tree_at(lambda m: m.gain, Follower(), jnp.float32(0))
    loss, terms = eqx.filter_jit(ObjectVideosTask().loss)(
        model, None, batch, key=jax.random.key(0), step=jnp.asarray(0)
    )
    np.testing.assert_allclose(loss, np.square(batch["flow"] / 255).sum() / 3, rtol=1e-5)
    assert set(terms) == {"flow"}


def test_evaluation(batch, tmp_path):
    numbers = evaluate(
        ObjectVideosTask(ObjectVideosConfig(chunk=2, pictures=1)), Follower(), [batch], tmp_path / "a"
    )
    assert numbers["loss"] == pytest.approx(0, abs=1e-6) and numbers["flow_mse"] == pytest.approx(0, abs=1e-9)
    for name in ("ari", "fg_ari", "miou", "hinted_miou", "authors_fg_ari"):
        assert numbers[name] == pytest.approx(1.0), name
    # Of the third clip the second object was never named, so nothing was to follow it.
    assert numbers["region"] == pytest.approx((1 + 0.5) / 2 + 0.5 * 3 / 5 / 2)
    assert numbers["slots_in_use"] == pytest.approx((3 + 1 + 3) / 3)
    rows = table(tmp_path / "a")
    assert rows["true segments of the first frame, held"]["FG-ARI"] < 0.7
    assert rows["boxes of the first frame, held"]["mIoU"] == pytest.approx(
        rows["true segments of the first frame, held"]["mIoU"], abs=0.05
    )
    assert rows["its first frame, held"]["FG-ARI"] < 0.7
    assert (tmp_path / "a" / "tracks.png").is_file() and (tmp_path / "a" / "flow_wheel.png").is_file()
    assert sorted(path.stem for path in (tmp_path / "a").glob("clip*")) == ["clip_1", "clip_1_slots"]

    # Neither the length of a slice matters, nor what fills up a batch, nor how clips are dealt out to batches.
    filled = [
        {name: np.concatenate([x[:2], x[:1]]) for name, x in batch.items()},
        {n: x[2:] for n, x in batch.items()},
    ]
    filled[0]["valid"] = np.asarray([True, True, False])
    task = ObjectVideosTask(ObjectVideosConfig(chunk=5, pictures=0))
    assert evaluate(task, Follower(), filled, tmp_path / "b") == pytest.approx(numbers, rel=1e-5, abs=1e-6)
    assert not list((tmp_path / "b").glob("*.png"))


def test_authors_protocol_empties_the_memory_and_counts_empty_clips(batch, tmp_path):
    """Two objects are exchanged after three frames unless the memory was emptied."""
    few = {name: x[:2] for name, x in batch.items()}
    task = ObjectVideosTask(ObjectVideosConfig(chunk=3, pictures=0))
    forgetful = evaluate(task, Forgetful(stamina=3), [few], tmp_path)
    carried = evaluate(task, Follower(stamina=3), [few], tmp_path)
    assert forgetful["fg_ari"] == carried["fg_ari"] < 0.5
    assert forgetful["authors_fg_ari"] == pytest.approx(1.0)
    # The clip without objects counts as 1 by their protocol and not at all by the other.
    assert carried["authors_fg_ari"] == pytest.approx((1 + carried["fg_ari"]) / 2, rel=1e-5)


def test_without_hints_and_without_masks(batch, tmp_path):
    model = Follower(FollowerConfig(conditioning=None, targets=("rgb",)))
    task = ObjectVideosTask(ObjectVideosConfig(pictures=1, most_objects=2, attention=True))
    few = {name: batch[name][:2] for name in ("video", "mask")}
    numbers = evaluate(task, model, [few], tmp_path)
    assert "hinted_miou" not in numbers and numbers["fg_ari"] == pytest.approx(1.0) and "rgb_mse" in numbers
    assert "boxes of the first frame, held" not in table(tmp_path)
    # It looks where it paints.
    assert numbers["attention_fg_ari"] == numbers["attention_miou"] == pytest.approx(1.0)
    assert table(tmp_path)["its attention to the frames"]["J&F"] == pytest.approx(1.0)
    assert "its attention to the frames" not in table(tmp_path, 1)
    bare = evaluate(task, model, [{"video": few["video"]}], tmp_path)
    assert "fg_ari" not in bare and "no masks" in (tmp_path / "table.json").read_text()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (FollowerConfig(), [-1, 1, -1, -1]),
        (FollowerConfig(background=None), [-1, 0, -1, -1]),
        (FollowerConfig(conditioning="segmentation"), [-1, 1, -1, -1]),
    ],
    ids=["boxes", "no background", "segmentation"],
)
def test_slots_that_were_given_an_object(batch, config, expected):
    late = {name: jnp.asarray(x[2]) for name, x in batch.items()}
    np.testing.assert_array_equal(partners(late, config, 4), expected)
    assert partners(late, FollowerConfig(conditioning=None), 4) is None


def test_labels_from_the_number_of_slots_on_are_given_to_none():
    clip = {"mask": jnp.arange(6, dtype=jnp.uint8).reshape(1, 2, 3)}
    config = FollowerConfig(conditioning="segmentation", num_slots=4)
    np.testing.assert_array_equal(partners(clip, config, 8), [-1, 1, 2, 3, -1, -1, -1, -1])


def test_what_is_held_of_still_objects_is_perfect_without_a_background_slot(batch, tmp_path):
    still = {name: np.repeat(x[:1, :1], 2, axis=1) for name, x in batch.items()}
    task = ObjectVideosTask(ObjectVideosConfig(pictures=0))
    evaluate(task, Follower(FollowerConfig(background=None)), [still], tmp_path)
    rows = table(tmp_path)
    for name in ("true segments of the first frame, held", "boxes of the first frame, held"):
        for score in ("mIoU", "mIoU of the hinted slot", "J", "F"):
            assert rows[name][score] == pytest.approx(1.0), (name, score)
    # This model's slots are one too far, by its own count, so its own rows lose what they are told by.
    for name in ("model", "its first frame, held"):
        assert rows[name]["mIoU"] == pytest.approx(1.0) and rows[name]["mIoU of the hinted slot"] == 0


def test_missing_fields_are_sentences(batch):
    clip = {name: jnp.asarray(x[0]) for name, x in batch.items()}
    model = Follower(FollowerConfig(targets=("depth",)))
    with pytest.raises(DataError, match="predicts 'depth'.*data.options.depth=true"):
        follow(model, clip, chunk=2, key=jax.random.key(0))


def test_stops_and_refuses_nothing(batch, tmp_path):
    task = ObjectVideosTask()
    assert evaluate(task, Follower(), [batch], tmp_path, should_stop=lambda: True) == {}
    with pytest.raises(DataError, match=r"raise eval\.clips"):
        evaluate(task, Follower(), [], tmp_path)
    with pytest.raises(ConfigError, match="chunk"):
        ObjectVideosConfig(chunk=0)


def test_what_fills_up_a_slice_needs_no_room():
    """Of 7 frames, as many as the model remembers: at once, and in slices of which the last one ends after them."""
    model = tracker(build(OBJECTS, mixer="attention"))
    video = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    clip, key = {"video": jnp.asarray(video)}, jax.random.key(0)

    def tracked(chunk):
        track = ObjectVideosTask(ObjectVideosConfig(chunk=chunk)).track(model, video, {}, key=key)
        return {"masks": track.masks, "slots": track.slots, **track.predictions}

    whole, sliced = tracked(10), tracked(4)
    for name, value in whole.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(sliced[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    followed = eqx.filter_jit(follow)(model, clip, chunk=4, key=key)
    np.testing.assert_array_equal(followed.labels, whole["masks"].argmax(1))
    np.testing.assert_allclose(followed.shares.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(followed.errors["rgb"], np.square(whole["rgb"] - video / 255).sum(), rtol=1e-4)
    longer = eqx.filter_eval_shape(lambda m: follow(m, clip, chunk=10, key=key), model)
    assert longer.labels.shape == (7, 8, 8)


def test_boxes_are_painted_smallest_on_top():
    boxes = jnp.asarray([[0, 0, 1, 0.5], [0.25, 0.25, 0.5, 0.5], [0, 0, 0, 0]], jnp.float32)
    expected = [[1, 1, 0, 0], [1, 2, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    np.testing.assert_array_equal(painted_boxes(boxes, 4, 4), expected)
