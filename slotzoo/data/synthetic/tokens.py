"""The embedded double of encoded DMLab: maze videos as grids of palette codes.

The published tokens need the VQ-GAN that made them. Here the mean colour of each 4 x 4 patch is rounded to 3, 4
and 3 bits of red, green and blue: 1024 codes with the same grid and range, which a palette turns back into a
picture.
"""

import hashlib

import numpy as np
from jaxtyping import Int32, UInt8

from slotzoo.data.sources.tfds import encoded_spec
from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.data.synthetic.maze import MazeSource, Split
from slotzoo.errors import ConfigError


PATCH = 4
_BITS = (3, 4, 3)


def encode_patches(
    video: UInt8[np.ndarray, "time height width 3"],
) -> Int32[np.ndarray, "time rows columns"]:
    """Palette code of each patch: red in the highest bits, blue in the lowest."""
    time, height, width, _ = video.shape
    patches = video.reshape(time, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    mean = patches.sum((2, 4), dtype=np.int32) // PATCH**2
    code = np.zeros(mean.shape[:-1], np.int32)
    for channel, bits in enumerate(_BITS):
        code = (code << bits) | (mean[..., channel] >> (8 - bits))
    return code


def palette() -> UInt8[np.ndarray, "codes 3"]:
    """Colour in the middle of each code's cell."""
    code = np.arange(1 << sum(_BITS))
    channels, shift = [], sum(_BITS)
    for bits in _BITS:
        shift -= bits
        value = (code >> shift) & ((1 << bits) - 1)
        channels.append((value << (8 - bits)) + (1 << (7 - bits)))
    return np.stack(channels, 1).astype(np.uint8)


class MazeTokenSource:
    """`MazeSource` with its frames turned into codes: `tokens` (length, size / 4, size / 4), `actions`
    (length,)."""

    name = "dmlab_encoded"
    provenance: Provenance = "embedded double"

    def __init__(self, split: Split, *, length: int = 300, size: int = 64, clips: int = 2000, seed: int = 0):
        if size % PATCH:
            raise ConfigError(f"Encoded maze videos need a size that is a multiple of {PATCH}, got {size}.")
        self._mazes = MazeSource(split, length=length, size=size, clips=clips, seed=seed)

    def __repr__(self) -> str:
        return f"MazeTokenSource({self._mazes!r})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return encoded_spec(self._mazes.size // PATCH, 1 << sum(_BITS))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"palette {PATCH} {_BITS} {self._mazes.fingerprint}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._mazes)

    def __getitem__(self, index: int) -> Record:
        record = self._mazes[index]
        return {"tokens": encode_patches(record["video"]), "actions": record["actions"]}

    def close(self) -> None:
        """Nothing is held open."""
