"""Moving-MNIST as files: `<root>/<split>/*/*.npz` with `data`, values 0 to 255.

One clip a file, (time, size, size, 1), is what the ConvSSM loader reads; one file of all clips, (clip, time, size,
size, 1), is what its generator writes. Both are read. A root that holds the training images of MNIST (IDX) instead
is what the generator needs: the clips are then generated as needed.
"""

import collections
import functools
import io
import pathlib
import threading
import zipfile
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from slotzoo.data.sources.folders import (
    UNREADABLE_NPZ,
    checked_root,
    clip_files,
    files_fingerprint,
    first_readable,
    provenance_of,
    short,
)
from slotzoo.data.spec import FieldSpec, Provenance, Record, Source, check_record
from slotzoo.data.synthetic.digits import find_idx
from slotzoo.data.synthetic.moving_mnist import MovingMnistSource, moving_mnist_spec
from slotzoo.errors import DataError


Split = Literal["train", "test"]
_KEY = "data"
_KEPT = 16  # clips of a packed file passed over on the way to another: read-ahead asks out of order


def open_moving_mnist(root: pathlib.Path, split: Split, **options: Any) -> Source:
    """The clips under `root`, or generated from the MNIST images there (`options` are the generator's)."""
    if not (root / split).is_dir() and find_idx(root) is not None:
        return MovingMnistSource(split, **{**options, "mnist": str(root)})
    return MovingMnistFiles(root, split)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int  # of the values, in the member


def _read_header(stream: io.BufferedIOBase) -> _Header:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(stream)
    if fortran or dtype.hasobject:
        raise ValueError("its array is in Fortran order or holds Python objects")
    return _Header(shape, dtype, stream.tell())


class _Packed:
    """One npz of many clips. Those that are not compressed are found at once, others by reading up to them."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        with zipfile.ZipFile(path) as archive, archive.open(f"{_KEY}.npy") as member:
            self.header = _read_header(cast(io.BufferedIOBase, member))
            self.stored = archive.getinfo(f"{_KEY}.npy").compress_type == zipfile.ZIP_STORED
        self._bytes = int(np.prod(self.header.shape[1:])) * self.header.dtype.itemsize
        self._lock = threading.Lock()
        self._stream: io.BufferedIOBase | None = None
        self._archive: zipfile.ZipFile | None = None
        self._next = 0
        self._passed: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def __len__(self) -> int:
        return self.header.shape[0]

    def read(self, index: int) -> np.ndarray:
        with self._lock:
            if index in self._passed:
                return self._passed[index]
            if self.stored:
                return self._stored(index)
            if self._stream is None or index < self._next:
                self._rewind()
            while self._next <= index:
                self._passed[self._next] = self._clip(self._stream)
                self._next += 1
                if len(self._passed) > _KEPT:
                    self._passed.popitem(last=False)
            return self._passed[index]

    def _clip(self, stream: io.BufferedIOBase | None) -> np.ndarray:
        data = b"" if stream is None else stream.read(self._bytes)
        if len(data) < self._bytes:
            raise ValueError("it ends within a clip")
        return np.frombuffer(data, self.header.dtype).reshape(self.header.shape[1:])

    def _stored(self, index: int) -> np.ndarray:
        with zipfile.ZipFile(self.path) as archive:
            place = archive.getinfo(f"{_KEY}.npy").header_offset
        with open(self.path, "rb") as file:
            file.seek(place)
            local = file.read(30)
            names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
            file.seek(place + 30 + names + self.header.start + index * self._bytes)
            return self._clip(file)

    def _rewind(self) -> None:
        self.close()
        self._archive = zipfile.ZipFile(self.path)
        self._stream = cast(io.BufferedIOBase, self._archive.open(f"{_KEY}.npy"))
        self._stream.read(self.header.start)
        self._next = 0

    def close(self) -> None:
        if self._stream is not None and self._archive is not None:
            self._stream.close()
            self._archive.close()
        self._stream = self._archive = None
        self._passed.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Packed, (self.path,)


class MovingMnistFiles:
    """Clips in the order of the files' paths, and within a file of many clips in its order.

    Values become bytes: the generator writes whole numbers as floats, and others are refused. Reading single clips
    out of a compressed file of many is slow; `experiments.prepare` reads it once, in order.
    """

    name = "moving_mnist"

    def __init__(self, root: str | pathlib.Path, split: Split):
        root = checked_root(root, "Moving-MNIST")
        layout = "one clip a file, as the ConvSSM loader reads it, or all in one"
        self._root, self._files = clip_files(root, split, ".npz", "Moving-MNIST", layout)
        self.provenance: Provenance = provenance_of(self._root)
        self.split: Split = split
        self._packed = self._find_packed()
        self._ends = np.cumsum([len(file) for file in self._packed]) if self._packed else None

    def __repr__(self) -> str:
        return f"MovingMnistFiles({self.split!r}, clips={len(self)})"

    def _find_packed(self) -> list[_Packed]:
        """The files of many clips; none where the first file is a clip of its own."""
        try:
            first = _Packed(self._files[0])
            if len(first.header.shape) != 5:
                return []
        except (*UNREADABLE_NPZ, KeyError):
            return []  # said when it is read
        packed = []
        for path in self._files:
            try:
                packed.append(_Packed(path))
            except (*UNREADABLE_NPZ, KeyError) as error:
                raise self._unreadable(str(path), error) from error
            if len(packed[-1].header.shape) != 5:
                raise DataError(
                    f"{path}: 'data' has shape {packed[-1].header.shape}, but {self._files[0].name} beside it holds "
                    "many clips (clip, time, size, size, 1); keep the two layouts in folders of their own."
                )
        return packed

    @staticmethod
    def _unreadable(where: str, error: BaseException) -> DataError:
        return DataError(
            f"{where}: cannot be read ({short(error)}); fetch the file again or use on_error=skip."
        )

    @property
    def spec(self) -> dict[str, FieldSpec]:
        """That of Moving-MNIST, at the frame size of the first clip that can be read."""
        return self._spec

    @functools.cached_property
    def _spec(self) -> dict[str, FieldSpec]:
        index, shape = first_readable(range(len(self)), lambda index: self._load(index)[0].shape, self._root)
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 1:
            raise DataError(
                f"{self._where(index)}: 'data' has shape {shape}, expected (time, size, size, 1), square grey frames."
            )
        return moving_mnist_spec(shape[1])

    @property
    def fingerprint(self) -> str:
        """Of the paths and sizes of the files."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return files_fingerprint(self._root, self._files)

    def __len__(self) -> int:
        return len(self._files) if self._ends is None else int(self._ends[-1])

    def _place(self, index: int) -> tuple[int, int]:
        if self._ends is None:
            return index, 0
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - int(self._ends[file - 1] if file else 0)

    def _where(self, index: int) -> str:
        return f"{self._files[self._place(index)[0]]} (clip {index})"

    def _load(self, index: int) -> tuple[np.ndarray, str]:
        where = self._where(index)
        file, within = self._place(index)
        try:
            if self._packed:
                return self._packed[file].read(within), where
            with open(self._files[file], "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                if _KEY not in arrays.files:
                    raise DataError(
                        f"{where}: no key {_KEY!r}; found {', '.join(arrays.files) or 'nothing'}. A Moving-MNIST "
                        "clip has 'data'."
                    )
                clip = arrays[_KEY]
                return (clip[0] if clip.ndim == 5 and len(clip) == 1 else clip), where
        except UNREADABLE_NPZ as error:
            raise self._unreadable(where, error) from error

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        clip, where = self._load(index)
        if clip.dtype != np.uint8 and np.issubdtype(clip.dtype, np.number) and clip.size:
            low, high = clip.min(), clip.max()
            if not (0 <= low and high <= 255):
                raise DataError(
                    f"{where}: 'data' has values from {low} to {high}, expected 0 to 255 (grey frames)."
                )
            whole = clip.astype(np.uint8)
            if not np.array_equal(whole, clip):
                raise DataError(
                    f"{where}: 'data' has values from {low} to {high} that are not whole numbers, expected whole "
                    "numbers from 0 to 255 (grey frames); if they were divided by 255, multiply them by it and round."
                )
            clip = whole
        record = {"video": clip}
        check_record(record, self.spec, where)
        return record

    def close(self) -> None:
        for file in self._packed:
            file.close()
