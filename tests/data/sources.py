"""Sources made for tests: small, and bad where a test says so."""

import numpy as np

from slotzoo.data.spec import FieldSpec
from slotzoo.errors import DataError


class Numbered:
    """Clip i holds frames i * 1000 + t, so that a batch tells which records and windows are in it."""

    name = "numbered"
    provenance = "embedded double"
    fingerprint = "0123"

    def __init__(self, records, frames=6, bad=(), lengths=None):
        self.records, self.frames, self.bad, self.lengths = records, frames, set(bad), lengths
        self.spec = {
            "video": FieldSpec((None, 1), "int32", 0, None, "frame numbers"),
            "label": FieldSpec((), "int32", 0, None, "clip number", time=False),
        }

    def __repr__(self):
        return f"Numbered({self.records})"

    def __len__(self):
        return self.records

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(f"numbered, clip {index}: corrupted.")
        frames = self.lengths[index] if self.lengths else self.frames
        video = index * 1000 + np.arange(frames, dtype=np.int32)[:, None]
        return {"video": video, "label": np.asarray(index, np.int32)}

    def close(self):
        pass
