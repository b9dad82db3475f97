"""CATER as published: `<root>/videos/*.avi` and `<root>/lists/localize/{train,val}.txt`, a file and its cell a line.

`root` is one of its variants (`all_actions`, `all_actions_cameramotion`, ...) or the folder that holds
`all_actions`. A video of 301 frames, 320 x 240, is told by `length` frames, the first and the last among them, and
squeezed into a square: the label speaks of the whole table. Splits: `train` is `train.txt`, `test` is `val.txt`, and
`val` is `train_subsetV.txt`, the fifth of `train` that its authors set aside to choose hyper-parameters with. Needs
PyAV (the extra `video`).
"""

import functools
import pathlib
from typing import Literal

import numpy as np

from slotzoo.data.resize import resize_bilinear
from slotzoo.data.sources.folders import checked_root, contents, files_fingerprint, provenance_of, short
from slotzoo.data.sources.mp4 import count_frames
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.synthetic.cater import GRID, cater_spec
from slotzoo.errors import ConfigError, DataError


Split = Literal["train", "val", "test"]
_LISTS = {"train": "train.txt", "test": "val.txt", "val": "train_subsetV.txt"}


def evenly(frames: int, length: int) -> list[int]:
    """`length` different frame numbers out of `frames`, the first and the last among them, evenly spaced."""
    return [int(n) for n in np.round(np.linspace(0, frames - 1, length))]


class CaterSource:
    """Videos in the order of the split's list. Files are opened when read."""

    name = "cater"

    def __init__(self, root: str | pathlib.Path, split: Split, *, length: int = 32, size: int = 64):
        if length < 2 or size < 1:
            raise ConfigError(
                f"CATER needs a length of at least 2 frames and a size of 1, got {length}, {size}."
            )
        self._root = _variant(checked_root(root, "CATER"))
        self.split: Split = split
        self.length, self.size = length, size
        self.options = {"length": length, "size": size}
        self._list = self._root / "lists" / "localize" / _LISTS[split]
        self._files, self._labels = self._read_list()
        self.provenance: Provenance = provenance_of(self._root)

    def __repr__(self) -> str:
        return f"CaterSource({self.split!r}, clips={len(self)}, length={self.length}, size={self.size})"

    def _read_list(self) -> tuple[list[pathlib.Path], list[int]]:
        if not self._list.is_file():
            raise DataError(
                f"{self._list}: no such file; CATER's lists.zip has it, unpack it in {self._root} beside videos/."
            )
        files, labels = [], []
        for number, line in enumerate(self._list.read_text().splitlines(), 1):
            parts = line.split()
            if not parts:
                continue
            known = len(parts) == 2 and parts[1].isdecimal() and int(parts[1]) < GRID * GRID
            if not known or pathlib.PurePath(parts[0]).name != parts[0]:
                raise DataError(
                    f"{self._list}, line {number}: {line!r} is not the name of a video and a cell from 0 to "
                    f"{GRID * GRID - 1}; fetch the list again."
                )
            files.append(self._root / "videos" / parts[0])
            labels.append(int(parts[1]))
        if not files:
            raise DataError(f"{self._list}: names no video; fetch the list again.")
        return files, labels

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return cater_spec(self.length, self.size)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return files_fingerprint(self._root, [self._list, *(f for f in self._files if f.is_file())])

    @property
    def fingerprint(self) -> str:
        """Of the list, and the paths and sizes of the videos."""
        return f"{self._fingerprint}-{self.length}-{self.size}"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        path = self._files[index]
        where = f"{path} (clip {index})"
        if not path.is_file():
            raise DataError(f"{where}: no such file; CATER's videos.zip has it, or use on_error=skip.")
        frames = count_frames(path, where)
        if frames < self.length:
            raise DataError(
                f"{where}: has {frames} frames, fewer than data.length={self.length}; ask for fewer frames or use "
                "on_error=skip."
            )
        video = self._frames(path, evenly(frames, self.length), where)
        record = {"video": video, "label": np.asarray(self._labels[index], np.int32)}
        check_record(record, self.spec, where)
        return record

    def _frames(self, path: pathlib.Path, numbers: list[int], where: str) -> np.ndarray:
        """The frames with these numbers, ascending, resized; the others are decoded and dropped."""
        import av
        from av.error import FFmpegError

        out: list[np.ndarray] = []
        try:
            with av.open(str(path)) as container:
                for number, frame in enumerate(container.decode(container.streams.video[0])):
                    if frame.is_corrupt:
                        raise ValueError(f"frame {number} is corrupted")
                    if number == numbers[len(out)]:
                        picture = frame.to_ndarray(format="rgb24")
                        small = resize_bilinear(picture, (self.size, self.size), antialias=True)
                        out.append(np.clip(np.rint(small), 0, 255).astype(np.uint8))
                        if len(out) == len(numbers):
                            return np.stack(out)
        except (FFmpegError, ValueError, IndexError, EOFError) as error:
            raise DataError(
                f"{where}: cannot be decoded ({short(error)}); fetch the file again or use on_error=skip."
            ) from error
        raise DataError(
            f"{where}: ends before frame {numbers[len(out)]}, which its header promises; the file is cut off: fetch "
            "it again or use on_error=skip."
        )

    def close(self) -> None:
        """Nothing is held open."""


def _variant(root: pathlib.Path) -> pathlib.Path:
    for folder in (root, root / "all_actions"):
        if (folder / "videos").is_dir() and (folder / "lists").is_dir():
            return folder
    raise DataError(
        f"data.root={root} holds no CATER: {contents(root)}; expected videos/*.avi and lists/localize/*.txt, as "
        "videos.zip and lists.zip of a variant (all_actions) hold them."
    )
