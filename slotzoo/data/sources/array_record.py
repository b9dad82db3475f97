"""Clips in ArrayRecord shards, as `prepare` writes them: `<folder>/manifest.json` beside the shards.

A clip is cut into records of `chunk` frames, so that a short window out of a long clip is read for less.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import threading
from typing import Any

import numpy as np

from slotzoo.data.codec import decode
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record, slice_time
from slotzoo.errors import DataError


MANIFEST = "manifest.json"
FORMAT = "slotzoo-array-record"
VERSION = 2
_ANY = ("config", "digit_size")  # options of which null asks for nothing in particular
# Random access: no read-ahead. The defaults of ArrayRecord would read 16 MB around every record.
_READER = "readahead_buffer_size:0,max_parallelism:0"


def open_reader(path: pathlib.Path) -> Any:
    """An ArrayRecord reader, or a `DataError` where the file is missing, torn or something else."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise DataError(f"{path}: no such file; prepare the data set again.")
    reader = ArrayRecordReader(str(path), _READER)
    # A file that was cut off opens without an exception and says that it has no records.
    if not reader.ok():
        reader.close()
        raise DataError(f"{path}: not a complete ArrayRecord file (cut off or overwritten); prepare it again.")
    return reader


def spec_to_json(spec: dict[str, FieldSpec]) -> dict[str, Any]:
    return {name: dataclasses.asdict(field) for name, field in spec.items()}


def pack_frames(frames: list[int]) -> list[list[int]]:
    """Lengths of the clips of a shard as pairs (length, how many in a row)."""
    return [[length, len(list(run))] for length, run in itertools.groupby(frames)]


def _unpack_frames(runs: list[list[int]]) -> list[int]:
    return [length for length, count in runs for _ in range(count)]


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise ValueError(f"format {manifest['format']} {manifest['version']}, expected {FORMAT} {VERSION}")
        for shard in manifest["shards"]:
            if pathlib.PurePath(shard["file"]).name != shard["file"]:
                raise ValueError(f"shard {shard['file']!r} lies outside the folder")
        manifest["spec"] = {
            name: FieldSpec(**{**field, "shape": tuple(field["shape"])})
            for name, field in manifest["spec"].items()
        }
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no {MANIFEST}; it is not a prepared data set, or not a complete one."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be used ({error}); prepare the data set again.") from error
    return manifest


class ArrayRecordSource:
    """Reads a folder that `prepare` wrote. Counts and file sizes are checked on opening, records when read."""

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder)
        manifest = read_manifest(self.folder)
        self.name: str = manifest["name"]
        self.provenance: Provenance = manifest["provenance"]
        self.about: str = manifest.get("about", "")
        self.skipped: list[int] = manifest["skipped"]
        self._spec: dict[str, FieldSpec] = manifest["spec"]
        self._origin: str = manifest["fingerprint"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._chunk: int = manifest["chunk"]
        self.options: dict[str, Any] = manifest.get("options", {})
        self._frames = [_unpack_frames(shard["frames"]) for shard in self._shards]
        self._ends = list(itertools.accumulate(len(frames) for frames in self._frames))
        # First ArrayRecord record of each clip of a shard.
        self._starts = [
            [0, *itertools.accumulate(-(-length // self._chunk) for length in frames)]
            for frames in self._frames
        ]
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        for shard, starts in zip(self._shards, self._starts, strict=True):
            path = self.folder / shard["file"]
            if starts[-1] != shard["records"]:
                raise DataError(
                    f"{self.folder / MANIFEST}: contradicts itself about {path.name}; prepare again."
                )
            size = path.stat().st_size if path.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DataError(
                    f"{path}: {found}, {MANIFEST} says {shard['bytes']}; delete {MANIFEST} and prepare again."
                )

    def __repr__(self) -> str:
        return f"ArrayRecordSource({self.name!r}, {self.fingerprint!r}, records={len(self)})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return self._spec

    @functools.cached_property
    def _fingerprint(self) -> str:
        if not self.skipped:
            return self._origin
        return hashlib.sha256(json.dumps([self._origin, self.skipped]).encode()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """That of the source it was prepared from: the content is the same."""
        return self._fingerprint

    @property
    def prepared_from(self) -> str:
        """The fingerprint of that source, also where clips of it were left out."""
        return self._origin

    def check_options(self, asked: dict[str, Any]) -> None:
        """Raise `DataError` where an option differs from the one that the folder was prepared with."""
        for name, value in asked.items():
            if value is None and name in _ANY:
                continue
            if name in self.options and self.options[name] != value:
                raise DataError(
                    f"{self.folder} was prepared with {name}={self.options[name]}, not {value}; prepare it again "
                    f"with {name}={value}, or ask for {name}={self.options[name]}."
                )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _reader(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._readers:
                path = self.folder / self._shards[shard]["file"]
                reader = open_reader(path)
                if reader.num_records() != self._shards[shard]["records"]:
                    raise DataError(
                        f"{path}: {reader.num_records()} records, {MANIFEST} says "
                        f"{self._shards[shard]['records']}; delete {MANIFEST} and prepare again."
                    )
                self._readers[shard] = reader
            return self._readers[shard]

    def _place(self, index: int) -> tuple[int, int]:
        """Shard of a clip, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def frames(self, index: int) -> int:
        shard, within = self._place(index)
        return self._frames[shard][within]

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self.frames(index))

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip: only the records that hold them are read."""
        shard, within = self._place(index)
        length = min(length, self._frames[shard][within] - start)  # what follows are the next clip's records
        first, last = start // self._chunk, (start + max(1, length) - 1) // self._chunk
        numbers = [self._starts[shard][within] + i for i in range(first, last + 1)]
        where = f"{self.folder / self._shards[shard]['file']}, record {numbers[0]} (clip {index})"
        try:
            chunks = self._reader(shard).read(numbers)
        except (RuntimeError, IndexError) as error:
            raise DataError(
                f"{where}: corrupted ({str(error).splitlines()[0]}); prepare the data set again or "
                "use on_error=skip."
            ) from error
        records = [decode(data, where) for data in chunks]
        for record in records:
            check_record(record, self._spec, where)
        whole = records[0]
        if len(records) > 1:
            join = lambda name: np.concatenate([record[name] for record in records])
            whole = {name: join(name) if self._spec[name].time else x for name, x in whole.items()}
        skip = first * self._chunk
        return slice_time(whole, self._spec, start - skip, start - skip + length)

    def close(self) -> None:
        with self._lock:
            while self._readers:
                self._readers.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_readers", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers, self._lock = {}, threading.Lock()
