"""DMLab as TECO publishes it: one npz per trajectory in `<root>/{train,test}/*/*.npz`.

Keys: `video` (time, height, width, 3) uint8, `actions` (time,) integers. Source: Yan et al., "Temporally
Consistent Transformers for Video Generation" (ICML 2023) and its repository's loader.
"""

import functools
import pathlib
from typing import Literal

import numpy as np

from slotzoo.data.sources.folders import (
    UNREADABLE_NPZ,
    clip_files,
    files_fingerprint,
    first_readable,
    provenance_of,
    short,
)
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.synthetic.maze import dmlab_spec
from slotzoo.errors import DataError


Split = Literal["train", "test"]


class TecoSource:
    """Trajectories in the order of their paths. Files are opened when read, checked against the first one's
    size."""

    name = "dmlab"

    def __init__(self, root: str | pathlib.Path, split: Split):
        root, self._files = clip_files(root, split, ".npz", "DMLab", "as TECO publishes it")
        self.provenance: Provenance = provenance_of(root)
        self.split: Split = split
        self._root = root

    def __repr__(self) -> str:
        return f"TecoSource({self.split!r}, clips={len(self)})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        """That of DMLab, at the frame size of the first clip that can be read."""
        return self._spec

    @functools.cached_property
    def _spec(self) -> dict[str, FieldSpec]:
        path, video = first_readable(self._files, lambda path: self._load(path, str(path))["video"], self._root)
        if video.ndim != 4 or video.shape[1] != video.shape[2]:
            raise DataError(
                f"{path}: 'video' has shape {video.shape}, expected (time, size, size, 3), square RGB frames."
            )
        return dmlab_spec(video.shape[1])

    @functools.cached_property
    def _fingerprint(self) -> str:
        return files_fingerprint(self._root, self._files)

    @property
    def fingerprint(self) -> str:
        """Of the paths and sizes of the files."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._files)

    def _load(self, path: pathlib.Path, where: str) -> Record:
        try:
            # Opened here: numpy leaves a file open when it turns out not to be an archive.
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                missing = [key for key in ("video", "actions") if key not in file.files]
                if missing:
                    raise DataError(
                        f"{where}: no key {missing[0]!r}; found {', '.join(file.files) or 'nothing'}. "
                        "A DMLab clip has 'video' and 'actions'."
                    )
                return {"video": file["video"], "actions": file["actions"]}
        except UNREADABLE_NPZ as error:
            raise DataError(
                f"{where}: cannot be read ({short(error)}); fetch the file again or use on_error=skip."
            ) from error

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        where = f"{self._files[index]} (clip {index})"
        record = self._load(self._files[index], where)
        if np.issubdtype(record["actions"].dtype, np.integer):
            record["actions"] = record["actions"].astype(np.int32)
        check_record(record, self.spec, where)
        return record

    def close(self) -> None:
        """Nothing is held open."""
