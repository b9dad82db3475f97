"""The embedded doubles of the encoded sets: videos as grids of palette codes.

The published tokens need the VQ-GAN that made them. Here the mean colour of each patch (4 x 4 pixels of DMLab's
frames, 8 x 8 of the larger ones) is rounded to 3, 4 and 3 bits of red, green and blue: 1024 codes with the same
grid and range, which a palette turns back into a picture.
"""

import hashlib
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8

from slotzoo.data.sources.tfds import encoded_spec
from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.data.synthetic.maze import MazeSource, Split
from slotzoo.data.synthetic.worlds import World, WorldSource
from slotzoo.errors import ConfigError


PATCH = 4
_BITS = (3, 4, 3)


def encode_patches(
    video: UInt8[np.ndarray, "time height width 3"], patch: int = PATCH
) -> Int32[np.ndarray, "time rows columns"]:
    """Palette code of each patch: red in the highest bits, blue in the lowest."""
    time, height, width, _ = video.shape
    patches = video.reshape(time, height // patch, patch, width // patch, patch, 3)
    mean = patches.sum((2, 4), dtype=np.int32) // patch**2
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
    """The double of `world` with its frames turned into codes: `tokens` (length, size / patch, size / patch),
    `actions` (length,)."""

    provenance: Provenance = "embedded double"

    def __init__(
        self,
        split: Split,
        *,
        length: int = 300,
        size: int | None = None,
        clips: int = 2000,
        seed: int = 0,
        world: World | Literal["dmlab"] = "dmlab",
    ):
        self.patch = PATCH if world == "dmlab" else 2 * PATCH
        size = 16 * self.patch if size is None else size
        if size % self.patch:
            raise ConfigError(
                f"Encoded {'maze' if world == 'dmlab' else world} videos need a size that is a multiple of "
                f"{self.patch}, got {size}."
            )
        self.name = f"{world}_encoded"
        self.size = size
        self._videos: MazeSource | WorldSource
        if world == "dmlab":
            self._videos = MazeSource(split, length=length, size=size, clips=clips, seed=seed)
        else:
            self._videos = WorldSource(world, split, length=length, size=size, clips=clips, seed=seed)

    def __repr__(self) -> str:
        return f"MazeTokenSource({self._videos!r})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return encoded_spec(self.size // self.patch, 1 << sum(_BITS))

    @property
    def fingerprint(self) -> str:
        identity = f"palette {self.patch} {_BITS} {self._videos.fingerprint}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> Record:
        record = self._videos[index]
        return {"tokens": encode_patches(record["video"], self.patch), "actions": record["actions"]}

    def close(self) -> None:
        """Nothing is held open."""
