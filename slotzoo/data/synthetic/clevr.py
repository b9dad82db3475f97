"""Doubles of CLEVR, CLEVR-with-masks and ClevrTex: ray-traced scenes of 3 to 6, or to 10, objects.

Sizes, colours, materials, camera and placement follow CLEVR (Johnson et al., 2017): two sizes, eight colours,
rubber and metal, cubes, spheres and cylinders on a grey floor, seen from the same place. Drawn is the part
that object-discovery work cuts out of the 320 x 240 pictures (rows 29 to 221, columns 64 to 256), or the whole
picture of 480 x 320 squeezed into a square, which is what set prediction is trained on.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from slotzoo.data.spec import FieldSpec, Record
from slotzoo.data.synthetic.images import image_fields
from slotzoo.data.synthetic.raytrace import (
    CUBE,
    CYLINDER,
    SPHERE,
    Camera,
    Hits,
    Solids,
    average,
    centre_height,
    look_at,
    majority,
    shadows,
    trace,
)
from slotzoo.data.synthetic.solid_textures import Material, random_material
from slotzoo.errors import ConfigError


# In the order of TFDS's `clevr`, from which the authors of Slot Attention make the targets of set prediction.
COLORS = ("gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan")
MATERIALS = ("rubber", "metal")
SHAPES = ("cube", "sphere", "cylinder")
SIZES = ("small", "large")
TARGET = 3 + len(SIZES) + len(MATERIALS) + len(SHAPES) + len(COLORS) + 1
RGB = (
    np.asarray(
        [
            (87, 87, 87),
            (42, 75, 215),
            (129, 74, 25),
            (255, 238, 51),
            (173, 35, 35),
            (29, 105, 20),
            (129, 38, 192),
            (41, 208, 208),
        ]
    )
    / 255.0
)
_RADII = (0.35, 0.7)
_TEX_RADII = (0.4, 0.6, 0.85)  # small, medium, large
_EYE = np.asarray([7.48113, -6.50764, 5.34367])
_FOCAL = 35 / 32  # mm over the width of the sensor
# Left and top of what is drawn, from the middle, and its width and height, all in widths of the whole picture.
_VIEWS = {
    "center": ((64 - 160) / 320, (120 - 29) / 320, 192 / 320, 192 / 320),
    "whole": (-0.5, 160 / 480, 1.0, 320 / 480),
}
_LIGHT = np.asarray([-0.6, -5.2, 6.8], np.float32)
_FILL = np.asarray([0.8, 0.1, 0.5916], np.float32)
_SOFT = ((-0.35, -0.35), (0.35, -0.35), (-0.35, 0.35), (0.35, 0.35))  # of the light's place, a sample each
LEAST = 0.003  # of the picture: an object that shows less is hidden, and the scene drawn again
VARIANTS = ("full", "pbg", "vbg", "grassbg", "camo", "outd")


class Surface(NamedTuple):
    """What the objects are made of; `materials` and `ground` are textures, None where a surface is plain."""

    rgb: np.ndarray  # (n, 3)
    metal: np.ndarray  # (n,) 0 or 1
    materials: list[Material] | None
    ground: Material | None
    floor: np.ndarray | None = None  # (3,) of a plain floor, None for CLEVR's grey


@dataclasses.dataclass(frozen=True)
class ClevrScenes:
    """Between `min_objects` and `max_objects` objects; every one of them can be seen.

    `masks` gives the label map and `visible`; `attributes` gives `targets` (max_objects, 19), the rows of set
    prediction: position (x + 3) / 6 (3), size (2), material (2), shape (3), colour (8), a flag; zeros for no
    object. `textured` is None for CLEVR, or the variant of ClevrTex: `full`; `pbg` a plain background; `vbg`
    plain objects on varied ones; `grassbg` the same green for all; `camo` one texture for everything; `outd`
    as `full`.
    """

    size: int = 128
    max_objects: int = 6
    min_objects: int = 3
    masks: bool = True
    attributes: bool = False
    crop: str = "center"
    textured: str | None = None

    @property
    def variant(self) -> str | None:
        """What the data set calls `textured`."""
        return self.textured

    def __post_init__(self):
        if self.crop not in _VIEWS:
            raise ConfigError(f"CLEVR scenes have no crop={self.crop}; they take {', '.join(_VIEWS)}.")
        if self.textured not in (None, *VARIANTS):
            raise ConfigError(f"ClevrTex has no variant {self.textured!r}; it has {', '.join(VARIANTS)}.")
        if self.size < 8:
            raise ConfigError(f"CLEVR scenes need a size of at least 8 pixels, got {self.size}.")
        if not 1 <= self.min_objects <= self.max_objects <= 10:
            raise ConfigError(
                f"CLEVR scenes have 1 to 10 objects, min_objects at most max_objects; got {self.min_objects} and "
                f"{self.max_objects}."
            )

    @property
    def version(self) -> int:
        return 1

    @property
    def spec(self) -> dict[str, FieldSpec]:
        fields = image_fields(self.size, self.size, self.max_objects if self.masks else None)
        if self.attributes:
            fields["targets"] = target_field(self.max_objects)
        return fields

    def draw(self, rng: np.random.Generator) -> Record:
        while True:
            camera = _camera(rng, self.crop)
            count = int(rng.integers(self.min_objects, self.max_objects + 1))
            placed = place_objects(rng, camera, count, _RADII if self.textured is None else _TEX_RADII)
            if placed is None:
                continue
            solids, sizes = placed
            hits = trace(solids, camera, self.size)
            mask = majority(hits.label)
            if np.bincount(mask.ravel(), minlength=count + 1)[1:].min() >= LEAST * mask.size:
                break
        colors, metal = rng.integers(len(COLORS), size=count), rng.integers(2, size=count)
        surface = _surface(rng, self.textured, colors, metal)
        record: Record = {"image": average(shade(solids, hits, surface))}
        if self.masks:
            record["mask"] = mask
            record["visible"] = (np.arange(self.max_objects) < count).astype(np.uint8)
        if self.attributes:
            place = np.stack([solids.x, solids.y, solids.z], axis=1)
            kinds = (np.minimum(sizes, len(SIZES) - 1), metal, solids.shape, colors)
            record["targets"] = targets(place, kinds, self.max_objects)
        return record


def target_field(objects: int) -> FieldSpec:
    """The field `targets` of set prediction."""
    return FieldSpec(
        (objects, TARGET), "float32", -1, 2, "position, size, material, shape, colour, flag", time=False
    )


def targets(place: np.ndarray, kinds: tuple[np.ndarray, ...], objects: int) -> np.ndarray:
    """Rows of set prediction from positions (n, 3) and the categories size, material, shape, colour (n,)."""
    out = np.zeros((objects, TARGET), np.float32)
    count = min(len(place), objects)
    out[:count, :3] = (place[:count] + 3) / 6
    start = 3
    for kind, names in zip(kinds, (SIZES, MATERIALS, SHAPES, COLORS), strict=True):
        out[np.arange(count), start + np.asarray(kind)[:count]] = 1
        start += len(names)
    out[:count, -1] = 1
    return out


def _camera(rng: np.random.Generator, crop: str) -> Camera:
    """CLEVR's camera, moved a little as there."""
    left, top, width, height = (x / _FOCAL for x in _VIEWS[crop])
    eye = _EYE + rng.uniform(-0.25, 0.25, 3)
    return look_at(eye, np.zeros(3), left=left, top=top, width=width, height=height)


def place_objects(
    rng: np.random.Generator,
    camera: Camera,
    count: int,
    radii: tuple[float, ...],
    shapes: tuple[int, ...] = (CUBE, SPHERE, CYLINDER),
) -> tuple[Solids, np.ndarray] | None:
    """Objects inside the picture with room between them, and their sizes; None where there was no room."""
    shape = np.asarray(shapes)[rng.integers(len(shapes), size=count)]
    sizes = rng.integers(len(radii), size=count)
    radius = np.asarray(radii)[sizes]
    # Rounded, so that the last bit of a platform's libm cannot change a picture.
    turn = rng.integers(360, size=count) * (np.pi / 180)
    cos, sin = np.round(np.cos(turn), 6), np.round(np.sin(turn), 6)
    height = centre_height(shape, radius)
    places = np.zeros((count, 2))
    for k in range(count):
        for _ in range(50):
            x, y = rng.uniform(-3, 3, 2)
            gap = places[:k] - np.asarray([x, y])
            room = radius[:k] + radius[k] + 0.25
            column, row, _ = camera.project(x, y, float(height[k]))
            inside = 0.06 < column < 0.94 and 0.06 < row < 0.94
            if inside and bool(((gap * gap).sum(axis=1) > room * room).all()):
                places[k] = x, y
                break
        else:
            return None
    return Solids(shape, places[:, 0], places[:, 1], height, radius, cos, sin), sizes


def _surface(rng: np.random.Generator, textured: str | None, colors: np.ndarray, metal: np.ndarray) -> Surface:
    rgb = RGB[colors] ** 2  # light, of which the picture shows the root
    if textured is None:
        return Surface(rgb, metal, None, None)
    materials = [random_material(rng) for _ in colors]
    ground = random_material(rng)
    if textured == "camo":
        materials = [ground for _ in colors]
    if textured == "grassbg":
        shades = np.asarray([0.10, 0.25, 0.04]), np.asarray([0.25, 0.45, 0.10])
        ground = Material("noise", 4.0, *shades, ground.offset)
    return Surface(rgb, metal, None if textured == "vbg" else materials, None if textured == "pbg" else ground)


def _albedo(solids: Solids, hits: Hits, surface: Surface) -> list[np.ndarray]:
    """Colour of the surface at every hit, three planes."""
    floor = np.asarray([0.40, 0.395, 0.385]) if surface.floor is None else surface.floor
    table = np.concatenate([floor[None], surface.rgb]).astype(np.float32)
    colour = [table[:, i][hits.label] for i in range(3)]
    textured = [(0, surface.ground)] if surface.ground is not None else []
    textured += list(enumerate(surface.materials or [], 1))
    for label, material in textured:
        where = np.flatnonzero(hits.label == label)
        x, y, z = (plane.ravel()[where] for plane in hits.point)
        if label:
            k = label - 1
            cos, sin = np.float32(solids.cos[k]), np.float32(solids.sin[k])
            x, y, z = x - np.float32(solids.x[k]), y - np.float32(solids.y[k]), z - np.float32(solids.z[k])
            x, y = cos * x + sin * y, cos * y - sin * x
        for plane, values in zip(colour, material.colour(x, y, z), strict=True):
            plane.ravel()[where] = values
    return colour


def shade(solids: Solids, hits: Hits, surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light that reaches the camera: a lamp with soft shadows, a weaker one without, ambient light, gloss."""
    n, d = hits.normal, hits.ray
    soft = np.asarray(_SOFT, np.float32)[:, :, None, None]
    lamp = (_LIGHT[0] + soft[:, 0], _LIGHT[1] + soft[:, 1], _LIGHT[2])
    to = [lamp[i] - hits.point[i] for i in range(3)]
    length = 1 / np.sqrt(to[0] * to[0] + to[1] * to[1] + to[2] * to[2])
    light = (to[0] * length, to[1] * length, to[2] * length)
    lit = np.where(shadows(solids, hits, light), np.float32(0), np.float32(1))
    key = np.maximum(n[0] * light[0] + n[1] * light[1] + n[2] * light[2], 0) * lit
    fill = np.maximum(n[0] * _FILL[0] + n[1] * _FILL[1] + n[2] * _FILL[2], 0)
    # The direction in which the surface mirrors the ray.
    along = 2 * (n[0] * d[0] + n[1] * d[1] + n[2] * d[2])
    r = [d[i] - along * n[i] for i in range(3)]
    glint = np.maximum(r[0] * light[0] + r[1] * light[1] + r[2] * light[2], 0)
    for _ in range(3):
        glint = glint * glint
    sharp = glint * glint
    sharp = sharp * sharp
    metal = np.concatenate([[0], surface.metal]).astype(np.float32)[hits.label]
    solid = (hits.label > 0).astype(np.float32)
    # Metal shows its surroundings: a grey floor below, a bright room above, dark at the horizon.
    up = r[2]
    room = np.where(up < 0, np.float32(0.30), np.float32(0.12) + np.float32(0.9) * up * up)
    mat = np.float32(0.22) + np.float32(0.85) * key + np.float32(0.30) * fill
    shiny = np.float32(0.35) * mat + np.float32(1.1) * room
    tone = mat + metal * (shiny - mat)
    gloss = solid * lit * (metal * sharp * np.float32(1.2) + (1 - metal) * glint * np.float32(0.10))
    x, y, z = (tone * plane + gloss for plane in _albedo(solids, hits, surface))
    return x, y, z
