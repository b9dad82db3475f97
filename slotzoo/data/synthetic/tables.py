"""Doubles of RAVENS and Sketchy: blocks on a table, seen from above."""

import dataclasses

import numpy as np

from slotzoo.data.spec import FieldSpec, Record
from slotzoo.data.synthetic.clevr import LEAST, RGB, Surface, place_objects, shade
from slotzoo.data.synthetic.images import image_fields
from slotzoo.data.synthetic.raytrace import CUBE, CYLINDER, average, look_at, majority, trace
from slotzoo.data.synthetic.solid_textures import Material
from slotzoo.errors import ConfigError


_RADII = (0.35, 0.5)
_LABELS = 11  # as in RAVENS


@dataclasses.dataclass(frozen=True)
class TableScenes:
    """Between `min_objects` and `max_objects` coloured blocks on a table, from a camera that stands above it.

    With `masks` (RAVENS) on grey; without (Sketchy) on brown wood, as the robot sees it.
    """

    size: int = 64
    max_objects: int = 6
    min_objects: int = 3
    masks: bool = True

    def __post_init__(self):
        if self.size < 8:
            raise ConfigError(f"Pictures of tables need a size of at least 8 pixels, got {self.size}.")
        if not 1 <= self.min_objects <= self.max_objects <= _LABELS:
            raise ConfigError(
                "Tables have 1 to 11 objects, min_objects at most max_objects; got "
                f"{self.min_objects} and {self.max_objects}."
            )

    @property
    def version(self) -> int:
        return 1

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return image_fields(self.size, self.size, _LABELS if self.masks else None)

    def draw(self, rng: np.random.Generator) -> Record:
        while True:
            eye = np.asarray([4.0, -3.0, 10.0]) + rng.uniform(-0.2, 0.2, 3)
            camera = look_at(eye, np.zeros(3), left=-0.3, top=0.3, width=0.6)
            count = int(rng.integers(self.min_objects, self.max_objects + 1))
            placed = place_objects(rng, camera, count, _RADII, shapes=(CYLINDER, CUBE))
            if placed is None:
                continue
            hits = trace(placed[0], camera, self.size)
            mask = majority(hits.label)
            if np.bincount(mask.ravel(), minlength=count + 1)[1:].min() >= LEAST * mask.size:
                break
        rgb = RGB[rng.permutation(len(RGB))[np.arange(count) % len(RGB)]] ** 2
        wood = Material(
            "rings", 0.5, np.asarray([0.25, 0.16, 0.09]), np.asarray([0.36, 0.24, 0.13]), np.zeros(3)
        )
        surface = Surface(rgb, np.zeros(count), None, None if self.masks else wood)
        record: Record = {"image": average(shade(placed[0], hits, surface))}
        if self.masks:
            record["mask"] = mask
            record["visible"] = (np.arange(_LABELS) < count).astype(np.uint8)
        return record
