"""Image sets are read at random, in threads and processes, and prepared; what is missing or unknown is said."""

import concurrent.futures
import os
import pickle
import sys
import threading

import numpy as np
import pytest

from slotzoo.data import index_cache, list_sources, make_pipeline, open_source, prepare, verify
from slotzoo.data.image_sets import IMAGE_SETS
from slotzoo.data.spec import Source, check_record
from slotzoo.errors import ConfigError, DataError
from tests.arrays import same_record
from tests.data.image_files import COUNT, double


@pytest.fixture(params=["tetrominoes_train.tfrecords", "tetrominoes.h5"])
def published(request, tetrominoes):
    return tetrominoes / request.param


def test_both_published_forms_give_the_records(published):
    source = open_source("tetrominoes", "train", root=published)
    assert isinstance(source, Source) and source.provenance == "real" and len(source) == COUNT
    for i in (5, 0, 11, 3):
        check_record(source[i], source.spec, "image")
        assert same_record(source[i], double()[i])


def test_a_source_is_read_by_threads_and_copies(published):
    source = open_source("tetrominoes", "train", root=published)
    copy = pickle.loads(pickle.dumps(source))
    wanted = [double()[i]["image"] for i in range(COUNT)]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(COUNT), 4))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: source[int(i)]["image"], order))
    assert all(np.array_equal(image, wanted[i]) for image, i in zip(found, order, strict=True))
    assert same_record(copy[7], source[7])
    source.close()
    assert same_record(source[2], copy[2])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_source_is_read_after_a_fork(published):
    source = open_source("tetrominoes", "train", root=published)
    expected = source[4]["image"]
    # A lock that another thread holds during the fork stays locked in the child for ever.
    lock = source.files.table._lock if source.files.table is not None else source.files.records._lock
    held, release = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        same = False
        try:
            same = bool(np.array_equal(source[4]["image"], expected))
        finally:
            os.write(writing, b"1" if same else b"0")
            os._exit(0)
    release.set()
    thread.join()
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    os.close(reading)
    os.close(writing)
    assert np.array_equal(source[4]["image"], expected)


def test_batches_hold_images_masks_and_what_is_visible(published):
    source = open_source("tetrominoes", "train", root=published, size=24)
    batch = next(iter(make_pipeline(source, batch_size=4, seed=1, train=True)))
    assert batch["image"].shape == (4, 24, 24, 3) and batch["image"].dtype == np.uint8
    assert batch["mask"].shape == (4, 24, 24) and batch["visible"].shape == (4, 3)


def test_prepared_sets_hold_what_was_asked_for(published, tmp_path):
    source = open_source("tetrominoes", "train", root=published, size=20)
    prepare(source, tmp_path / "train", workers=3)
    found = open_source("tetrominoes", "train", root=tmp_path, size=20)
    assert len(found) == COUNT and all(same_record(found[i], source[i]) for i in range(COUNT))
    assert found.fingerprint == source.fingerprint and verify(tmp_path / "train") == COUNT
    assert len(open_source("tetrominoes", "train", root=tmp_path)) == COUNT  # nothing asked, nothing to refuse
    for option, value, message in (
        ("size", 21, "was prepared with size=20, not 21; prepare it again with size=21"),
        ("max_objects", 2, "was prepared with max_objects=None, not 2"),
    ):
        with pytest.raises(DataError, match=message):
            open_source("tetrominoes", "train", root=tmp_path, **{option: value})
    with pytest.raises(DataError, match="holds another data set"):
        prepare(open_source("tetrominoes", "train", root=published, size=21), tmp_path / "train")


def test_the_index_is_kept_under_its_whole_key(tmp_path):
    made = []

    def get(*key):
        return index_cache.remembered(tmp_path, key, lambda: made.append(key) or {"x": np.asarray(len(made))})

    assert get("a", [1, 2])["x"] == 1 and get("a", [1, 2])["x"] == 1
    assert get("a", [1, 3])["x"] == 2 and get("b", [1, 2])["x"] == 3


@pytest.mark.parametrize("name", sorted(IMAGE_SETS))
def test_an_empty_root_is_a_sentence(name, tmp_path):
    with pytest.raises(DataError, match=r"it is empty|no pictures|has no|holds no"):
        open_source(name, "train", root=tmp_path)
    with pytest.raises(DataError, match="no such folder or file"):
        open_source(name, "train", root=tmp_path / "nowhere")


def test_unknown_choices_are_sentences(tetrominoes):
    root = tetrominoes / "tetrominoes.h5"
    for options, message in (
        ({"crop": "middle"}, "no crop=middle; it takes center, whole"),
        ({"max_object": 3}, "Did you mean 'max_objects'"),
        ({"size": 0}, "at least 1 pixel"),
        ({"size": "big"}, "size must be a whole number, got 'big'"),
        ({"size": True}, "size must be a whole number, got True"),
        ({"masks": "no"}, "masks must be true or false, got 'no'"),
        ({"crop": 3}, "crop must be a word, got 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_source("tetrominoes", "train", root=root, **options)
    with pytest.raises(ConfigError, match="no variant 'gray'; it has colored_on_grayscale"):
        open_source("multi_dsprites", "train", root=root, variant="gray")
    with pytest.raises(ConfigError, match="'clevrtex' .*variant 'soft'|no variant 'soft'; it has full"):
        open_source("clevrtex", "train", variant="soft")
    with pytest.raises(ConfigError, match="no split 'val'; it has train, test"):
        open_source("dmlab", "val")
    assert set(IMAGE_SETS) <= set(list_sources())
