"""Rows of an HDF5 file. The handle belongs to a process: it is opened when first used, and again after a fork."""

import os
import pathlib
import threading
from typing import Any

import numpy as np

from slotzoo.errors import DataError


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
                raise DataError(f"{self.path} {what} ({_first(error)}); fetch it again.") from error
        return self._file

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():
            self._forget()
        return self._lock

    def names(self) -> list[str]:
        """Names of the data sets."""
        with self._locked():
            return sorted(self._opened())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a data set, records first."""
        with self._locked():
            return tuple(self._dataset(name).shape)

    def _dataset(self, name: str) -> Any:
        file = self._opened()
        if name not in file:
            raise DataError(f"{self.path}: no data set {name!r}; found {', '.join(sorted(file))}.")
        return file[name]

    def read(self, name: str, row: int | None = None) -> np.ndarray:
        """One row of a data set, or the whole of it."""
        with self._locked():
            dataset = self._dataset(name)
            try:
                return np.asarray(dataset[()] if row is None else dataset[row])
            except (OSError, RuntimeError, ValueError) as error:
                where = f"{self.path}, {name!r}" + ("" if row is None else f", record {row}")
                raise DataError(
                    f"{where}: cannot be read ({_first(error)}); the file is damaged, fetch it again."
                ) from error

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        with self._locked():
            if self._file is not None:
                self._file.close()
                self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._forget()


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
