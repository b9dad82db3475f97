"""The embedded double of DMLab: videos of an agent that walks random textured mazes.

It has the element specification of the published set (64 x 64 frames, six action ids) and its idea: 7 x 7
mazes, walked by an agent that goes to random places by the shortest way and so comes back to old sights.
"""

import hashlib
import json
from typing import Literal

import numpy as np

from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.data.synthetic.layout import ACTIONS, Layout, Walk, make_maze, walk
from slotzoo.data.synthetic.raycast import render
from slotzoo.data.synthetic.textures import texture_hash
from slotzoo.errors import ConfigError


VERSION = 1  # counts changes of what a given (seed, split, index) looks like
Split = Literal["train", "test"]


class MazeSource:
    """Clip `index` of a split is a function of (seed, split, index) alone: no state, order or process in it.

    `length` frames of `size` x `size` pixels; `depth` adds a depth map; `layout="labmaze"` takes the mazes of
    DeepMind Lab's own generator where that package is installed.
    """

    name = "dmlab"
    provenance: Provenance = "embedded double"

    def __init__(
        self,
        split: Split,
        *,
        length: int = 300,
        size: int = 64,
        clips: int = 2000,
        seed: int = 0,
        depth: bool = False,
        layout: Layout = "backtracker",
    ):
        for name, value in (("length", length), ("size", size), ("clips", clips)):
            if value < 1:
                raise ConfigError(f"The maze videos need {name} of at least 1, got {value}.")
        if seed < 0:
            raise ConfigError(f"The maze videos need a seed of at least 0, got {seed}.")
        self.split: Split = split
        self.length, self.size, self.clips, self.seed = length, size, clips, seed
        self.depth = depth
        self.layout: Layout = layout
        self.options = {"size": size, "depth": depth, "layout": layout}

    def __repr__(self) -> str:
        options = f"length={self.length}, size={self.size}, clips={self.clips}, seed={self.seed}"
        return f"MazeSource({self.split!r}, {options}, depth={self.depth}, layout={self.layout!r})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        fields = dmlab_spec(self.size)
        if self.depth:
            fields["depth"] = FieldSpec(
                (None, self.size, self.size), "float32", 0, None, "distance in grid squares, 0 is sky"
            )
        return fields

    @property
    def fingerprint(self) -> str:
        identity = json.dumps([VERSION, repr(self), texture_hash()])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self.length)

    def frames(self, index: int) -> int:
        return self.length

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip: the walk is cheap, only these are drawn."""
        if not 0 <= index < self.clips:
            raise IndexError(f"clip {index} of {self.clips}")
        rng = np.random.default_rng([self.seed, {"train": 0, "test": 1}[self.split], index])
        maze = make_maze(rng, layout=self.layout)
        whole = walk(rng, maze, self.length)
        path = Walk(*(x[start : start + length] for x in whole))
        frames, distance = render(maze, path, self.size, depth=self.depth)
        record = {"video": frames, "actions": path.actions}
        if distance is not None:
            record["depth"] = distance
        return record

    def close(self) -> None:
        """Nothing is held open."""


def dmlab_spec(size: int | None = 64) -> dict[str, FieldSpec]:
    """Fields of a DMLab record, embedded or published."""
    return {
        "video": FieldSpec((None, size, size, 3), "uint8", 0, 255, "RGB frames, 0 to 255"),
        "actions": FieldSpec((None,), "int32", 0, ACTIONS - 1, "id of the action that led to the frame"),
    }
