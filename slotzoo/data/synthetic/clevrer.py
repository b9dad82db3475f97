"""A double of CLEVRER: solids that lie on a table, and others that slide in from outside and hit them.

After Yi et al., "CLEVRER: CoLlision Events for Video REpresentation and Reasoning" (ICLR 2020): 128 frames at 25 frames
a second of plain cubes, spheres and cylinders of CLEVR's colours and two materials, all of one size, a fixed
camera. Drawn is the square in the middle of the 480 x 320 pictures, which is what models are trained on.
"""

import hashlib
import json
from typing import Literal

import numpy as np

from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.data.synthetic.clevr import RGB, Surface
from slotzoo.data.synthetic.motion import slide
from slotzoo.data.synthetic.moving_scene import FOCAL, SENSOR, Scene, picture
from slotzoo.data.synthetic.raytrace import CUBE, CYLINDER, SPHERE, look_at
from slotzoo.errors import ConfigError


VERSION = 1  # counts changes of what a given (seed, split, index) looks like
FRAMES, FPS = 128, 25
Split = Literal["train", "val", "test"]
_SPLITS = {"train": 0, "test": 1, "val": 2}
_EYE = np.asarray([7.48113, -6.50764, 5.34367])
_SIDE = 2 / 3 * SENSOR / FOCAL  # of the square at distance 1: two thirds of the picture's width
_RADIUS = 0.4
_AWAY = (4.5, 8.0)  # where objects come from: how far from the middle


def clevrer_spec(size: int | None = 128) -> dict[str, FieldSpec]:
    """Fields of a record of CLEVRER, embedded or published."""
    return {"video": FieldSpec((None, size, size, 3), "uint8", 0, 255, "RGB frames, 0 to 255")}


def draw_scene(rng: np.random.Generator, frames: int) -> Scene:
    """Two or three objects at rest in the middle, one to three on their way there."""
    resting, coming = int(rng.integers(2, 4)), int(rng.integers(1, 4))
    count = resting + coming
    places = np.zeros((count, 2))
    for k in range(count):
        while True:
            place = rng.uniform(-1.8, 1.8, 2)
            if k >= resting:
                turn = int(rng.integers(360)) * (np.pi / 180)
                place = rng.uniform(*_AWAY) * np.round([np.cos(turn), np.sin(turn)], 6)
            gap = places[:k] - place
            if ((gap * gap).sum(axis=1) > (2.5 * _RADIUS) ** 2).all():
                places[k] = place
                break
    moving = np.arange(count) >= resting
    aim = rng.uniform(-1.2, 1.2, (count, 2)) - places
    distance = np.sqrt(aim[:, 0] * aim[:, 0] + aim[:, 1] * aim[:, 1])
    velocity = aim * (rng.uniform(2.2, 3.5, count) * moving / np.maximum(distance, 1e-6))[:, None]
    shape = np.asarray((CUBE, SPHERE, CYLINDER))[rng.integers(3, size=count)]
    radius, friction = np.full(count, _RADIUS), np.full(count, 0.03)
    mass = np.asarray([2.828, 4.189, 6.283])[shape] * _RADIUS**3
    turn, spin = rng.integers(360, size=count) * (np.pi / 180), rng.uniform(-1.0, 1.0, count) * moving
    motion = slide(places, velocity, turn, spin, radius, mass, friction, frames=frames + 2, fps=FPS)
    color = rng.integers(len(RGB), size=count)
    surface = Surface(RGB[color] ** 2, rng.integers(2, size=count), None, None)
    eye = _EYE + rng.uniform(-0.25, 0.25, 3)
    camera = look_at(eye, np.zeros(3), left=-_SIDE / 2, top=_SIDE / 2, width=_SIDE)
    size = np.zeros(count, np.int64)
    return Scene(shape, radius, size, color, mass, friction, moving, surface, motion, [camera] * (frames + 2))


class ClevrerDouble:
    """Clip `index` of a split is a function of (options, seed, split, index) alone.

    It is `length` frames out of the middle of a film of at least 128: a short clip shows a part of what happens.
    """

    name = "clevrer"
    provenance: Provenance = "embedded double"

    def __init__(
        self, split: Split, *, length: int = FRAMES, size: int = 128, clips: int = 1000, seed: int = 0
    ):
        for option, value, low in (
            ("length", length, 1),
            ("size", size, 8),
            ("clips", clips, 1),
            ("seed", seed, 0),
        ):
            if value < low:
                raise ConfigError(f"The double of CLEVRER needs {option} of at least {low}, got {value}.")
        self.split: Split = split
        self.length, self.size, self.clips, self.seed = length, size, clips, seed
        self.options = {"size": size}

    def __repr__(self) -> str:
        options = f"length={self.length}, size={self.size}, clips={self.clips}, seed={self.seed}"
        return f"ClevrerDouble({self.split!r}, {options})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return clevrer_spec(self.size)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([VERSION, repr(self)]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self.length)

    def frames(self, index: int) -> int:
        return self.length

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length`: the motion is cheap, only these are drawn."""
        if not 0 <= index < self.clips:
            raise IndexError(f"clip {index} of {self.clips}")
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], index])
        whole = max(FRAMES, self.length)
        first = int(rng.integers(whole - self.length + 1))
        scene = draw_scene(rng, whole)
        frames = range(first + start, first + min(start + length, self.length))
        return {"video": np.stack([picture(scene, t, self.size)[0] for t in frames])}

    def close(self) -> None:
        """Nothing is held open."""
