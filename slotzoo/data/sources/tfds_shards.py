"""The TFRecord shards of a split in a folder that TensorFlow Datasets wrote, read at random."""

import bisect
import hashlib
import itertools
import json
import logging
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from slotzoo.data.sources.folders import contents
from slotzoo.data.tfrecord import Place, index_file, read_at, write_file
from slotzoo.errors import DataError


log = logging.getLogger(__name__)


class _Shard(NamedTuple):
    """A file, and what its name says: one of `of` shards of the data set `name`."""

    path: pathlib.Path
    name: str
    of: int | None


def _shards(folder: pathlib.Path, split: str) -> list[_Shard]:
    """All files of a split in a folder, in the order of their names; they may belong to several exports."""
    found = []
    for path in sorted(folder.glob(f"*-{split}.tfrecord*")):
        name, _, rest = path.name.rpartition(f"-{split}.tfrecord")
        numbers = re.fullmatch(r"-\d+-of-(\d+)", rest)
        found.append(_Shard(path, name, int(numbers[1]) if numbers else None))
    return found


def new_shards(folder: pathlib.Path, name: str, split: str, count: int) -> list[pathlib.Path]:
    """The files of a split that is to be written. **Raises** `DataError` where the folder has others of that split."""
    wanted = [folder / f"{name}-{split}.tfrecord-{shard:05d}-of-{count:05d}" for shard in range(count)]
    others = [shard.path for shard in _shards(folder, split) if shard.path not in wanted]
    if others:
        raise DataError(
            f"{folder} has {len(others)} shards of split {split!r} of another export ({others[0].name}); delete them, "
            "or choose another folder."
        )
    return wanted


def write_shards(
    paths: Sequence[pathlib.Path], records: int, examples: Callable[[range], Iterable[bytes]]
) -> list[int]:
    """Write the `examples` of a stretch of the records to each file; return how many there are in each."""
    count = len(paths)
    return [
        write_file(path, examples(range(shard * records // count, (shard + 1) * records // count)))
        for shard, path in enumerate(paths)
    ]


def version_folder(root: pathlib.Path, split: str, expected: str) -> pathlib.Path:
    """`root` itself or its newest version folder, whichever holds the shards; `expected` says in the error where."""
    versions = [path for path in root.iterdir() if path.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    newest = sorted(versions, key=lambda path: [int(part) for part in path.name.split(".")], reverse=True)
    for folder in (*newest, root):
        if any(folder.glob(f"*-{split}.tfrecord*")):
            return folder
    raise DataError(
        f"data.root={root} has no shards of split {split!r}: {contents(newest[0] if newest else root)}; "
        f"expected {expected}."
    )


def _declared_lengths(folder: pathlib.Path, split: str) -> list[int] | None:
    path = folder / "dataset_info.json"
    try:
        splits: list[dict[str, Any]] = json.loads(path.read_text())["splits"]
        return next([int(n) for n in s["shardLengths"]] for s in splits if s["name"] == split)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _one_set(folder: pathlib.Path, split: str, declared: int | None) -> list[_Shard]:
    """The shards of one export: of those that are as many as declared, where there are several."""
    shards = _shards(folder, split)
    sets = sorted({(shard.name, shard.of) for shard in shards}, key=str)
    if len(sets) <= 1:
        return shards
    right = [one for one in sets if declared is not None and one[1] == declared]
    named = " and ".join(f"{name}-{split} of {count or 'no'} shards" for name, count in sets)
    if len(right) != 1:
        raise DataError(
            f"{folder} has the shards of several exports of split {split!r} ({named}); they cannot be told apart: move "
            "those that do not belong to this data set."
        )
    log.warning("%s has %s; dataset_info.json says %d shards, so only these are read", folder, named, declared)
    return [shard for shard in shards if (shard.name, shard.of) == right[0]]


class Shards:
    """Records in the order of the shards, read through the offsets of their headers, checksums verified.

    The places of a torn shard's lost records still count, so that their loss is reported and the numbering stays.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        self.folder, self.split = folder, split
        lengths = _declared_lengths(folder, split)
        shards = _one_set(folder, split, None if lengths is None else len(lengths))
        self.files = [shard.path for shard in shards]
        self._places = [index_file(path) for path in self.files]
        if lengths is not None and len(lengths) != len(self.files):
            log.warning(
                "%s has %d shards of split %r, dataset_info.json says %d; those that are there are read",
                folder,
                len(self.files),
                split,
                len(lengths),
            )
        elif lengths is not None:
            for path, places, length in zip(self.files, self._places, lengths, strict=True):
                if len(places) > length:
                    raise DataError(f"{path}: {len(places)} records, dataset_info.json says {length}.")
                places += [Place(0, 0, "it is missing from the file")] * (length - len(places))
        self._ends = list(itertools.accumulate(len(places) for places in self._places))
        if not self._ends or not self._ends[-1]:
            raise DataError(f"{folder}: the shards of split {split!r} hold no records.")

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def where(self, index: int) -> str:
        """File and record, to begin a sentence with."""
        shard, within = self._find(index)
        return f"{self.files[shard]}, record {within} (clip {index})"

    def read(self, index: int) -> bytes:
        shard, within = self._find(index)
        return read_at(self.files[shard], self._places[shard][within], self.where(index))

    def fingerprint(self, root: pathlib.Path) -> str:
        """Of the paths under `root` and the sizes of the files."""
        sizes = [f"{path.relative_to(root)}:{path.stat().st_size}" for path in self.files]
        return hashlib.sha256("\n".join(sizes).encode()).hexdigest()[:16]
