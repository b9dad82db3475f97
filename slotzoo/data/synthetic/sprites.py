"""Pictures of flat shapes, drawn pixel by pixel: tetrominoes and multi-dSprites.

Both follow the descriptions in the repository of Multi-Object Datasets (Kabra et al., 2019); its generating
code is not published.
"""

import dataclasses
import functools

import numpy as np

from slotzoo.data.resize import resize_nearest
from slotzoo.data.spec import FieldSpec, Record
from slotzoo.data.synthetic.images import image_fields
from slotzoo.errors import ConfigError


_CELL = 5  # pixels
_CANVAS = 35
_PIECES = 3
# O, T, S, Z, L and J in every orientation: 17. The two bars are what brings the fixed tetrominoes to 19.
_LETTERS = (
    ("11", "11"),
    ("111", "010"),
    ("011", "110"),
    ("110", "011"),
    ("100", "111"),
    ("001", "111"),
)
_COLORS = 255 * np.asarray(
    [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)], np.uint8
)  # red, green, blue, yellow, magenta, cyan


@functools.cache
def tetromino_shapes() -> tuple[np.ndarray, ...]:
    """The 17 shapes as boolean pictures with cells of 5 x 5 pixels."""
    found: dict[bytes, np.ndarray] = {}
    for rows in _LETTERS:
        cells = np.asarray([[c == "1" for c in row] for row in rows])
        for turns in range(4):
            turned = np.ascontiguousarray(np.rot90(cells, turns))
            found.setdefault(bytes(turned.shape) + turned.tobytes(), turned)
    return tuple(np.kron(cells, np.ones((_CELL, _CELL), bool)) for cells in found.values())


@dataclasses.dataclass(frozen=True)
class Tetrominoes:
    """Three tetrominoes of 17 shapes and 6 colours on black, none over another, 35 x 35 pixels.

    Another `size` resamples the nearest pixel, as the seed's reader does.
    """

    size: int = _CANVAS

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"Tetrominoes need a size of at least 1 pixel, got {self.size}.")

    @property
    def version(self) -> int:
        return 1

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return image_fields(self.size, self.size, _PIECES)

    def draw(self, rng: np.random.Generator) -> Record:
        shapes = tetromino_shapes()
        while True:
            mask = np.zeros((_CANVAS, _CANVAS), np.uint8)
            for label in range(1, _PIECES + 1):
                if not _place(rng, mask, shapes[int(rng.integers(len(shapes)))], label):
                    break
            else:
                break
        palette = np.zeros((_PIECES + 1, 3), np.uint8)
        palette[1:] = _COLORS[rng.integers(len(_COLORS), size=_PIECES)]
        mask = resize_nearest(mask, (self.size, self.size))
        visible = np.bincount(mask.ravel(), minlength=_PIECES + 1)[1:] > 0
        return {"image": palette[mask], "mask": mask, "visible": visible.astype(np.uint8)}


def _place(rng: np.random.Generator, mask: np.ndarray, shape: np.ndarray, label: int) -> bool:
    """Write `label` where a shape fits, at any pixel; False where ten attempts found no room."""
    height, width = shape.shape
    for _ in range(10):
        row, column = (int(rng.integers(_CANVAS + 1 - n)) for n in (height, width))
        window = mask[row : row + height, column : column + width]
        if not window[shape].any():
            window[shape] = label
            return True
    return False


# Fewest and most sprites of a picture; the published files have one entity more, the background.
_SPRITES: dict[str, tuple[int, int]] = {
    "colored_on_grayscale": (2, 5),
    "colored_on_colored": (1, 4),
    "binarized": (2, 3),
}
_ORIENTATIONS = 40
_POSITIONS = 32
_SCALES = 6


def sprite_count(variant: str) -> int:
    """Most sprites in a picture of multi-dSprites."""
    if variant not in _SPRITES:
        raise ConfigError(f"Multi-dSprites has no variant {variant!r}; it has {', '.join(_SPRITES)}.")
    return _SPRITES[variant][1]


@dataclasses.dataclass(frozen=True)
class MultiDSprites:
    """Squares, ellipses and hearts over one another, 64 x 64 pixels, with the factors of dSprites.

    `colored_on_grayscale`: 2 to 5 sprites of any colour on grey; `colored_on_colored`: 1 to 4 on any colour;
    `binarized`: 2 or 3 white ones on black.
    """

    size: int = 64
    variant: str = "colored_on_grayscale"

    def __post_init__(self):
        sprite_count(self.variant)
        if self.size < 8:
            raise ConfigError(f"Multi-dSprites needs a size of at least 8 pixels, got {self.size}.")

    @property
    def version(self) -> int:
        return 1

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return image_fields(self.size, self.size, sprite_count(self.variant))

    def draw(self, rng: np.random.Generator) -> Record:
        fewest, most = _SPRITES[self.variant]
        count = int(rng.integers(fewest, most + 1))
        mask = np.zeros((self.size, self.size), np.uint8)
        for label in range(1, count + 1):
            shape = int(rng.integers(3))
            scale = 0.5 + 0.5 * int(rng.integers(_SCALES)) / (_SCALES - 1)
            turn = int(rng.integers(_ORIENTATIONS))
            x, y = (int(i) / (_POSITIONS - 1) for i in rng.integers(_POSITIONS, size=2))
            _paint(mask, shape, scale, turn, x, y, label)
        palette = np.zeros((most + 1, 3), np.uint8)
        if self.variant == "binarized":
            palette[1:] = 255
        else:
            palette[1:] = rng.integers(256, size=(most, 3))
            palette[0] = rng.integers(256, size=3 if self.variant == "colored_on_colored" else 1)
        visible = np.bincount(mask.ravel(), minlength=most + 1)[1:] > 0
        return {"image": palette[mask], "mask": mask, "visible": visible.astype(np.uint8)}


def _paint(mask: np.ndarray, shape: int, scale: float, turn: int, x: float, y: float, label: int) -> None:
    """Write `label` over the pixels of a square, ellipse or heart. Its centre stays a quarter from the edge."""
    size = len(mask)
    # Rounded, so that the last bit of a platform's libm cannot change a picture.
    angle = 2 * np.pi * turn / _ORIENTATIONS
    cos, sin = np.round(np.cos(angle), 6), np.round(np.sin(angle), 6)
    grid = (np.arange(size) + 0.5) / size
    radius = 0.21 * scale
    u, v = (grid - (0.22 + 0.56 * x)) / radius, (grid - (0.22 + 0.56 * y)) / radius
    a = cos * u[None, :] + sin * v[:, None]
    b = cos * v[:, None] - sin * u[None, :]
    if shape == 0:
        inside = (np.abs(a) < 0.8) & (np.abs(b) < 0.8)
    elif shape == 1:
        inside = a * a + (1.6 * b) * (1.6 * b) < 1
    else:
        p, q = 1.25 * a, -1.25 * b + 0.12
        r = p * p + q * q - 1
        inside = r * r * r < p * p * q * q * q
    mask[inside] = label


_GRID = 14
_BOX_CELL = 3  # pixels
_BOX_GREY = 134


@dataclasses.dataclass(frozen=True)
class BoxWorld:
    """Boxes of two cells, a key and its lock, on a grid of 14 x 14 cells: 42 x 42 pixels, 2 to `max_objects` boxes.

    Another `size` resamples the nearest pixel, as the seed's reader does.
    """

    size: int = _GRID * _BOX_CELL
    max_objects: int = 5

    def __post_init__(self):
        if self.size < 1 or not 1 <= self.max_objects <= 9:
            raise ConfigError(
                f"BoxWorld needs a size of at least 1 pixel and 1 to 9 objects, got {self.size} and "
                f"{self.max_objects}."
            )

    @property
    def version(self) -> int:
        return 1

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return image_fields(self.size, self.size, self.max_objects)

    def draw(self, rng: np.random.Generator) -> Record:
        count = int(rng.integers(min(2, self.max_objects), self.max_objects + 1))
        mask, image = np.zeros((_GRID, _GRID), np.uint8), np.full((_GRID, _GRID, 3), _BOX_GREY, np.uint8)
        for label in range(1, count + 1):
            while True:
                row, column = int(rng.integers(_GRID)), int(rng.integers(_GRID - 1))
                # A free cell all around, so that neighbours are told apart.
                around = mask[max(0, row - 1) : row + 2, max(0, column - 1) : column + 3]
                if not around.any():
                    break
            mask[row, column : column + 2] = label
            image[row, column : column + 2] = rng.integers(256, size=(2, 3))
        grown = [np.repeat(np.repeat(x, _BOX_CELL, 0), _BOX_CELL, 1) for x in (image, mask)]
        image, mask = (resize_nearest(x, (self.size, self.size)) for x in grown)
        visible = (np.arange(self.max_objects) < count).astype(np.uint8)
        return {"image": np.ascontiguousarray(image), "mask": np.ascontiguousarray(mask), "visible": visible}
