"""The embedded doubles of Minecraft and Habitat: walks of an agent through larger frames than DMLab's.

They have the element specification of the published sets (128 x 128 frames, six action ids) and their idea:
Minecraft is an open field with scattered blocks, Habitat rooms joined by doors.
"""

import hashlib
from typing import Literal

from slotzoo.data.sources.mp4 import world_spec
from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.data.synthetic.layout import Layout
from slotzoo.data.synthetic.maze import MazeSource, Split


World = Literal["minecraft", "habitat"]
_LAYOUTS: dict[World, Layout] = {"minecraft": "field", "habitat": "rooms"}


class WorldSource:
    """Clip `index` of a split is a function of (world, seed, split, index) alone."""

    provenance: Provenance = "embedded double"

    def __init__(
        self,
        world: World,
        split: Split,
        *,
        length: int = 300,
        size: int = 128,
        clips: int = 2000,
        seed: int = 0,
    ):
        self.name = world
        self.walks = MazeSource(split, length=length, size=size, clips=clips, seed=seed, layout=_LAYOUTS[world])
        self.options = {"size": size}

    def __repr__(self) -> str:
        return f"WorldSource({self.name!r}, {self.walks!r})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return world_spec(self.walks.size)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.name} {self.walks.fingerprint}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, index: int) -> Record:
        return self.walks[index]

    def frames(self, index: int) -> int:
        return self.walks.frames(index)

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip: the walk is cheap, only these are drawn."""
        return self.walks.window(index, start, length)

    def close(self) -> None:
        """Nothing is held open."""
