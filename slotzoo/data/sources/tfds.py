"""Token grids of videos as TECO publishes them: a TFDS folder `<root>/1.0.0` of TFRecord shards.

Features: `video` (time, side, side) codes of the VQ-GAN, `actions` (time,). `features.json` gives their shapes;
where it is absent, the side follows from the two lengths.
"""

import functools
import json
import math
import pathlib
from typing import Literal

import numpy as np

from slotzoo.data.sources.folders import checked_root, provenance_of
from slotzoo.data.sources.tfds_shards import Shards, version_folder
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.synthetic.layout import ACTIONS
from slotzoo.data.tfrecord import parse_example
from slotzoo.errors import DataError


Split = Literal["train", "test"]


def encoded_spec(side: int | None = 16, codes: int = 1024) -> dict[str, FieldSpec]:
    """Fields of a record of tokens."""
    return {
        "tokens": FieldSpec((None, side, side), "int32", 0, codes - 1, "codes of the tokenizer"),
        "actions": FieldSpec((None,), "int32", 0, ACTIONS - 1, "id of the action that led to the frame"),
    }


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


class EncodedSource:
    """Records in the order of the shards, read at random through the offsets of their headers, checksums
    verified."""

    def __init__(
        self, root: str | pathlib.Path, split: Split, *, codes: int = 1024, name: str = "dmlab_encoded"
    ):
        self.name = name
        root = checked_root(root, name)
        expected = (
            f"{root}/1.0.0/*-{split}.tfrecord-* (TFDS, as TECO publishes it) or {root}/{split}/manifest.json "
            "(prepared)"
        )
        folder = version_folder(root, split, expected)
        self._root, self.split = root, split
        self.provenance: Provenance = provenance_of(root, folder)
        self._shards = Shards(folder, split)
        self._side, self._codes = _declared_side(folder), codes

    def __repr__(self) -> str:
        return f"EncodedSource({self.split!r}, clips={len(self)})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return encoded_spec(self._side, self._codes)

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self._shards.fingerprint(self._root)

    @property
    def fingerprint(self) -> str:
        """Of the paths and sizes of the files."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Record:
        where = self._shards.where(index)
        features = parse_example(self._shards.read(index), where)
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
