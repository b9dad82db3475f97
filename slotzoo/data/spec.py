"""What a source of records is, and the check that a record is what its source promised."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

# Not typing's: before Python 3.12 its check whether something is a Source asks for the value of every property, and
# `spec` reads the first records.
from typing_extensions import Protocol, runtime_checkable

from slotzoo.errors import DataError


Record = dict[str, np.ndarray]
Provenance = Literal["real", "embedded double"]


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """One field of a record.

    `shape` has `None` where the length varies between records; `low` and `high` are inclusive bounds, `None`
    where the dtype is the only bound. With `time` the leading axis is time, equally long in all fields that
    have it.
    """

    shape: tuple[int | None, ...]
    dtype: str
    low: float | int | None
    high: float | int | None
    meaning: str
    time: bool = True


@runtime_checkable
class Source(Protocol):
    """Random access to records. Cheap to open, safe to read from several threads, picklable."""

    name: str
    provenance: Provenance

    @property
    def spec(self) -> dict[str, FieldSpec]: ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal content, as far as that can be told without reading every byte."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Raise `DataError` naming the file and the index when the record cannot be read or breaks the spec."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class WindowSource(Source, Protocol):
    """A source that can read a part of a record for less than the whole: `window` equals the slice of the
    record."""

    def frames(self, index: int) -> int:
        """Length of the time axis of a record."""
        ...

    def window(self, index: int, start: int, length: int) -> Record: ...


@runtime_checkable
class AugmentedSource(WindowSource, Protocol):
    """A source that makes a window in training another way each time; evaluation takes `window`."""

    def augmented(self, index: int, start: int, length: int, rng: np.random.Generator) -> Record: ...


@runtime_checkable
class View(Source, Protocol):
    """A source that makes its records of another one's, as options say; those others are what is prepared."""

    @property
    def origin(self) -> Source: ...


def frames_of(record: Record, spec: Mapping[str, FieldSpec]) -> int:
    """Length of the time axis; 1 for a record without one."""
    return next((len(record[name]) for name, field in spec.items() if field.time), 1)


def slice_time(record: Record, spec: Mapping[str, FieldSpec], start: int, stop: int) -> Record:
    """The record with its fields over time cut to frames `start` to `stop`, the others as they are."""
    return {name: x[start:stop] if spec[name].time else x for name, x in record.items()}


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"


def check_record(record: Mapping[str, np.ndarray], spec: Mapping[str, FieldSpec], where: str) -> None:
    """Raise `DataError`, one sentence that starts with `where`, unless `record` has what `spec` says."""
    length: tuple[str, int] | None = None
    for name, field in spec.items():
        if name not in record:
            raise DataError(f"{where}: no field {name!r} ({field.meaning}); found {', '.join(record)}.")
        value = record[name]
        if value.dtype != np.dtype(field.dtype):
            raise DataError(
                f"{where}: {name!r} has dtype {value.dtype}, expected {field.dtype} ({field.meaning})."
            )
        fits = len(value.shape) == len(field.shape) and all(
            want is None or want == got for want, got in zip(field.shape, value.shape, strict=True)
        )
        if not fits:
            raise DataError(
                f"{where}: {name!r} has shape {value.shape}, expected {_text(field.shape)} ({field.meaning})."
            )
        if value.size == 0:
            raise DataError(f"{where}: {name!r} is empty, shape {value.shape}.")
        if field.time:
            if length is not None and length[1] != value.shape[0]:
                raise DataError(
                    f"{where}: {name!r} has {value.shape[0]} time steps but {length[0]!r} has {length[1]}; "
                    "they must agree."
                )
            length = (name, value.shape[0])
        _check_range(value, field, f"{where}: {name!r}")


def _check_range(value: np.ndarray, field: FieldSpec, where: str) -> None:
    if value.dtype == np.uint8 and (field.low or 0) <= 0 and (field.high is None or field.high >= 255):
        return  # the dtype says it already; reading every pixel again would cost as much as copying it
    low, high = value.min(), value.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{where} has values that are not finite ({field.meaning}).")
    if (field.low is not None and low < field.low) or (field.high is not None and high > field.high):
        raise DataError(
            f"{where} has values from {low} to {high}, expected {field.low} to {field.high} ({field.meaning})."
        )
