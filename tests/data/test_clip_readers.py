"""MOVi's and CLEVRER's files when something is wrong with them: each time one sentence that says what and where."""

import json
import pickle
import shutil

import numpy as np
import pytest

from slotzoo.data import make_pipeline, open_source
from slotzoo.data.export import export_published
from slotzoo.data.export_movi import export_movi
from slotzoo.data.movi_layout import dense_boxes
from slotzoo.data.object_clips import ObjectClips
from slotzoo.data.png import decode_png, encode_png
from slotzoo.data.sources.clevrer import ClevrerFiles
from slotzoo.data.sources.movi import MoviFiles
from slotzoo.data.spec import FieldSpec
from slotzoo.data.synthetic.clevrer import ClevrerDouble
from slotzoo.data.synthetic.movi import MoviScenes
from slotzoo.data.tfds_features import Declared, decode, read_features, write_features
from slotzoo.data.tfrecord import build_example, index_file, parse_example, read_at, write_file
from slotzoo.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """MOVi-A as TFDS lays it out: 4 clips of 3 frames, 16 x 16, in two shards, and as many for validation."""
    root = tmp_path_factory.mktemp("movi")
    for split in ("train", "test"):
        scenes = MoviScenes("movi_a", split, length=3, size=16, clips=4, max_objects=4)  # type: ignore[arg-type]
        export_movi(scenes, root, split, per_shard=2)
    return root


@pytest.fixture
def movi(exported, tmp_path):
    """A copy that a test may spoil: the root and the folder of the shards."""
    shutil.copytree(exported, tmp_path / "movi")
    return tmp_path / "movi", tmp_path / "movi" / "movi_a" / "16x16" / "1.0.0"


def first_shard(folder):
    return sorted(folder.glob("*-train.tfrecord*"))[0]


def rewritten(shard, change):
    """The shard with the features of its first clip changed."""
    examples = [parse_example(read_at(shard, place, "x"), "x") for place in index_file(shard)]
    change(examples[0])
    write_file(shard, [build_example(example) for example in examples])


def test_any_folder_on_the_way_to_the_shards_is_a_root(exported, tmp_path):
    folder = exported / "movi_a"
    for root in (exported, folder, folder / "16x16", folder / "16x16" / "1.0.0"):
        found = MoviFiles("movi_a", root, "train")
        assert len(found) == 4 and found.provenance == "embedded double"
    source = MoviFiles("movi_a", exported, "val")
    assert source.split == "validation"
    # What lies beside an exported double is not called one.
    shutil.copytree(folder, tmp_path / "movi" / "movi_a")
    (tmp_path / "movi" / "movi_a" / "16x16" / "1.0.0" / "provenance.json").unlink()
    export_movi(MoviScenes("movi_b", "train", length=2, size=16, clips=1), tmp_path / "movi", "train")
    found = {
        name: open_source(name, "train", root=tmp_path / "movi").provenance for name in ("movi_a", "movi_b")
    }
    assert found == {"movi_a": "real", "movi_b": "embedded double"}
    same = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(same[3]["video"], source[3]["video"])
    assert same.fingerprint == source.fingerprint


def test_a_truncated_shard_loses_its_last_clips_and_says_so(movi):
    root, folder = movi
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[:-100])
    source = open_source("movi_a", "train", root=root, size=16)
    assert len(source) == 4
    assert source[0]["video"].shape == (3, 16, 16, 3)
    with pytest.raises(
        DataError, match=r"tfrecord-00000-of-00002, record 1 \(clip 1\): the file is cut off within it"
    ):
        source[1]
    batches = make_pipeline(source, batch_size=4, seed=0, train=False, on_error="skip")
    assert next(iter(batches))["valid"].tolist() == [True, False, True, True]


def test_shards_that_were_not_fetched_are_missed(movi, caplog):
    root, folder = movi
    assert len(MoviFiles("movi_a", root, "train")) == 4 and not caplog.text
    first_shard(folder).unlink()
    assert len(MoviFiles("movi_a", root, "train")) == 2
    assert "has 1 shards of split 'train', dataset_info.json says 2" in caplog.text


def test_shards_of_two_exports_are_never_mixed(movi, caplog):
    root, folder = movi
    more = MoviScenes("movi_a", "train", length=3, size=16, clips=5, max_objects=4)
    with pytest.raises(DataError, match="2 shards of split 'train' of another export .*00000-of-00002"):
        export_movi(more, root, "train", per_shard=2)
    shutil.copy(first_shard(folder), folder / "movi_a-train.tfrecord-00000-of-00003")
    assert len(MoviFiles("movi_a", root, "train")) == 4
    assert "dataset_info.json says 2 shards, so only these are read" in caplog.text
    (folder / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="movi_a-train of 2 shards and movi_a-train of 3 shards.*told apart"):
        MoviFiles("movi_a", root, "train")


def test_a_wrong_checksum_is_found(movi):
    root, folder = movi
    shard = first_shard(folder)
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"record 0 \(clip 0\): wrong checksum; fetch the file again"):
        MoviFiles("movi_a", root, "train")[0]


def test_a_missing_feature_is_named(movi):
    root, folder = movi
    rewritten(first_shard(folder), lambda example: example.pop("segmentations"))
    with pytest.raises(DataError, match=r"clip 0\): no feature 'segmentations' with pictures; found"):
        MoviFiles("movi_a", root, "train")[0]
    path = folder / "features.json"
    declared = read_features(path)
    write_features(path, {name: kind for name, kind in declared.items() if name != "instances/bboxes"})
    with pytest.raises(DataError, match=r"features.json: no feature 'instances/bboxes', which movi_a has"):
        MoviFiles("movi_a", root, "train")


def test_a_set_without_flow_serves_other_targets(movi):
    root, folder = movi
    path = folder / "features.json"
    declared = read_features(path)
    write_features(path, {name: kind for name, kind in declared.items() if name != "backward_flow"})
    with pytest.raises(DataError, match=r"has no flow; set data.options.flow=false"):
        open_source("movi_a", "train", root=root, size=16)
    record = open_source("movi_a", "train", root=root, size=16, flow=False, depth=True)[0]
    assert "flow" not in record
    assert record["depth"].shape == (3, 16, 16, 1)


def test_flow_without_a_range_lies_within_255_pixels(movi):
    root, folder = movi
    path, shard = folder / "features.json", first_shard(folder)
    steps = MoviFiles("movi_a", root, "train")[0]["flow"]
    declared = read_features(path)
    declared["flow"] = declared.pop("backward_flow")
    write_features(path, {name: kind for name, kind in declared.items() if "flow_range" not in name})
    rewritten(shard, lambda example: example.update(flow=example.pop("backward_flow")))
    record = MoviFiles("movi_a", root, "train")[0]
    np.testing.assert_array_equal(record["flow"], steps)
    assert record["flow_range"].tolist() == [-255, 255]


def test_a_wrong_resolution_is_told(movi):
    root, folder = movi
    picture = encode_png(np.zeros((8, 16, 3), np.uint8))
    rewritten(first_shard(folder), lambda example: example["video"].__setitem__(1, picture))
    with pytest.raises(
        DataError, match=r"'video', picture 1 is 8 x 16 x 3 uint8, features.json declares 16 x 16 x 3"
    ):
        MoviFiles("movi_a", root, "train")[0]
    with pytest.raises(DataError, match=r"has no config 256x256; it has 16x16"):
        open_source("movi_a", "train", root=root, config="256x256")
    rewritten(first_shard(folder), lambda example: example["video"].pop())
    with pytest.raises(DataError, match="has 2 pictures, features.json declares"):
        MoviFiles("movi_a", root, "train")[0]


def test_of_several_sizes_one_is_chosen(movi):
    root, folder = movi
    shutil.copytree(folder.parent, folder.parents[1] / "128x128")
    assert "128x128" in str(MoviFiles("movi_a", root, "train").features_file)
    assert "16x16" in str(MoviFiles("movi_a", root, "train", config="16x16").features_file)


def test_numbers_that_do_not_fill_their_shape_are_refused(movi):
    root, folder = movi
    rewritten(first_shard(folder), lambda example: example.update(backward_flow=example["backward_flow"][:-1]))
    with pytest.raises(
        DataError, match=r"'backward_flow' has 1535 values, features.json declares 3 x 16 x 16 x 2"
    ):
        MoviFiles("movi_a", root, "train")[0]
    # What a window does not need is not looked at.
    source = MoviFiles("movi_a", root, "train")
    assert source.features(0, ["video"])["video"].shape == (3, 16, 16, 3)
    some = source.features(1, frames=slice(1, 3))
    assert {len(some[name]) for name in ("video", "forward_flow", "normal", "object_coordinates")} == {2}


def test_features_of_another_format_are_refused(movi):
    root, folder = movi
    path = folder / "features.json"
    text = path.read_text()
    for spoilt, expected in (
        (text[:-20], "cannot be used"),
        (text.replace('"encodingFormat": "png"', '"encodingFormat": "jpeg"'), "only png is read"),
        (text.replace('"encoding": "none"', '"encoding": "zlib"', 1), "in the encoding zlib"),
        (text.replace("text_feature.Text", "audio_feature.Audio"), "of the kind Audio"),
    ):
        path.write_text(spoilt)
        with pytest.raises(DataError, match=rf"features\.json: .*{expected}"):
            MoviFiles("movi_a", root, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"features\.json: no such file; TFDS writes it"):
        MoviFiles("movi_a", root, "train")


def test_the_oldest_features_json_is_understood(tmp_path):
    leaf = lambda kind, **content: {"type": f"tensorflow_datasets.x.{kind}", "content": json.dumps(content)}
    features = {
        "video": leaf("Video", shape={"dimensions": ["3", "4", "4", "3"]}, dtype="uint8"),
        "name": leaf("Text"),
        "flow": {
            "type": "tensorflow_datasets.x.Sequence",
            "content": {"feature": leaf("Tensor", shape={"dimensions": ["4"]}, dtype="uint16"), "length": 3},
        },
    }
    path = tmp_path / "features.json"
    path.write_text(json.dumps({"type": "tensorflow_datasets.x.FeaturesDict", "content": features}))
    assert read_features(path) == {
        "video": Declared("Video", "uint8", (3, 4, 4, 3)),
        "name": Declared("Text", "str", ()),
        "flow": Declared("Tensor", "uint16", (3, 4)),
    }


def test_a_list_of_nothing_has_the_declared_type():
    declared = {
        "events/frame": Declared("Tensor", "int32", (None,)),
        "events/place": Declared("Tensor", "float32", (None, 3)),
    }
    empty = {"events/frame": np.zeros(0, np.int32), "events/place": np.zeros((0, 3), np.float32)}
    example = parse_example(build_example(empty), "x")
    found = decode(example, declared, declared, "x")
    for name, value in empty.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape


def test_boxes_that_contradict_each_other_are_refused():
    box, frame, one = np.zeros((2, 4), np.float32), np.asarray([0, 1], np.int32), np.asarray([2])
    assert dense_boxes(box, frame, one, 3, "x").shape == (3, 1, 4)
    with pytest.raises(DataError, match="x: 2 boxes for 1 frames"):
        dense_boxes(box, frame[:1], one, 3, "x")
    with pytest.raises(DataError, match="a box belongs to frame 1 of 1"):
        dense_boxes(box, frame, one, 1, "x")


def test_roots_that_are_something_else_are_told_apart(tmp_path, exported):
    with pytest.raises(DataError, match=r"no such folder"):
        open_source("movi_a", "train", root=tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    with pytest.raises(
        DataError, match=r"no shards of split 'train': it is empty; expected .*movi_b/128x128/1.0.0/"
    ):
        open_source("movi_b", "train", root=tmp_path / "other")
    with pytest.raises(ConfigError, match="movi_a has no test_split=test; it has validation"):
        open_source("movi_a", "test", root=exported, test_split="test")


def test_frames_that_are_not_square_are_refused():
    class Wide(MoviScenes):
        @property
        def spec(self):
            return {"video": FieldSpec((None, 8, 16, 3), "uint8", 0, 255, "")}

    with pytest.raises(DataError, match="8 x 16 pixels, expected square ones"):
        ObjectClips(Wide("movi_a", "train"), flow=False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_of_both_depths_survive(channels, dtype):
    pixels = np.random.default_rng(0).integers(np.iinfo(dtype).max + 1, size=(5, 7, channels)).astype(dtype)
    data = encode_png(pixels)
    found = decode_png(data, "picture")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)
    with pytest.raises(DataError, match="frame 3: not a PNG picture"):
        decode_png(data[:20], "frame 3")
    with pytest.raises(DataError, match="frame 3: not a PNG picture"):
        decode_png(b"GIF89a" + data[6:], "frame 3")
    spoilt = bytearray(data)
    spoilt[-20] ^= 1
    with pytest.raises(DataError, match="not a PNG picture"):
        decode_png(bytes(spoilt), "frame 3")


def write_video(path, frames, *, size=(48, 32), rate=25, key_every=8):
    """Frames that grow lighter: number t is grey of 4 t + 20."""
    av = pytest.importorskip("av", reason="the extra `video` is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1", "g": str(key_every)}
        for t in range(frames):
            pixels = np.full((size[1], size[0], 3), 4 * t + 20, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def clevrer(tmp_path):
    """Published layout: videos of 24, 5 and 24 frames to train on."""
    for number, frames in enumerate((24, 5, 24)):
        write_video(tmp_path / "video_train" / "video_00000-01000" / f"video_{number:05d}.mp4", frames)
    write_video(tmp_path / "video_validation" / "video_10000-11000" / "video_10000.mp4", 9)
    return tmp_path


def greys(video):
    return np.rint((video.astype(np.float32).mean(axis=(1, 2, 3)) - 20) / 4).astype(int).tolist()


def test_a_window_of_a_video_is_its_frames(clevrer):
    source = ClevrerFiles(clevrer, "train", length=4, size=16)
    assert greys(source.window(0, 10, 4)["video"]) == [10, 11, 12, 13]
    assert greys(source[2]["video"]) == list(range(24))
    assert len(ClevrerFiles(clevrer, "val", length=4)) == 1


def test_a_short_video_is_refused_or_padded(clevrer):
    refusing = open_source("clevrer", "train", root=clevrer, length=8, size=16)
    batches = lambda source, **options: iter(
        make_pipeline(source, batch_size=3, seed=0, train=False, length=8, **options)
    )
    with pytest.raises(
        DataError, match=r"video_00001.mp4 \(clip 1\): 5 frames, fewer than the 8.*options.short=pad"
    ):
        next(batches(refusing))
    assert next(batches(refusing, on_error="skip"))["valid"].tolist() == [True, False, True]
    padding = open_source("clevrer", "train", root=clevrer, length=8, size=16, short="pad")
    batch = next(batches(padding))
    assert batch["valid"].all()
    assert greys(batch["video"][1]) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert greys(padding.window(1, 6, 2)["video"]) == [4, 4]  # type: ignore[attr-defined]
    assert refusing.fingerprint != padding.fingerprint
    with pytest.raises(ConfigError, match="no short=padd; it takes refuse and pad"):
        open_source("clevrer", "train", root=clevrer, short="padd")


def test_a_corrupted_video_is_named(clevrer):
    path = clevrer / "video_train" / "video_00000-01000" / "video_00002.mp4"
    path.write_bytes(path.read_bytes()[:300])
    source = ClevrerFiles(clevrer, "train", length=4, size=16)
    with pytest.raises(DataError, match=r"video_00002.mp4 \(clip 2\): cannot be decoded"):
        source[2]
    assert source[0]["video"].shape == (24, 16, 16, 3)


def test_a_video_of_another_size_is_refused(clevrer):
    write_video(clevrer / "video_train" / "video_00000-01000" / "video_00002.mp4", 24, size=(32, 32))
    source = ClevrerFiles(clevrer, "train", length=4, size=16)
    with pytest.raises(DataError, match=r"clip 2\): frames of 32 x 32 pixels, the other videos have 48 x 32"):
        source[2]


def test_videos_in_one_folder_are_told_apart_by_their_numbers(clevrer, tmp_path_factory):
    flat = tmp_path_factory.mktemp("flat")
    for number in (3, 10_002, 15_001):
        write_video(flat / f"video_{number:05d}.mp4", 4)
    for split, number in (("train", 3), ("val", 10_002), ("test", 15_001)):
        (path,) = ClevrerFiles(flat, split, length=2)._files  # type: ignore[arg-type]
        assert path.name == f"video_{number:05d}.mp4"
    with pytest.raises(
        DataError, match=r"no videos of split 'test'.*expected .*/video_test/video_\*/video_\*.mp4"
    ):
        ClevrerFiles(clevrer, "test")
    same = pickle.loads(pickle.dumps(ClevrerFiles(clevrer, "train", length=4, size=16)))
    assert greys(same.window(0, 1, 2)["video"]) == [1, 2]


def test_an_exported_double_is_read_back_frame_by_frame(tmp_path):
    pytest.importorskip("av", reason="the extra `video` is not installed")
    for split in ("train", "val", "test"):
        double = ClevrerDouble(split, length=5, size=32, clips=2)  # type: ignore[arg-type]
        export_published(double, tmp_path, split)
        source = open_source("clevrer", split, root=tmp_path, length=5, size=32)  # type: ignore[arg-type]
        assert source.provenance == "embedded double"
        assert len(source) == 2
        for index in range(2):
            difference = source[index]["video"].astype(np.int32) - double[index]["video"]
            assert np.abs(difference).mean() < 4  # of 255: the video codec, and colours at half the resolution
    assert (tmp_path / "video_validation" / "video_10000-11000" / "video_10001.mp4").is_file()
    for root in (tmp_path / "video_train", tmp_path / "video_train" / "video_00000-01000"):
        assert open_source("clevrer", "train", root=root, length=5).provenance == "embedded double"
