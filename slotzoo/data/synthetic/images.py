"""Doubles of image sets: picture `index` of a split is a function of (seed, split, index) alone."""

import hashlib
import json
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.errors import ConfigError


Split = Literal["train", "val", "test"]
_SPLITS = {"train": 0, "test": 1, "val": 2}


@runtime_checkable
class Scenes(Protocol):
    """What draws one picture. Its `repr` has everything that a picture depends on beside the random numbers."""

    @property
    def spec(self) -> dict[str, FieldSpec]: ...

    @property
    def version(self) -> int:
        """Counts changes of what the same random numbers look like."""
        ...

    def draw(self, rng: np.random.Generator) -> Record: ...


class SyntheticImages:
    """`clips` pictures of `scenes`. No state, order or process enters a picture."""

    provenance: Provenance = "embedded double"

    def __init__(self, name: str, scenes: Scenes, split: Split, *, clips: int = 2000, seed: int = 0):
        if clips < 1:
            raise ConfigError(f"The double of {name} needs clips of at least 1, got {clips}.")
        if seed < 0:
            raise ConfigError(f"The double of {name} needs a seed of at least 0, got {seed}.")
        if split not in _SPLITS:
            raise ConfigError(f"The double of {name} has no split {split!r}; it has {', '.join(_SPLITS)}.")
        self.name, self.scenes, self.clips, self.seed = name, scenes, clips, seed
        self.split: Split = split
        height, width, _ = scenes.spec["image"].shape
        self.options = {"size": height} if height == width else {}

    def __repr__(self) -> str:
        return f"SyntheticImages({self.scenes!r}, {self.split!r}, clips={self.clips}, seed={self.seed})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return self.scenes.spec

    @property
    def fingerprint(self) -> str:
        identity = json.dumps([self.scenes.version, repr(self)])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.clips:
            raise IndexError(f"image {index} of {self.clips}")
        return self.scenes.draw(np.random.default_rng([self.seed, _SPLITS[self.split], index]))

    def close(self) -> None:
        """Nothing is held open."""


def image_fields(
    height: int | None, width: int | None, objects: int | None = None, *, channels: int = 3
) -> dict[str, FieldSpec]:
    """Fields of a picture, and with `objects` of its label map and of which objects there are."""
    meaning = f"{'grey' if channels == 1 else 'RGB'} image, 0 to 255"
    fields = {"image": FieldSpec((height, width, channels), "uint8", 0, 255, meaning, time=False)}
    if objects is not None:
        fields["mask"] = FieldSpec(
            (height, width), "uint8", 0, objects, "label of every pixel, 0 is background", time=False
        )
        fields["visible"] = FieldSpec(
            (objects,), "uint8", 0, 1, "whether the object with label k + 1 is in the picture", time=False
        )
    return fields
