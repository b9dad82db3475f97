"""MOVi's tiny copies, written by two versions of TensorFlow Datasets: every feature of every clip."""

import functools

import numpy as np
import pytest

from slotzoo.data.movi_layout import LAYOUTS
from slotzoo.data.object_clips import ObjectClips
from slotzoo.data.sources.movi import MoviFiles, Split
from tests.parity.harness import cases, fixture_root, folders


FOLDERS = folders("movi_")
SPLITS: dict[str, Split] = {"train": "train", "validation": "test"}


def files_of(folder, split):
    return MoviFiles(LAYOUTS[folder[:6]].name, fixture_root() / folder, SPLITS[split])


@functools.cache
def decoded(folder):
    with np.load(fixture_root() / folder / "decoded.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def clips():
    """Folder, split and number of every recorded clip."""
    names = {(folder, *name.split("/")[:2]) for folder in FOLDERS for name in decoded(folder) if "/" in name}
    return sorted(names)


@pytest.mark.parametrize(("folder", "split", "index"), clips())
def test_every_feature_of_a_clip_is_what_tfds_decodes(folder, split, index):
    prefix = f"{split}/{index}/"
    recorded = {k.removeprefix(prefix): v for k, v in decoded(folder).items() if k.startswith(prefix)}
    files = files_of(folder, split)
    found = files.features(int(index))
    assert found.keys() == recorded.keys()
    for name, value in recorded.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_all_files_are_read(folder):
    """A shard that nobody opens would not be noticed above."""
    shards = [name for name in cases(folder) if "tfrecord" in name]
    recorded = {tuple(name.split("/")[:2]) for name in decoded(folder) if "/" in name}
    splits = {split for split, _ in recorded}
    files = [files_of(folder, split) for split in splits]
    found = {path.name for source in files for path in source._shards.files}
    assert found == {name.split("/")[-1] for name in shards}
    assert sum(map(len, files)) == len(recorded)


@pytest.mark.parametrize(("folder", "split"), sorted({clip[:2] for clip in clips()}))
def test_a_record_is_the_features_it_is_made_of(folder, split):
    files = files_of(folder, split)
    source = ObjectClips(files, size=None, flow=False)
    clip = decoded(folder)
    for index in range(len(source)):
        record, of = source[index], lambda name, index=index: clip[f"{split}/{index}/{name}"]
        np.testing.assert_array_equal(record["video"], of("video"))
        np.testing.assert_array_equal(record["mask"], of("segmentations")[..., 0])
        ends = np.cumsum(of("instances/bboxes/row_lengths"))
        for k, end in enumerate(ends):
            rows = slice(end - of("instances/bboxes/row_lengths")[k], end)
            frames = of("instances/bbox_frames/flat")[rows]
            np.testing.assert_array_equal(record["boxes"][frames, k], of("instances/bboxes/flat")[rows])
            unseen = np.setdiff1d(np.arange(len(record["boxes"])), frames)
            assert not record["boxes"][unseen, k].any()
        part = source.window(index, 2, 3)
        for name in ("video", "mask", "boxes"):
            np.testing.assert_array_equal(part[name], record[name][2:5])
