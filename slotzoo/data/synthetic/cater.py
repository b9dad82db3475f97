"""A double of CATER: where is the snitch at the end of the video, though a cone may have carried it off?

After Girdhar and Ramanan, "CATER: A diagnostic dataset for Compositional Actions and TEmporal Reasoning" (ICLR
2020) and its generator's rules: cubes, spheres, cylinders and cones of CLEVR's colours on its table, and the
snitch, a small golden ball. In every period objects slide, or are picked up and placed elsewhere; a cone may be
placed over the snitch or over a smaller sphere or cone, and from then on they move together, until it is picked
up again. The place of the snitch in the last frame, hidden or not, is the label: a cell of a 6 x 6 grid on the table.
Ours are the numbers of objects, periods and camera, which stays CLEVR's; objects do not turn.
"""

import dataclasses
import hashlib
import json
import math
from typing import Literal

import numpy as np

from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.data.synthetic.clevr import RGB, Surface, shade
from slotzoo.data.synthetic.raytrace import (
    CONE,
    CUBE,
    CYLINDER,
    SPHERE,
    Camera,
    Solids,
    average,
    centre_height,
    look_at,
    trace,
)
from slotzoo.errors import ConfigError


VERSION = 1  # counts changes of what a given (seed, split, index) looks like
Split = Literal["train", "val", "test"]
_SPLITS = {"train": 0, "test": 1, "val": 2}
GRID = 6  # cells of the label's grid, each one unit wide, from -3 to 3
_REACH = 3.0
_GAP = 0.15  # between objects
_LIFT = 2.0  # height of an object that is carried through the air
_RADII = (0.4, 0.7)
_SNITCH = 0.25
_GOLD = (212, 175, 55)
_FOCAL = 35 / 32
_EYE = np.asarray([7.48113, -6.50764, 5.34367])


def cell(x: float, y: float) -> int:
    """The label of a place on the table: 6 * row + column, rows along y (the published rule)."""
    column, row = (min(max(math.floor(v) + GRID // 2, 0), GRID - 1) for v in (x, y))
    return GRID * row + column


@dataclasses.dataclass
class _Thing:
    """An object while its film is made: `inside` is the cone over it, `places` its centre in every frame."""

    shape: int
    radius: float
    place: np.ndarray  # x, y on the table
    inside: int | None
    places: np.ndarray  # (frame, 3) x, y, height above the table


def film(rng: np.random.Generator, frames: int, objects: int, periods: int) -> list[_Thing]:
    """The objects and where they are in each frame; number 0 is the snitch, number 1 a large cone."""
    things = _start(rng, frames, objects)
    edges = np.round(np.linspace(0, frames - 1, periods + 1)).astype(int)
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        if last > first:
            _period(rng, things, int(first), int(last))
    return things


def _start(rng: np.random.Generator, frames: int, objects: int) -> list[_Thing]:
    while True:
        things: list[_Thing] = []
        for k in range(objects):
            if k < 2:
                shape, radius = ((SPHERE, _SNITCH), (CONE, _RADII[1]))[k]
            else:
                shape = int(rng.choice((CUBE, SPHERE, CYLINDER, CONE)))
                radius = float(rng.choice(_RADII))
            place = _free(rng, things, radius, ())
            if place is None:
                break
            things.append(_Thing(shape, radius, place, None, np.zeros((frames, 3))))
            things[-1].places[:, :2] = place
        else:
            return things


def _free(
    rng: np.random.Generator, things: list[_Thing], radius: float, ignored: tuple[int, ...]
) -> np.ndarray | None:
    """A place for something of this radius, or None where fifty attempts found no room."""
    others = [t for k, t in enumerate(things) if k not in ignored]
    for _ in range(50):
        place = rng.uniform(-_REACH, _REACH, 2)
        if all(np.square(place - t.place).sum() > (radius + t.radius + _GAP) ** 2 for t in others):
            return place
    return None


def _period(rng: np.random.Generator, things: list[_Thing], first: int, last: int) -> None:
    """Between two frames, every object that nothing covers may move once; one cone may cover something."""
    busy: set[int] = set()
    covering = _cover(rng, things)
    if covering is not None and rng.random() < 0.6:
        top, below = covering
        _move(things, [top], things[below].place, first, last, lifted=True)
        things[below].inside = top
        busy |= {top, below}
    for k in rng.permutation(len(things)):
        carried = [i for i, t in enumerate(things) if t.inside == k]
        if k in busy or things[k].inside is not None or rng.random() < 0.3:
            continue
        target = _free(rng, things, things[k].radius, (int(k), *carried))
        if target is None:
            continue
        lifted = bool(rng.random() < 0.5)
        if lifted:  # what was below stays, and is seen again
            for i in carried:
                things[i].inside = None
            if carried and np.square(target - things[carried[0]].place).sum() < things[k].radius ** 2 * 4:
                for i in carried:
                    things[i].inside = int(k)
                continue
            carried = []
        _move(things, [int(k), *carried], target, first, last, lifted=lifted)


def _cover(rng: np.random.Generator, things: list[_Thing]) -> tuple[int, int] | None:
    """A cone without anything below it, and something smaller that fits there: the snitch as often as all others."""
    empty = [
        k for k, t in enumerate(things) if t.shape == CONE and t.inside is None and not _carries(things, k)
    ]
    if not empty:
        return None
    top = int(rng.choice(empty))
    smaller = [
        k
        for k, t in enumerate(things)
        if t.shape in (SPHERE, CONE)
        and t.radius < things[top].radius
        and t.inside is None
        and k != top
        and not _carries(things, k)
        and _room(things, top, k)
    ]
    if not smaller:
        return None
    return top, 0 if 0 in smaller and rng.random() < 0.5 else int(rng.choice(smaller))


def _carries(things: list[_Thing], k: int) -> bool:
    return any(t.inside == k for t in things)


def _room(things: list[_Thing], top: int, below: int) -> bool:
    """Whether nothing else is in the way of a cone that comes down over `below`."""
    return all(
        np.square(things[below].place - t.place).sum() > (things[top].radius + t.radius + _GAP) ** 2
        for k, t in enumerate(things)
        if k not in (top, below) and t.inside is None
    )


def _move(
    things: list[_Thing], group: list[int], target: np.ndarray, first: int, last: int, *, lifted: bool
) -> None:
    share = np.linspace(0, 1, last - first + 1)[:, None]
    for k in group:
        thing = things[k]
        thing.places[first : last + 1, :2] = (1 - share) * thing.place + share * target
        thing.places[last:, :2] = target
        if lifted:
            thing.places[first : last + 1, 2] = _LIFT * 4 * (share * (1 - share))[:, 0]
        thing.place = np.asarray(target, np.float64)


class CaterDouble:
    """Clip `index` of a split is a function of (seed, split, index) alone: `length` frames, the whole story."""

    name = "cater"
    provenance: Provenance = "embedded double"

    def __init__(
        self,
        split: Split,
        *,
        length: int = 32,
        size: int = 64,
        clips: int = 2000,
        seed: int = 0,
        max_objects: int = 7,
        periods: int = 6,
    ):
        for name, value, least in (
            ("length", length, 2),
            ("size", size, 8),
            ("clips", clips, 1),
            ("seed", seed, 0),
            ("max_objects", max_objects, 2),
            ("periods", periods, 1),
        ):
            if value < least:
                raise ConfigError(f"The double of CATER needs a {name} of at least {least}, got {value}.")
        if max_objects > 10:
            raise ConfigError(f"The double of CATER has room for 10 objects, got max_objects={max_objects}.")
        self.split: Split = split
        self.length, self.size, self.clips, self.seed = length, size, clips, seed
        self.max_objects, self.periods = max_objects, periods
        self.options = {"length": length, "size": size, "max_objects": max_objects, "periods": periods}

    def __repr__(self) -> str:
        return (
            f"CaterDouble({self.split!r}, length={self.length}, size={self.size}, clips={self.clips}, "
            f"seed={self.seed}, max_objects={self.max_objects}, periods={self.periods})"
        )

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return cater_spec(self.length, self.size)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([VERSION, repr(self)]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.clips:
            raise IndexError(f"clip {index} of {self.clips}")
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], index])
        objects = int(rng.integers(min(4, self.max_objects), self.max_objects + 1))
        things = film(rng, self.length, objects, self.periods)
        rgb = np.concatenate([[np.asarray(_GOLD) / 255], RGB[rng.integers(len(RGB), size=objects - 1)]])
        metal = np.concatenate([[1], rng.integers(2, size=objects - 1)])
        surface = Surface(rgb**2, metal, None, None)
        camera = _camera()
        frames = [self._draw(things, surface, camera, time) for time in range(self.length)]
        x, y = things[0].place
        return {"video": np.stack(frames), "label": np.asarray(cell(float(x), float(y)), np.int32)}

    def _draw(self, things: list[_Thing], surface: Surface, camera: Camera, time: int) -> np.ndarray:
        shape = np.asarray([t.shape for t in things])
        radius = np.asarray([t.radius for t in things])
        place = np.stack([t.places[time] for t in things])
        height = centre_height(shape, radius) + place[:, 2]
        still = np.ones(len(things)), np.zeros(len(things))
        solids = Solids(shape, place[:, 0], place[:, 1], height, radius, *still)
        return average(shade(solids, trace(solids, camera, self.size), surface))

    def close(self) -> None:
        """Nothing is held open."""


def _camera() -> Camera:
    """CLEVR's camera and its whole picture of 4:3, which is then squeezed into a square."""
    width, height = 1 / _FOCAL, 0.75 / _FOCAL
    return look_at(_EYE, np.zeros(3), left=-width / 2, top=height / 2, width=width, height=height)


def cater_spec(length: int | None, size: int | None) -> dict[str, FieldSpec]:
    """Fields of a record, published or double. A clip is a whole video, told by fewer frames."""
    return {
        "video": FieldSpec(
            (length, size, size, 3), "uint8", 0, 255, "RGB frames from the first to the last", time=False
        ),
        "label": FieldSpec(
            (),
            "int32",
            0,
            GRID * GRID - 1,
            "cell of the snitch in the last frame, 6 * row + column",
            time=False,
        ),
    }
