"""Conversion to ArrayRecord: same records, resumed, verified; damage named; the cache of the doubles."""

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from slotzoo.data import open_source, prepare, verify
from slotzoo.data.codec import decode, encode
from slotzoo.data.preparation import locked
from slotzoo.data.sources.array_record import ArrayRecordSource
from slotzoo.data.spec import Source
from slotzoo.data.synthetic import maze
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.errors import DataError
from tests.arrays import same_records
from tests.data.sources import Numbered


MAZES = {"length": 4, "size": 16, "clips": 7}


def prepared(folder, source=None, **options):
    """In shards of two clips."""
    source = source or MazeSource("train", **MAZES)
    size = sum(x.nbytes for x in source[0].values())
    return prepare(source, folder, **{"shard_bytes": 2 * size, "workers": 2, **options})


@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=5),
        hnp.arrays(
            st.sampled_from(["uint8", "int32", "float32", "bool"]), hnp.array_shapes(min_dims=0, min_side=0)
        ),
        max_size=3,
    )
)
def test_records_survive_being_bytes(arrays):
    data = encode(arrays)
    found = decode(data, "here")
    assert found.keys() == arrays.keys() and encode(found) == data
    for name, x in arrays.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        assert found[name].tobytes() == x.tobytes()
    assert encode(dict(reversed(arrays.items()))) == data


@pytest.mark.parametrize("cut", [0, 3, 10, -1])
def test_bytes_that_are_no_record_are_refused(cut):
    data = encode({"x": np.arange(9)})
    for wrong in (data[:cut], data + b"x", b"XXXX" + data[4:], data.replace(b"<i8", b"|O8")):
        with pytest.raises(DataError, match="here: not a record of slotzoo"):
            decode(wrong, "here")


def test_prepared_records_are_those_of_the_source(tmp_path):
    seen = []
    found = prepared(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert isinstance(found, ArrayRecordSource) and isinstance(found, Source)
    source = MazeSource("train", **MAZES)
    assert same_records(found, source)
    assert (found.name, found.provenance, found.fingerprint) == ("dmlab", "embedded double", source.fingerprint)
    assert found.spec == source.spec and str(tmp_path) not in repr(found)
    assert len(list(tmp_path.glob("*.array_record"))) == 4 and not list(tmp_path.glob("*.array_record.json"))
    assert seen[-1] == (7, 7) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert verify(tmp_path) == 7
    found[3]
    assert same_records(pickle.loads(pickle.dumps(found)), source)
    found.close()
    assert same_records(found, source)
    with pytest.raises(IndexError):
        found[7]


def test_an_interrupted_preparation_goes_on_after_the_last_complete_shard(tmp_path):
    class Stops(MazeSource):
        def __getitem__(self, index):
            if index == 5:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    class Counts(MazeSource):
        read = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, Stops("train", **MAZES), workers=1)
    assert len(list(tmp_path.glob("0*.array_record"))) == 2
    with pytest.raises(
        DataError, match=r"no manifest.json; it is not a prepared data set, or not a complete one"
    ):
        ArrayRecordSource(tmp_path)
    # Another class has another repr of the source only by name: the fingerprint is that of the maze.
    for source in (Stops, Counts):
        source.__repr__ = MazeSource.__repr__
    found = prepared(tmp_path, Counts("train", **MAZES))
    assert sorted(set(Counts.read)) == [0, 4, 5, 6]  # 0: to learn the size of a record
    assert same_records(found, MazeSource("train", **MAZES)) and verify(tmp_path) == 7
    assert not list(tmp_path.glob(".*.tmp"))
    Counts.read.clear()
    assert same_records(prepared(tmp_path, Counts("train", **MAZES)), MazeSource("train", **MAZES))
    assert Counts.read == [0] * 0 or set(Counts.read) == {0}


def test_shards_of_an_abandoned_preparation_are_removed(tmp_path, caplog):
    with pytest.raises(DataError, match="clip 5: corrupted"):
        prepared(tmp_path, Numbered(6, bad=[5]))
    assert (tmp_path / "00000-of-00003.array_record").exists()
    (tmp_path / "my-00000-of-00003.array_record").write_text("a user's")
    found = prepared(tmp_path, Numbered(4))
    assert [int(found[i]["label"]) for i in range(len(found))] == [0, 1, 2, 3]
    left = {path.name for path in tmp_path.iterdir()}
    assert {name for name in left if "-of-00003" in name} == {"my-00000-of-00003.array_record"}
    assert "removed" in caplog.text and "00001-of-00003.array_record" in caplog.text


@pytest.mark.slow
def test_a_killed_preparation_is_completed_by_the_next(tmp_path):
    code = f"""
import time
from slotzoo.data import prepare
from slotzoo.data.synthetic.maze import MazeSource
class Slow(MazeSource):
    __repr__ = MazeSource.__repr__
    def __getitem__(self, index):
        time.sleep(0.1 if index else 0)
        return super().__getitem__(index)
prepare(Slow("train", length=4, size=16, clips=7), {str(tmp_path)!r}, workers=1, shard_bytes=2 * 3088)
"""
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "SLOTZOO_TYPECHECK": "0"})
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("0*.array_record")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "manifest.json").exists() and list(tmp_path.glob("0*.array_record"))
    assert same_records(prepared(tmp_path), MazeSource("train", **MAZES)) and verify(tmp_path) == 7


def test_two_preparations_at_once_do_the_work_once(tmp_path):
    reads = []

    class Counts(MazeSource):
        __repr__ = MazeSource.__repr__

        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    threads = [threading.Thread(target=prepared, args=(tmp_path, Counts("train", **MAZES))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for index in reads if index) == [1, 2, 3, 4, 5, 6]
    assert same_records(ArrayRecordSource(tmp_path), MazeSource("train", **MAZES))


def test_a_folder_of_another_source_is_refused(tmp_path):
    prepared(tmp_path)
    with pytest.raises(DataError, match="holds another data set .*choose another folder or delete this one"):
        prepared(tmp_path, MazeSource("train", **{**MAZES, "seed": 1}))


def test_corrupted_records_stop_the_preparation_or_are_listed(tmp_path):
    with pytest.raises(DataError, match="numbered, clip 3: corrupted"):
        prepared(tmp_path / "a", Numbered(6, bad=[3]))
    found = prepared(tmp_path / "b", Numbered(6, bad=[3, 4]), on_error="skip")
    assert [int(found[i]["label"]) for i in range(len(found))] == [0, 1, 2, 5]
    assert found.skipped == [3, 4] and found.fingerprint != Numbered(6).fingerprint
    with pytest.raises(DataError, match="clip 4: corrupted"):
        prepared(tmp_path / "c", Numbered(6, bad=[3, 4]), on_error="skip", max_skips=1)
    # What a run left out before it was stopped counts in the next one, and is read again where nothing may be left out.
    for _ in range(2):
        with pytest.raises(DataError, match="2 corrupted records, more than max_skips=1"):
            prepared(tmp_path / "f", Numbered(6, bad=[1, 4]), on_error="skip", max_skips=1, shard_bytes=2 * 28)
    with pytest.raises(DataError, match="clip 1: corrupted"):
        prepared(tmp_path / "f", Numbered(6, bad=[1]), shard_bytes=2 * 28)
    assert prepared(tmp_path / "f", Numbered(6), shard_bytes=2 * 28).skipped == []
    # The first record only tells the size of shards: it may be a corrupted one too.
    assert len(prepare(Numbered(4, bad=[0]), tmp_path / "d", on_error="skip")) == 3
    with pytest.raises(DataError, match="has no records; there is nothing to prepare"):
        prepare(Numbered(0), tmp_path / "e")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    prepared(folder)
    return folder


def damaged(intact, tmp_path, change):
    folder = tmp_path / "copy"
    shutil.copytree(intact, folder)
    path = sorted(folder.glob("*.array_record"))[1]
    path.write_bytes(bytes(change(bytearray(path.read_bytes()))))
    return folder, path


def test_a_flipped_byte_is_named_and_spares_the_others(intact, tmp_path):
    def flip(data):
        data[400] ^= 1
        return data

    folder, path = damaged(intact, tmp_path, flip)
    source = ArrayRecordSource(folder)
    with pytest.raises(DataError, match=rf"{path.name}, record \d \(clip [23]\): corrupted"):
        source[2], source[3]
    with pytest.raises(DataError, match="corrupted|not those that were written"):
        verify(folder)
    assert np.array_equal(source[0]["video"], MazeSource("train", **MAZES)[0]["video"])


def test_shards_that_are_cut_off_missing_or_swapped_are_named(intact, tmp_path):
    folder, path = damaged(intact, tmp_path, lambda data: data[: len(data) // 2])
    with pytest.raises(
        DataError, match=rf"{path.name}: has \d+ bytes, manifest.json says \d+; delete manifest.json"
    ):
        ArrayRecordSource(folder)
    size = path.stat().st_size * 2
    path.write_bytes(bytes(size))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][1]["bytes"] = size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"{path.name}: not a complete ArrayRecord file|corrupted"):
        ArrayRecordSource(folder)[2]
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: is missing"):
        ArrayRecordSource(folder)
    shutil.copy(sorted(intact.glob("*.array_record"))[3], path)
    manifest["shards"][1]["bytes"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"{path.name}: 1 records, manifest.json says 2"):
        ArrayRecordSource(folder)[2]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"format": "other", "version": 1}', "format other 1, expected slotzoo-array-record"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_explained(tmp_path, text, sentence):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=f"manifest.json: .*{sentence}"):
        ArrayRecordSource(tmp_path)


def test_a_manifest_cannot_point_out_of_its_folder(intact, tmp_path):
    shutil.copytree(intact, tmp_path / "copy")
    manifest = json.loads((intact / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../../secret"
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="lies outside the folder"):
        ArrayRecordSource(tmp_path / "copy")


@pytest.mark.parametrize("words", ["No space left on device", "Permission denied", "Input/output error"])
def test_what_the_disk_says_becomes_a_sentence(tmp_path, monkeypatch, words):
    class Writer:
        def __init__(self, path, options):
            pass

        def write(self, data):
            raise RuntimeError(f"write() failed: {words}; writing somewhere")

        def close(self):
            pass

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", Writer)
    sentence = {"N": "the disk is full; make room", "P": "not allowed to write there", "I": "cannot be written"}
    with pytest.raises(DataError, match=sentence[words[0]]):
        prepared(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_goes_wrong_in_a_source_is_not_blamed_on_the_disk(tmp_path):
    class Fails(MazeSource):
        def __getitem__(self, index):
            if index:
                raise RuntimeError("the source's own trouble")
            return super().__getitem__(index)

    with pytest.raises(RuntimeError, match="own trouble"):
        prepared(tmp_path, Fails("train", **MAZES))


@given(frames=st.integers(1, 13), chunk=st.integers(1, 14), data=st.data())
def test_windows_of_clips_cut_into_chunks(frames, chunk, data, tmp_path_factory):
    lengths = [frames, data.draw(st.integers(1, 9)), frames]
    source = Numbered(3, lengths=lengths)
    found = prepare(source, tmp_path_factory.mktemp("chunks"), chunk=chunk)
    assert same_records(found, source) and [found.frames(i) for i in range(3)] == lengths
    index = data.draw(st.integers(0, 2))
    start = data.draw(st.integers(0, lengths[index] - 1))
    length = data.draw(st.integers(1, lengths[index] - start + 9))  # beyond the end: what a slice has
    window = found.window(index, start, length)
    assert np.array_equal(window["video"], source[index]["video"][start : start + length])
    assert window["label"] == index


def test_shards_may_lose_all_their_clips(tmp_path):
    found = prepared(tmp_path, Numbered(6, bad=[2, 3]), on_error="skip", shard_bytes=2 * 28)
    assert [int(found[i]["label"]) for i in range(len(found))] == [0, 1, 4, 5]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        prepared(tmp_path / "file" / "below")


def test_doubles_are_made_once_and_read_afterwards(tmp_path, monkeypatch):
    reference = MazeSource("train", **MAZES)
    first = open_source("dmlab", "train", cache=tmp_path, **MAZES)
    assert isinstance(first, ArrayRecordSource) and same_records(first, reference)
    calls = []
    real = MazeSource.__getitem__
    monkeypatch.setattr(MazeSource, "__getitem__", lambda self, i: (calls.append(i), real(self, i))[1])
    assert same_records(open_source("dmlab", "train", cache=tmp_path, **MAZES), first)
    assert set(calls) == {0}
    open_source("dmlab", "test", cache=tmp_path, **{**MAZES, "clips": 1})
    open_source("dmlab_encoded", "test", cache=tmp_path, **{**MAZES, "clips": 1})
    assert len(list(tmp_path.iterdir())) == 3


def test_a_cache_of_an_older_generator_is_made_again(tmp_path, monkeypatch, caplog):
    open_source("dmlab", "train", cache=tmp_path, **MAZES)
    real = maze.render

    def darker(*args, **options):
        frames, depth = real(*args, **options)
        return frames // 2, depth

    monkeypatch.setattr(maze, "render", darker)
    with caplog.at_level(logging.WARNING):
        found = open_source("dmlab", "train", cache=tmp_path, **MAZES)
    assert "another version of slotzoo" in caplog.text and same_records(found, MazeSource("train", **MAZES))


def test_a_cache_that_another_process_makes_again_is_left_alone(tmp_path, monkeypatch, caplog):
    open_source("dmlab", "train", cache=tmp_path / "cache", **MAZES)
    (folder,) = (tmp_path / "cache").iterdir()
    real = maze.render
    monkeypatch.setattr(maze, "render", lambda *args, **options: (real(*args, **options)[0] // 2, None))
    new = MazeSource("train", **MAZES)
    prepare(new, tmp_path / "new")
    found = []
    other = threading.Thread(
        target=lambda: found.append(open_source("dmlab", "train", cache=folder.parent, **MAZES))
    )
    with locked(folder):
        other.start()
        other.join(0.3)
        for path in (tmp_path / "new").glob("[!.]*"):
            shutil.copy(path, folder)
    other.join()
    assert "another version of slotzoo" not in caplog.text and same_records(found[0], new)


def test_a_cache_that_cannot_be_written_is_said_and_not_needed(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = open_source("dmlab", "train", cache=tmp_path / "file", **MAZES)
    assert "the cache is not used" in caplog.text and same_records(found, MazeSource("train", **MAZES))


@pytest.mark.parametrize(
    "name, options, other",
    [
        ("moving_mnist", {"size": 16, "length": 2}, {"digits": 3}),
        ("moving_mnist", {"size": 16, "length": 2}, {"size": 24}),
        ("movi_a", {"size": 12, "length": 2, "max_objects": 4}, {"min_objects": 2}),
        ("blinking_color_balls", {"size": 16, "length": 3}, {"rule": "most_frequent"}),
        ("cater", {"size": 16, "length": 3}, {"periods": 2}),
        ("dmlab", {"size": 16, "length": 2}, {"depth": True}),
        ("clevrtex", {"size": 16, "max_objects": 4}, {"variant": "camo"}),
        ("clevr_with_masks", {"size": 16, "max_objects": 4}, {"min_objects": 1}),
    ],
)
def test_other_options_than_those_of_a_prepared_double_are_noticed(tmp_path, name, options, other):
    prepare(open_source(name, "train", clips=1, **options), tmp_path / "train")
    asked = {"clips": 7, "seed": 1, **options}  # which clips, a copy knows by itself
    assert len(open_source(name, "train", root=tmp_path, **asked)) == 1
    ((option, value),) = other.items()
    with pytest.raises(DataError, match=f"was prepared with {option}=.*, not {value}; prepare it again"):
        open_source(name, "train", root=tmp_path, **{**asked, **other})


def test_null_asks_for_nothing_in_particular(tmp_path):
    from slotzoo.data.export_movi import export_movi
    from slotzoo.data.synthetic.movi import MoviScenes

    export_movi(MoviScenes("movi_a", "train", length=2, size=12, clips=1), tmp_path / "files", "train")
    prepare(open_source("movi_a", "train", root=tmp_path / "files"), tmp_path / "movi" / "train")
    assert len(open_source("movi_a", "train", root=tmp_path / "movi", config=None)) == 1
    with pytest.raises(DataError, match="was prepared with config=12x12, not 64x64"):
        open_source("movi_a", "train", root=tmp_path / "movi", config="64x64")
    prepare(open_source("moving_mnist", "train", size=16, length=2, clips=1), tmp_path / "mnist" / "train")
    assert len(open_source("moving_mnist", "train", root=tmp_path / "mnist", size=16, digit_size=None)) == 1
