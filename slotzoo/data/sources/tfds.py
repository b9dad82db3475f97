"""Token grids of videos as TECO publishes them: a TFDS folder `<root>/1.0.0` of TFRecord shards.

Features: `video` (time, side, side) codes of the VQ-GAN, `actions` (time,). `features.json` gives their shapes;
where it is absent, the side follows from the two lengths.
"""

import bisect
import functools
import hashlib
import itertools
import json
import math
import pathlib
import re
from typing import Any, Literal

import numpy as np

from slotzoo.data.sources.folders import checked_root, contents, provenance_of
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.synthetic.layout import ACTIONS
from slotzoo.data.tfrecord import Place, index_file, parse_example, read_at
from slotzoo.errors import DataError


Split = Literal["train", "test"]


def encoded_spec(side: int | None = 16, codes: int = 1024) -> dict[str, FieldSpec]:
    """Fields of a record of tokens."""
    return {
        "tokens": FieldSpec((None, side, side), "int32", 0, codes - 1, "codes of the tokenizer"),
        "actions": FieldSpec((None,), "int32", 0, ACTIONS - 1, "id of the action that led to the frame"),
    }


def _version_folder(root: pathlib.Path, split: str) -> pathlib.Path:
    """`root` itself or its newest version folder, whichever holds the shards."""
    versions = [path for path in root.iterdir() if path.is_dir() and re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    newest = sorted(versions, key=lambda path: [int(part) for part in path.name.split(".")], reverse=True)
    for folder in (*newest, root):
        if any(folder.glob(f"*-{split}.tfrecord*")):
            return folder
    raise DataError(
        f"data.root={root} has no shards of split {split!r}: {contents(newest[0] if newest else root)}; "
        f"expected {root}/1.0.0/*-{split}.tfrecord-* (TFDS, as TECO publishes it) or "
        f"{root}/{split}/manifest.json (prepared)."
    )


def _declared_side(folder: pathlib.Path) -> int | None:
    """Side of the token grid from features.json, in the layouts of old and new TFDS; None where it is not
    said."""
    path = folder / "features.json"
    if not path.is_file():
        return None
    try:
        declared = json.loads(path.read_text())
        if "featuresDict" in declared:
            shape = declared["featuresDict"]["features"]["video"]["tensor"]["shape"]["dimensions"]
        else:
            content = declared["content"]["video"]["content"]
            shape = (json.loads(content) if isinstance(content, str) else content)["shape"]
        height, width = (int(size) for size in shape[-2:])
        if len(shape) != 3 or height != width:
            raise ValueError(f"'video' has shape {shape}, expected (time, side, side)")
        return height
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the features of an encoded video set ({error}).") from error


def _declared_lengths(folder: pathlib.Path, split: str) -> list[int] | None:
    path = folder / "dataset_info.json"
    try:
        splits: list[dict[str, Any]] = json.loads(path.read_text())["splits"]
        return next([int(n) for n in s["shardLengths"]] for s in splits if s["name"] == split)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


class EncodedSource:
    """Records in the order of the shards, read at random through the offsets of their headers, checksums
    verified."""

    def __init__(
        self, root: str | pathlib.Path, split: Split, *, codes: int = 1024, name: str = "dmlab_encoded"
    ):
        self.name = name
        root = checked_root(root, name)
        folder = _version_folder(root, split)
        self._root, self.split = root, split
        self.provenance: Provenance = provenance_of(root)
        self._files = sorted(folder.glob(f"*-{split}.tfrecord*"))
        self._places = [index_file(path) for path in self._files]
        lengths = _declared_lengths(folder, split)
        if lengths is not None and len(lengths) == len(self._files):
            for path, places, length in zip(self._files, self._places, lengths, strict=True):
                if len(places) > length:
                    raise DataError(f"{path}: {len(places)} records, dataset_info.json says {length}.")
                # Records after a torn one still count, so that their loss is reported and the numbering stays.
                places += [Place(0, 0, "it is missing from the file")] * (length - len(places))
        self._ends = list(itertools.accumulate(len(places) for places in self._places))
        if not self._ends[-1]:
            raise DataError(f"{folder}: the shards of split {split!r} hold no records.")
        self._side, self._codes = _declared_side(folder), codes

    def __repr__(self) -> str:
        return f"EncodedSource({self.split!r}, clips={len(self)})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return encoded_spec(self._side, self._codes)

    @functools.cached_property
    def _fingerprint(self) -> str:
        sizes = [f"{path.relative_to(self._root)}:{path.stat().st_size}" for path in self._files]
        return hashlib.sha256("\n".join(sizes).encode()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """Of the paths and sizes of the files."""
        return self._fingerprint

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        within = index - (self._ends[shard - 1] if shard else 0)
        path = self._files[shard]
        where = f"{path}, record {within} (clip {index})"
        features = parse_example(read_at(path, self._places[shard][within], where), where)
        values = {}
        for name in ("video", "actions"):
            value = features.get(name)
            if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.integer):
                found = ", ".join(features) or "nothing"
                raise DataError(f"{where}: no integer feature {name!r}; found {found}.")
            values[name] = value
        side = self._side or math.isqrt(values["video"].size // max(1, values["actions"].size))
        if not side or values["video"].size % (side * side):
            raise DataError(
                f"{where}: {values['video'].size} codes for {values['actions'].size} actions are not "
                f"square grids{f' of side {self._side}' if self._side else ''}."
            )
        self._side = side
        tokens = values["video"].reshape(-1, side, side)
        record = {"tokens": tokens.astype(np.int32), "actions": values["actions"].astype(np.int32)}
        check_record(record, self.spec, where)
        return record

    def close(self) -> None:
        """Nothing is held open."""
