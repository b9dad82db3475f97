"""Readers of published layouts, tried on exports of the embedded doubles."""

import json
import pickle
import shutil

import numpy as np
import pytest

from slotzoo.data import open_source, prepare
from slotzoo.data.export import export_encoded, export_teco
from slotzoo.data.sources.array_record import ArrayRecordSource
from slotzoo.data.sources.teco import TecoSource
from slotzoo.data.sources.tfds import EncodedSource
from slotzoo.data.spec import FieldSpec, Source, check_record
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.data.synthetic.tokens import MazeTokenSource, encode_patches, palette
from slotzoo.errors import ConfigError, DataError
from tests.arrays import same_records


OPTIONS = {"length": 5, "size": 16, "clips": 5}


@pytest.fixture(scope="module")
def teco_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dmlab"
    for split in ("train", "test"):
        export_teco(MazeSource(split, **OPTIONS), root, split, per_folder=2)
    return root


@pytest.fixture(scope="module")
def encoded_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dmlab_encoded"
    for split in ("train", "test"):
        export_encoded(MazeTokenSource(split, **OPTIONS), root, split, shards=2)
    return root


def test_teco_layout_gives_the_same_records(teco_root):
    source = open_source("dmlab", "test", root=teco_root)
    assert isinstance(source, TecoSource) and isinstance(source, Source)
    assert same_records(source, MazeSource("test", **OPTIONS))
    check_record(source[0], source.spec, "clip 0")
    assert source.spec["video"].shape == (None, 16, 16, 3)
    assert source.fingerprint != open_source("dmlab", "train", root=teco_root).fingerprint
    assert same_records(pickle.loads(pickle.dumps(source)), source)


def test_encoded_layout_gives_the_same_records(encoded_root):
    source = open_source("dmlab_encoded", "train", root=encoded_root)
    assert isinstance(source, EncodedSource) and isinstance(source, Source)
    assert same_records(source, MazeTokenSource("train", **OPTIONS))
    assert source.spec["tokens"].shape == (None, 4, 4)
    for root in (encoded_root, encoded_root / "1.0.0"):
        assert open_source("dmlab_encoded", "train", root=root).provenance == "embedded double"


def test_an_export_of_a_double_is_not_taken_for_the_published_set(teco_root, tmp_path):
    assert open_source("dmlab", "train", root=teco_root).provenance == "embedded double"
    shutil.copytree(teco_root / "train", tmp_path / "train")
    assert open_source("dmlab", "train", root=tmp_path).provenance == "real"


def test_an_export_beside_the_clips_of_another_one_is_refused(teco_root, encoded_root, tmp_path):
    shutil.copytree(teco_root, tmp_path / "dmlab")
    fewer = MazeSource("train", **{**OPTIONS, "clips": 1})
    with pytest.raises(DataError, match=r"train has \d other clips \(0000/000001.npz\).*choose another folder"):
        export_teco(fewer, tmp_path / "dmlab", "train", per_folder=2)
    assert same_records(open_source("dmlab", "train", root=tmp_path / "dmlab"), MazeSource("train", **OPTIONS))
    export_teco(MazeSource("train", **OPTIONS), tmp_path / "dmlab", "train", per_folder=2)  # the same again
    shutil.copytree(encoded_root, tmp_path / "dmlab_encoded")
    with pytest.raises(DataError, match="2 shards of split 'train' of another export"):
        export_encoded(MazeTokenSource("train", **OPTIONS), tmp_path / "dmlab_encoded", "train")


def test_encoded_sets_without_descriptions_and_of_old_tfds_are_read(encoded_root, tmp_path):
    reference = MazeTokenSource("train", **OPTIONS)
    folder = tmp_path / "1.0.0"
    shutil.copytree(encoded_root / "1.0.0", folder)
    (folder / "features.json").unlink()
    (folder / "dataset_info.json").unlink()
    assert same_records(EncodedSource(tmp_path, "train"), reference)
    content = json.dumps({"shape": [None, 4, 4], "dtype": "uint16", "encoding": "none"})
    (folder / "features.json").write_text(json.dumps({"content": {"video": {"content": content}}}))
    assert same_records(EncodedSource(folder, "train"), reference)
    (folder / "features.json").write_text("{}")
    with pytest.raises(DataError, match=r"features.json: not the features of an encoded video set"):
        EncodedSource(tmp_path, "train")


def test_palette_codes_cover_the_codebook_and_draw_the_picture():
    video = MazeSource("train", length=2, size=32, clips=1)[0]["video"]
    code = encode_patches(video)
    assert code.shape == (2, 8, 8) and code.min() >= 0 and code.max() < 1024
    colours = palette()
    assert colours.shape == (1024, 3)
    mean = video.reshape(2, 8, 4, 8, 4, 3).mean((2, 4))
    assert np.abs(colours[code] - mean).max() <= 17
    # Every colour of the palette is its own code.
    tiles = np.repeat(np.repeat(colours.reshape(1, 32, 32, 3), 4, 1), 4, 2)
    assert np.array_equal(encode_patches(tiles).ravel(), np.arange(1024))


def broken(tmp_path, **arrays):
    folder = tmp_path / "train" / "0"
    folder.mkdir(parents=True, exist_ok=True)
    good = MazeSource("train", length=4, size=8, clips=1)[0]
    np.savez(folder / "0.npz", **good)
    np.savez(folder / "1.npz", **arrays)
    return TecoSource(tmp_path, "train")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"video": None}, "no key 'video'; found actions"),
        ({"actions": None}, "no key 'actions'; found video"),
        ({"video": np.zeros((4, 8, 8, 3), np.float32)}, "'video' has dtype float32, expected uint8"),
        (
            {"video": np.zeros((4, 9, 9, 3), np.uint8)},
            r"'video' has shape \(4, 9, 9, 3\), expected \(any, 8, 8, 3\)",
        ),
        ({"video": np.zeros((0, 8, 8, 3), np.uint8)}, r"'video' is empty, shape \(0, 8, 8, 3\)"),
        ({"actions": np.zeros(4, np.float32)}, "'actions' has dtype float32, expected int32"),
        ({"actions": np.array([0, 1, 2, 6])}, "'actions' has values from 0 to 6, expected 0 to 5"),
        ({"actions": np.array([0, -1, 2, 5])}, "'actions' has values from -1 to 5"),
        ({"actions": np.zeros(3, np.int64)}, "'actions' has 3 time steps but 'video' has 4"),
        ({"actions": np.array([None] * 4)}, "cannot be read"),
    ],
)
def test_a_clip_that_breaks_the_spec_is_named(tmp_path, change, sentence):
    good = {"video": np.zeros((4, 8, 8, 3), np.uint8), "actions": np.zeros(4, np.int64)}
    arrays = {name: x for name, x in {**good, **change}.items() if x is not None}
    with pytest.raises(DataError, match=rf"1.npz \(clip 1\): .*{sentence}"):
        broken(tmp_path, **arrays)[1]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped"])
def test_a_damaged_npz_is_named(teco_root, tmp_path, damage):
    shutil.copytree(teco_root, tmp_path / "d")
    path = sorted((tmp_path / "d" / "train").glob("*/*.npz"))[3]
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        for place in range(len(data) // 2, len(data) // 2 + 64):
            data[place] ^= 0x5A
    replaced = {"cut": data[: len(data) // 2], "empty": b"", "garbage": b"x" * 500, "flipped": data}[damage]
    path.write_bytes(bytes(replaced))
    source = TecoSource(tmp_path / "d", "train")
    with pytest.raises(DataError, match=rf"{path.name} \(clip 3\): cannot be read .*on_error=skip"):
        source[3]
    source[2]


def test_the_frame_size_comes_from_the_first_clip_that_can_be_read(tmp_path):
    source = broken(tmp_path, video=np.zeros((4, 8, 8, 3), np.uint8), actions=np.zeros(4, np.int32))
    (tmp_path / "train" / "0" / "0.npz").write_bytes(b"torn")
    assert source.spec["video"].shape == (None, 8, 8, 3)
    (tmp_path / "train" / "0" / "1.npz").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"0.npz: cannot be read"):
        TecoSource(tmp_path, "train").spec  # noqa: B018
    np.savez(
        tmp_path / "train" / "0" / "1.npz",
        video=np.zeros((4, 8, 9, 3), np.uint8),
        actions=np.zeros(4, np.int32),
    )
    with pytest.raises(DataError, match="expected .time, size, size, 3., square RGB frames"):
        TecoSource(tmp_path, "train").spec  # noqa: B018


@pytest.mark.parametrize("name", ["dmlab", "dmlab_encoded"])
def test_roots_that_do_not_hold_the_data_set_are_explained(tmp_path, name):
    with pytest.raises(DataError, match="nowhere: no such folder; give the folder of the published"):
        open_source(name, "train", root=tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; give the folder"):
        open_source(name, "train", root=tmp_path / "file")
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match=r"it is empty; expected .*manifest.json"):
        open_source(name, "train", root=tmp_path / "root")
    for other in "abcdefgh":
        (tmp_path / "root" / other).mkdir()
    with pytest.raises(DataError, match=r"it holds a/, b/, c/, d/, e/, f/ and 2 more; expected "):
        open_source(name, "train", root=tmp_path / "root")


@pytest.mark.parametrize(
    "name, file, sentence",
    [
        ("dmlab", "train/0/0.npz", "0.npz.*: no key 'actions'; found video"),
        ("moving_mnist", "train/0.npz", r"0.npz \(clip 0\): no key 'data'; found video"),
        ("minecraft", "train/0/0.mp4", "0.mp4.*: cannot be decoded"),
    ],
)
def test_files_of_another_kind_open_unread_and_are_named_by_their_reader(tmp_path, name, file, sentence):
    path = tmp_path / "root" / file
    path.parent.mkdir(parents=True)
    if path.suffix == ".npz":
        np.savez(path, video=np.zeros((4, 8, 8, 3), np.uint8))
    else:
        path.write_bytes(b"garbage")
        np.savez(path.with_suffix(".npz"), actions=np.zeros(4, np.int32))
    source = open_source(name, "train", root=tmp_path / "root")
    assert "_spec" not in vars(source)
    with pytest.raises(DataError, match=sentence):
        source.spec  # noqa: B018
    with pytest.raises(DataError, match=f"not one of its 1 records can be read. The first: .*{sentence}"):
        prepare(source, tmp_path / "out")


def test_an_empty_split_is_explained(tmp_path):
    (tmp_path / "train" / "0").mkdir(parents=True)
    with pytest.raises(DataError, match=r"train has no npz files: it holds 0/; expected .*/train/\*/\*.npz"):
        open_source("dmlab", "train", root=tmp_path)


def damaged_shard(encoded_root, tmp_path, change):
    shutil.copytree(encoded_root, tmp_path / "e")
    path = sorted((tmp_path / "e" / "1.0.0").glob("*-train.tfrecord*"))[0]
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(data)))
    return path, EncodedSource(tmp_path / "e", "train")


def flip(place):
    def change(data):
        data[place] ^= 1
        return data

    return change


@pytest.mark.parametrize(
    "change, index, sentence",
    [
        (flip(60), 0, "wrong checksum"),
        (flip(-3), 1, "wrong checksum"),
        (lambda data: data[:-20], 1, "the file is cut off within it"),
        (flip(0), 0, "the checksum of its length is wrong"),
        (flip(0), 1, "it is missing from the file"),
        (lambda data: data[:5], 0, "the file is cut off within a header"),
        (lambda data: b"", 1, "it is missing from the file"),
    ],
)
def test_a_damaged_record_is_named_and_the_numbering_stays(encoded_root, tmp_path, change, index, sentence):
    path, source = damaged_shard(encoded_root, tmp_path, change)
    assert len(source) == 5
    with pytest.raises(DataError, match=rf"{path.name}, record {index} \(clip {index}\): {sentence}"):
        source[index]
    assert np.array_equal(source[2]["tokens"], MazeTokenSource("train", **OPTIONS)[2]["tokens"])


def test_unknown_names_and_options_get_the_nearest_spelling():
    with pytest.raises(ConfigError, match="No data set 'dmlabs'.*Did you mean 'dmlab'"):
        open_source("dmlabs", "train")
    with pytest.raises(ConfigError, match="no option 'lenght'.*Did you mean 'length'"):
        open_source("dmlab", "train", lenght=3)
    with pytest.raises(ConfigError, match="multiple of 4, got 30"):
        open_source("dmlab_encoded", "train", size=30)


def test_check_record_refuses_values_that_are_not_finite():
    spec = {"x": FieldSpec((None,), "float32", 0.0, 1.0, "a share")}
    check_record({"x": np.array([0, 1], np.float32)}, spec, "here")
    for bad in (np.nan, np.inf):
        with pytest.raises(DataError, match="here: 'x' has values that are not finite"):
            check_record({"x": np.array([0, bad], np.float32)}, spec, "here")


def test_a_prepared_folder_of_another_data_set_is_refused(tmp_path):
    from slotzoo.data import prepare

    prepare(MazeTokenSource("train", **OPTIONS), tmp_path / "train")
    assert isinstance(open_source("dmlab_encoded", "train", root=tmp_path), ArrayRecordSource)
    with pytest.raises(DataError, match="holds the data set 'dmlab_encoded', not 'dmlab'"):
        open_source("dmlab", "train", root=tmp_path)
