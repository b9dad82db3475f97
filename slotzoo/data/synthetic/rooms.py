"""The double of 3D Shapes: one object in a room, drawn from the six factors of the published set."""

import dataclasses

import numpy as np

from slotzoo.data.spec import FieldSpec, Record
from slotzoo.data.synthetic.images import image_fields
from slotzoo.data.synthetic.raytrace import (
    CUBE,
    CYLINDER,
    SPHERE,
    Hits,
    Planes,
    Solids,
    average,
    centre_height,
    look_at,
    shadows,
    trace,
)
from slotzoo.errors import ConfigError


_HUES, _SCALES, _SHAPES, _ORIENTATIONS = 10, 8, 4, 15
_HALF = np.float32(4.2)  # of the room
_LIGHT = np.asarray([1.2, -1.0, 5.5], np.float32)


def labels_field() -> FieldSpec:
    """The field `labels`: the factors of 3D Shapes with their published values."""
    meaning = "floor, wall and object hue, scale, shape, orientation in degrees"
    return FieldSpec((6,), "float32", -30, 30, meaning, time=False)


def hue_colour(hue: float) -> np.ndarray:
    """The pure colour of a hue, 0 to 1: straight lines between red, yellow, green, cyan, blue and magenta."""
    place = np.abs((hue * 6 + np.asarray([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return np.clip(place, 0, 1)


@dataclasses.dataclass(frozen=True)
class Rooms:
    """A cube, cylinder, sphere or capsule on the floor of a room, seen from 15 sides; `labels` are the factors.

    As in the published set: hues in tenths, scales 0.75 to 1.25, shapes 0 to 3, orientations -30 to 30 degrees.
    """

    size: int = 64

    def __post_init__(self):
        if self.size < 8:
            raise ConfigError(f"Pictures of rooms need a size of at least 8 pixels, got {self.size}.")

    @property
    def version(self) -> int:
        return 1

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return {**image_fields(self.size, self.size), "labels": labels_field()}

    def draw(self, rng: np.random.Generator) -> Record:
        hues = rng.integers(_HUES, size=3) / _HUES
        scale = 0.75 + 0.5 * int(rng.integers(_SCALES)) / (_SCALES - 1)
        shape = int(rng.integers(_SHAPES))
        degrees = -30 + 60 * int(rng.integers(_ORIENTATIONS)) / (_ORIENTATIONS - 1)
        labels = np.asarray([*hues, scale, shape, degrees], np.float32)
        return {"image": self.render(labels), "labels": labels}

    def render(self, labels: np.ndarray) -> np.ndarray:
        """The picture (size, size, 3) of given factors (6,)."""
        floor, wall, thing, scale, shape, degrees = (float(x) for x in labels)
        solids = _object(int(shape), scale)
        # Rounded, so that the last bit of a platform's libm cannot change a picture.
        cos, sin = (round(float(f(np.deg2rad(degrees - 45))), 6) for f in (np.cos, np.sin))
        eye = np.asarray([4.0 * cos, 4.0 * sin, 2.3])
        camera = look_at(eye, np.asarray([0.0, 0.0, 0.85]), left=-0.55, top=0.55, width=1.1)
        hits = trace(solids, camera, self.size)
        on_wall, hits = _walls(hits, eye)
        table = np.stack([hue_colour(h) for h in (floor, wall, thing)]).astype(np.float32)
        surface = np.where(hits.label > 0, 2, np.where(on_wall, 1, 0))
        to = [_LIGHT[i] - hits.point[i] for i in range(3)]
        length = 1 / np.sqrt(to[0] * to[0] + to[1] * to[1] + to[2] * to[2])
        light: Planes = (to[0] * length, to[1] * length, to[2] * length)
        lit = np.where(shadows(solids, hits, light) & ~on_wall, np.float32(0.35), np.float32(1))
        key = sum(n * d for n, d in zip(hits.normal, light, strict=True))
        tone = np.float32(0.3) + np.float32(0.7) * np.maximum(key, np.float32(0)) * lit
        red, green, blue = (tone * table[:, i][surface] for i in range(3))
        return average((red, green, blue))


def _object(shape: int, scale: float) -> Solids:
    """The object as one solid, the capsule as three."""
    radius = 0.75 * scale
    if shape == 3:
        small = 0.6 * radius
        kinds, heights, radii = [SPHERE, CYLINDER, SPHERE], [small, 2 * small, 3 * small], [small] * 3
    else:
        kind = (CUBE, CYLINDER, SPHERE)[shape]
        grown = radius * (1.3 if kind == CUBE else 1.0)
        kinds, radii = [kind], [grown]
        heights = list(centre_height(np.asarray(kinds), np.asarray(radii)))
    n = len(kinds)
    return Solids(
        np.asarray(kinds),
        np.zeros(n),
        np.zeros(n),
        np.asarray(heights),
        np.asarray(radii),
        np.ones(n),
        np.zeros(n),
    )


def _walls(hits: Hits, eye: np.ndarray) -> tuple[np.ndarray, Hits]:
    """Which samples see a wall of the room instead of the floor, and the hits with the walls in them."""
    start = eye.astype(np.float32)
    reach = []
    for axis in (0, 1):
        ray = hits.ray[axis]
        safe = np.where(np.abs(ray) < 1e-6, np.float32(1e-6), ray)
        reach.append(np.where(safe > 0, _HALF - start[axis], -_HALF - start[axis]) / safe)
    far = np.minimum(reach[0], reach[1])
    on_wall = (hits.label == 0) & (far < hits.distance)
    distance = np.where(on_wall, far, hits.distance)
    first = on_wall & (reach[0] <= reach[1])
    second = on_wall & ~first
    nx = np.where(first, -np.sign(hits.ray[0]), np.where(second, np.float32(0), hits.normal[0]))
    ny = np.where(second, -np.sign(hits.ray[1]), np.where(first, np.float32(0), hits.normal[1]))
    nz = np.where(on_wall, np.float32(0), hits.normal[2])
    x, y, z = (start[i] + distance * hits.ray[i] for i in range(3))
    return on_wall, Hits(hits.label, distance, (x, y, z), (nx, ny, nz), hits.ray)
