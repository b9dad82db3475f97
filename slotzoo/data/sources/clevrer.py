"""CLEVRER as published: `<root>/video_train/video_00000-01000/video_00000.mp4`, 128 frames of 480 x 320 at 25 a second.

`train`, `val` and `test` are the folders `video_train`, `video_validation` and `video_test`; where one folder has the
videos of all, they are told apart by their numbers (train below 10000, validation below 15000). A frame is resized as
SlotSSM does, its shorter side to `size` by Pillow's antialiased bicubic filter, and the middle square cut out. Needs
PyAV (the extra `video`).
"""

import functools
import pathlib
import re
import threading
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from slotzoo.data.sources.folders import (
    checked_root,
    contents,
    files_fingerprint,
    first_readable,
    provenance_of,
)
from slotzoo.data.sources.mp4 import count_frames, read_frames
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.synthetic.clevrer import clevrer_spec
from slotzoo.errors import ConfigError, DataError, nearest


Split = Literal["train", "val", "test"]
_FOLDERS = {"train": "train", "val": "validation", "test": "test"}
_NUMBERS = {"train": (0, 10_000), "val": (10_000, 15_000), "test": (15_000, 20_000)}
SHORT = ("refuse", "pad")


def squared(frame: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square of a frame whose shorter side has been resized to `size`."""
    from PIL import Image

    height, width = frame.shape[:2]
    short = min(height, width)
    height, width = (int(size * side / short) for side in (height, width))
    image = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


class ClevrerFiles:
    """Videos in the order of their paths; a window is decoded from the key frame before it.

    A video of fewer than `length` frames is refused (`short=refuse`), or counts as one of `length` frames that ends
    with its last frame again and again (`short=pad`).
    """

    name = "clevrer"

    def __init__(
        self,
        root: str | pathlib.Path,
        split: Split,
        *,
        length: int = 16,
        size: int = 128,
        short: str = "refuse",
    ):
        if short not in SHORT:
            raise ConfigError(f"CLEVRER has no short={short}; it takes refuse and pad.{nearest(short, SHORT)}")
        if length < 1 or size < 1:
            raise ConfigError(f"CLEVRER needs a length and a size of at least 1, got {length} and {size}.")
        self._root = checked_root(root, "CLEVRER")
        self._files = _videos(self._root, split)
        self.provenance: Provenance = provenance_of(*_within(self._root))
        self.split: Split = split
        self.length, self.size, self.short = length, size, short
        self.options: dict[str, Any] = {"size": size}
        self._counts: dict[int, int] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"ClevrerFiles({self.split!r}, clips={len(self)}, size={self.size}, short={self.short!r})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return clevrer_spec(self.size)

    @property
    def fingerprint(self) -> str:
        """Of the paths and sizes of the files, and of what is made of them."""
        padded = f"-{self.length}" if self.short == "pad" else ""
        return f"{self._files_fingerprint}-{self.size}{padded}"

    @functools.cached_property
    def _files_fingerprint(self) -> str:
        return files_fingerprint(self._root, self._files)

    @functools.cached_property
    def _frame(self) -> tuple[int, int]:
        """Height and width of the first video that can be read; all must have them."""
        return first_readable(self._files, lambda path: read_frames(path, 0, 1, str(path)), self._root)[
            1
        ].shape[1:3]

    def __len__(self) -> int:
        return len(self._files)

    def where(self, index: int) -> str:
        """The file of a clip, to begin a sentence with."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return f"{self._files[index]} (clip {index})"

    def _stored(self, index: int) -> int:
        """Frames of the file, as its header says."""
        where = self.where(index)
        with self._lock:
            if index not in self._counts:
                self._counts[index] = count_frames(self._files[index], where)
            return self._counts[index]

    def frames(self, index: int) -> int:
        """Frames that can be asked for. Raises `DataError` for a video that is too short and not padded."""
        stored = self._stored(index)
        if stored < self.length and self.short == "refuse":
            raise DataError(
                f"{self.where(index)}: {stored} frames, fewer than the {self.length} asked for; ask for shorter clips, "
                "repeat the last frame with data.options.short=pad, or use on_error=skip."
            )
        return max(stored, self.length)

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self.frames(index))

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip."""
        where, stored = self.where(index), self._stored(index)
        length = min(length, self.frames(index) - start)
        first = min(start, stored - 1)
        frames = read_frames(self._files[index], first, min(start + length, stored) - first, where)
        if frames.shape[1:3] != self._frame:
            height, width = self._frame
            raise DataError(
                f"{where}: frames of {frames.shape[2]} x {frames.shape[1]} pixels, the other videos have {width} x "
                f"{height}; CLEVRER's are 480 x 320: fetch the file again or use on_error=skip."
            )
        video = np.stack([squared(frame, self.size) for frame in frames])
        last = np.repeat(video[-1:], length - len(video), axis=0)
        record = {"video": np.concatenate([video, last]) if len(last) else video}
        check_record(record, self.spec, where)
        return record

    def close(self) -> None:
        """Nothing is held open."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _within(root: pathlib.Path) -> list[pathlib.Path]:
    """The folder, and if it is one of CLEVRER's own (`video_train`, `video_00000-01000`) those above it."""
    folders = [root.resolve()]
    while folders[-1].name.startswith("video"):
        folders.append(folders[-1].parent)
    return folders


def _videos(root: pathlib.Path, split: Split) -> list[pathlib.Path]:
    """All mp4 files of a split, at any depth."""
    word = _FOLDERS[split]
    for folder in (root / f"video_{word}", root / "videos" / word, root / word, root / split):
        if folder.is_dir():
            found = sorted(folder.rglob("*.mp4"))
            break
    else:
        folder = root
        low, high = _NUMBERS[split]
        numbered = ((path, re.search(r"(\d+)$", path.stem)) for path in sorted(root.rglob("video_*.mp4")))
        found = [path for path, number in numbered if number is not None and low <= int(number[1]) < high]
    found = [path for path in found if path.name[0] != "."]
    if not found:
        raise DataError(
            f"{folder} has no videos of split {split!r}: {contents(folder)}; expected "
            f"{root}/video_{word}/video_*/video_*.mp4 (CLEVRER) or {root}/{split}/manifest.json (prepared)."
        )
    return found
