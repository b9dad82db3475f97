"""Doubles of MOVi-A to E: ray-traced clips of cubes, spheres and cylinders that slide and collide on a floor.

Counts, sizes, colours, frame rate, camera and every feature follow Kubric's MOVi (Greff et al., CVPR 2022): A has
plain colours seen from one place, B any colour of objects and floor seen from anywhere, C textures instead, D up to 23
objects of which few move, E a camera that moves too. Motion is planar, there are no other shapes.
"""

import hashlib
import json
from typing import Literal

import numpy as np

from slotzoo.data.movi_layout import CHUNK, FPS, FRAMES, LAYOUTS, Kind, Layout, kept, record_spec
from slotzoo.data.spec import FieldSpec, Provenance, Record, slice_time
from slotzoo.data.synthetic.clevr import RGB, Surface
from slotzoo.data.synthetic.motion import slide
from slotzoo.data.synthetic.moving_scene import FOCAL, SENSOR, Scene, features, render
from slotzoo.data.synthetic.raytrace import CUBE, CYLINDER, SPHERE, Camera, centre_height, look_at
from slotzoo.data.synthetic.solid_textures import random_material
from slotzoo.errors import ConfigError


VERSION = 1  # counts changes of what a given (seed, split, index) looks like
Split = Literal["train", "val", "test"]
_SPLITS = {"train": 0, "test": 1, "val": 2}
_WIDTH = SENSOR / FOCAL  # of the picture at distance 1
_NEAR = np.asarray([7.48113, -6.50764, 5.34367])
_RADII = {"movi_a": (0.35, 0.7), "movi_b": (0.35, 0.75), "movi_c": (0.35, 0.75)}
_SMALL = (0.28, 0.5)  # where there are many


def draw_scene(
    rng: np.random.Generator, layout: Layout, frames: int, most: int, least: int, object_scale: float = 1.0
) -> Scene:
    """Between `least` and `most` objects, `object_scale` times MOVi's, that are in the picture when the clip begins."""
    while True:
        cameras = _cameras(rng, layout, frames)
        count = int(rng.integers(least, most + 1))
        shape = np.asarray((CUBE, SPHERE, CYLINDER))[rng.integers(3, size=count)]
        small, large = _RADII.get(layout.name, _SMALL)
        size = rng.integers(2, size=count)
        radius = np.where(size, large, small) if layout.name == "movi_a" else rng.uniform(small, large, count)
        radius = object_scale * radius
        height = centre_height(shape, radius)
        places = _places(rng, cameras[1], radius, height)
        if places is not None:
            break
    moving = np.ones(count, bool)
    if layout.moving is not None:
        low, high = layout.moving
        moving = np.arange(count) < int(rng.integers(low, high + 1))
    aim = rng.uniform(-1.5, 1.5, (count, 2)) - places
    distance = np.sqrt(aim[:, 0] * aim[:, 0] + aim[:, 1] * aim[:, 1])
    speed = rng.uniform(0.8, 3.5, count) * moving
    velocity = aim * (speed / np.maximum(distance, 1e-6))[:, None]
    turn = rng.integers(360, size=count) * (np.pi / 180)
    spin = rng.uniform(-2.0, 2.0, count) * moving
    volume = np.asarray([2.828, 4.189, 6.283])[shape] * radius * radius * radius
    friction = np.full(count, 0.05)
    # One frame before the clip: flow points there from its first frame.
    before = places - velocity / FPS
    motion = slide(before, velocity, turn, spin, radius, volume, friction, frames=frames + 2, fps=FPS)
    color = rng.integers(len(RGB), size=count)
    surface = _surface(rng, layout, color, rng.integers(2, size=count))
    return Scene(shape, radius, size, color, volume, friction, moving, surface, motion, cameras)


def _cameras(rng: np.random.Generator, layout: Layout, frames: int) -> list[Camera]:
    eye = _NEAR + rng.uniform(-0.25, 0.25, 3)
    if layout.camera != "near":
        angle = int(rng.integers(360)) * (np.pi / 180)
        height, far = rng.uniform(4.5, 7.0), rng.uniform(8.0, 9.5)
        eye = np.asarray([far * np.round(np.cos(angle), 6), far * np.round(np.sin(angle), 6), height])
    way = rng.uniform(-1.5, 1.5, 3) if layout.camera == "moving" else np.zeros(3)
    steps = (np.arange(-1, frames + 1) / max(1, frames - 1))[:, None]
    view = {"left": -_WIDTH / 2, "top": _WIDTH / 2, "width": _WIDTH}
    return [look_at(place, np.zeros(3), **view) for place in eye[None] + steps * way[None]]


def _places(
    rng: np.random.Generator, camera: Camera, radius: np.ndarray, height: np.ndarray
) -> np.ndarray | None:
    """Places (n, 2) inside the picture with room between them; None where there was no room."""
    places = np.zeros((len(radius), 2))
    for k in range(len(radius)):
        for _ in range(60):
            x, y = rng.uniform(-4, 4, 2)
            gap = places[:k] - np.asarray([x, y])
            room = radius[:k] + radius[k] + 0.15
            column, row, depth = camera.project(x, y, float(height[k]))
            inside = depth > 1 and 0.05 < column < 0.95 and 0.05 < row < 0.95
            if inside and bool(((gap * gap).sum(axis=1) > room * room).all()):
                places[k] = x, y
                break
        else:
            return None
    return places


def _surface(rng: np.random.Generator, layout: Layout, color: np.ndarray, metal: np.ndarray) -> Surface:
    if layout.textured:
        materials = [random_material(rng) for _ in color]
        ground = random_material(rng)
        return Surface(RGB[color] ** 2, metal * 0, materials, ground._replace(scale=0.5 * ground.scale))
    if layout.name == "movi_a":
        return Surface(RGB[color] ** 2, metal, None, None)
    hue = rng.random((len(color) + 1, 3))
    return Surface((0.05 + 0.9 * hue[1:]) ** 2, metal, None, None, (0.2 + 0.6 * hue[0]) ** 2)


class MoviScenes:
    """Clip `index` of a split is a function of (set, options, seed, split, index) alone: records of `record_spec`.

    `length` frames of `size` x `size` pixels with `min_objects` to `max_objects` objects (by default MOVi's);
    `object_scale` enlarges them, for small frames: on 32 pixels a small object of MOVi-A has two.
    """

    provenance: Provenance = "embedded double"
    chunk = CHUNK

    def __init__(
        self,
        name: Kind,
        split: Split,
        *,
        length: int = FRAMES,
        size: int = 64,
        clips: int = 1000,
        seed: int = 0,
        max_objects: int | None = None,
        min_objects: int | None = None,
        object_scale: float = 1.0,
    ):
        self.layout = LAYOUTS[name]
        least, most = self.layout.objects
        most = most if max_objects is None else min(most, max_objects)
        least = min(least, most) if min_objects is None else min_objects
        for option, value, low in (
            ("length", length, 1),
            ("size", size, 8),
            ("clips", clips, 1),
            ("seed", seed, 0),
        ):
            if value < low:
                raise ConfigError(f"The double of {name} needs {option} of at least {low}, got {value}.")
        if not 0.1 <= object_scale <= 3:
            raise ConfigError(f"The double of {name} needs object_scale from 0.1 to 3, got {object_scale}.")
        if not 1 <= least <= most:
            raise ConfigError(
                f"The double of {name} has 1 to {self.layout.objects[1]} objects, min_objects at most max_objects; got "
                f"{least} and {most}."
            )
        self.name: str = name
        self.split: Split = split
        self.length, self.size, self.clips, self.seed = length, size, clips, seed
        self.most, self.least, self.object_scale = most, least, object_scale
        # What a prepared copy must not be asked differently; of other objects or another size the view makes a part.
        self.options = {"min_objects": least, "object_scale": object_scale}

    def __repr__(self) -> str:
        options = f"length={self.length}, size={self.size}, clips={self.clips}, seed={self.seed}"
        objects = f"objects=({self.least}, {self.most}), object_scale={self.object_scale}"
        return f"MoviScenes({self.name!r}, {self.split!r}, {options}, {objects})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return record_spec(self.size)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([VERSION, repr(self)]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.clips

    def clip(self, index: int, *, full: bool = True) -> dict[str, np.ndarray]:
        """Every feature of MOVi; without `full` only those that a record is made of."""
        if not 0 <= index < self.clips:
            raise IndexError(f"clip {index} of {self.clips}")
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], index, list(LAYOUTS).index(self.name)])
        while True:
            scene = draw_scene(rng, self.layout, self.length, self.most, self.least, self.object_scale)
            rendered = render(scene, self.length, self.size, full=full)
            if rendered.label.any():
                return features(scene, rendered, self.layout, index)

    def __getitem__(self, index: int) -> Record:
        return kept(self.clip(index, full=False), f"{self!r}, clip {index}")

    def frames(self, index: int) -> int:
        return self.length

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length`: labels are sorted by the whole clip, so all of it is drawn."""
        return slice_time(self[index], self.spec, start, start + length)

    def close(self) -> None:
        """Nothing is held open."""
