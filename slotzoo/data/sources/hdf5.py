"""Rows of an HDF5 file. The handle belongs to a process: it is opened when first used, and again after a fork."""

import logging
import os
import pathlib
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from slotzoo.data.sources.folders import short
from slotzoo.errors import DataError


log = logging.getLogger(__name__)
_BLOCK = 128 << 20  # bytes of records read at once, where chunks hold parts of many
_DAMAGED = (OSError, RuntimeError, ValueError, KeyError)  # what h5py raises for headers that make no sense
_SLOW = 64  # records of a chunk from which on reading at random is worth a warning


class Hdf5Table:
    """Random access to the data sets of a file, whose first axis is the record.

    Opening reads no data. Picklable, safe in threads (HDF5 itself lets one in at a time) and after a fork. A
    file that is missing, cut off or not HDF5 is a `DataError`, as is a data set that is not there.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self._forget()
        names = self.names()
        if not names:
            raise DataError(f"{self.path}: an HDF5 file without data sets.")

    def _forget(self) -> None:
        # Never closed here: after a fork the handle is the parent's.
        self._file: Any = None
        self._blocks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._lock, self._process = threading.Lock(), os.getpid()

    def _opened(self) -> Any:
        """The file; call it with the lock held."""
        if self._file is None:
            try:
                import h5py
            except ImportError as error:
                raise DataError(
                    f"{self.path} is an HDF5 file: reading it needs h5py, pip install 'slotzoo[hdf5]'."
                ) from error
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                what = "is not there" if not self.path.exists() else "is cut off or not an HDF5 file"
                raise DataError(f"{self.path} {what} ({short(error)}); fetch it again.") from error
        return self._file

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():
            self._forget()
        return self._lock

    def names(self) -> list[str]:
        """Names of the data sets."""
        with self._locked():
            file = self._opened()
            try:
                return sorted(file)
            except _DAMAGED as error:
                raise _damaged(f"{self.path}", error) from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a data set, records first."""
        with self._locked():
            return tuple(self._dataset(name).shape)

    def _dataset(self, name: str) -> Any:
        file = self._opened()
        try:
            if name in file:
                return file[name]
            found = ", ".join(sorted(file))
        except _DAMAGED as error:
            raise _damaged(f"{self.path}, {name!r}", error) from error
        raise DataError(f"{self.path}: no data set {name!r}; found {found}.")

    def read(self, name: str, row: int | None = None) -> np.ndarray:
        """One row of a data set, or the whole of it."""
        with self._locked():
            dataset = self._dataset(name)
            try:
                if row is None:
                    return np.asarray(dataset[()])
                rows = self._rows_at_once(name, dataset)
                return np.asarray(dataset[row]) if rows == 1 else self._from_block(name, dataset, row, rows)
            except _DAMAGED as error:
                where = f"{self.path}, {name!r}" + ("" if row is None else f", record {row}")
                raise _damaged(where, error) from error

    def _rows_at_once(self, name: str, dataset: Any) -> int:
        """Records that share chunks. 3D Shapes has thousands in each: one read alone would unpack them all."""
        if dataset.chunks is None or dataset.chunks[0] == 1:
            return 1
        rows = dataset.chunks[0]
        if rows >= _SLOW and not self._blocks:
            log.warning(
                "%s: %r is stored in chunks of %d records, slow to read at random; convert it once with "
                "experiments.prepare",
                self.path,
                name,
                rows,
            )
        row_bytes = int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize
        return max(1, min(rows, _BLOCK // max(1, row_bytes)))

    def _from_block(self, name: str, dataset: Any, row: int, rows: int) -> np.ndarray:
        """A record out of the last blocks that were read, or out of one read now."""
        key = (name, row // rows)
        if key not in self._blocks:
            start = key[1] * rows
            try:
                block = np.asarray(dataset[start : start + rows])
            except (OSError, RuntimeError):
                return np.asarray(dataset[row])  # which may be whole where another one is damaged
            # Two of each data set: threads that read ahead may stand on both sides of a border.
            held = [k for k in self._blocks if k[0] == name]
            for old in held[: max(0, len(held) - 1)]:
                del self._blocks[old]
            self._blocks[key] = block
        return self._blocks[key][row % rows].copy()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._locked():
            if self._file is not None:
                self._file.close()
                self._file = None
            self._blocks.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._forget()


def _damaged(where: str, error: BaseException) -> DataError:
    return DataError(f"{where}: cannot be read ({short(error)}); the file is damaged, fetch it again.")
