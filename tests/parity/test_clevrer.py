"""CLEVRER's tiny copy: every video is read, whole and from its middle, in its split."""

import numpy as np
import pytest

from slotzoo.data.sources.clevrer import ClevrerFiles, squared
from tests.parity.harness import cases, fixture_root, folders


av = pytest.importorskip("av", reason="the extra `video` is not installed")

SPLITS = ("train", "val", "test")
FOLDERS = folders("clevrer_")


def frames_from_the_start(path):
    """All frames without a seek."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("folder", "name"), [(folder, name) for folder in FOLDERS for name in cases(folder)])
def test_windows_are_the_frames_of_the_video(folder, name):
    root = fixture_root() / folder
    path = root / name
    sources = {split: ClevrerFiles(root, split, length=1, size=32) for split in SPLITS}
    (split,) = [split for split, source in sources.items() if path in source._files]
    assert {"train": "train", "val": "validation", "test": "test"}[split] == name.split("/")[0].removeprefix(
        "video_"
    )
    source = sources[split]
    index = source._files.index(path)
    whole = np.stack([squared(frame, 32) for frame in frames_from_the_start(path)])
    assert source.frames(index) == len(whole)
    for start in sorted({0, 1, len(whole) // 2, len(whole) - 3}):
        np.testing.assert_array_equal(source.window(index, start, 3)["video"], whole[start : start + 3])


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_video_is_in_two_splits_nor_left_out(folder):
    root = fixture_root() / folder
    files = [path for split in SPLITS for path in ClevrerFiles(root, split, length=1)._files]
    assert sorted(str(path.relative_to(root)) for path in files) == cases(folder)
