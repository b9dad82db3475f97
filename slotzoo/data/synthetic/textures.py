"""The DeepMind Lab textures that ship with the package, as one lookup table with mip levels.

Licence and origin: `assets/NOTICE`.
"""

import functools
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np


_FILE = pathlib.Path(__file__).parent / "assets" / "maze_textures_32px.npz"
# Sides of the levels. The first is finer than the file: a smooth enlargement for walls nearer than a cell.
LEVELS = (64, 32, 16, 8, 4, 2)
_OFFSETS = tuple(int(x) for x in np.cumsum([0, *(side * side for side in LEVELS)]))
TEXELS = _OFFSETS[-1]  # of one texture, all levels
# (first wall, first floor, end) of the five styles in the file.
_BOUNDS = ((0, 8, 14), (14, 21, 26), (26, 33, 40), (40, 46, 52), (52, 56, 60))
SKY_ROWS, SKY_COLUMNS, SKIES = 32, 256, 3


class Atlas(NamedTuple):
    """Every texel as one little-endian 0x00BBGGRR word: by texture, level, row, column; then the skies."""

    words: np.ndarray
    sky: int  # where the skies begin

    def level_offset(self, level: np.ndarray) -> np.ndarray:
        return np.asarray(_OFFSETS, np.int32)[level]


def styles() -> tuple[tuple[range, range], ...]:
    """Texture numbers of the walls and of the floors of each style."""
    return tuple((range(a, b), range(b, c)) for a, b, c in _BOUNDS)


@functools.cache
def texture_hash() -> str:
    """SHA-256 of the texture file: part of the identity of every video made from it."""
    return hashlib.sha256(_FILE.read_bytes()).hexdigest()


def _enlarge(x: np.ndarray) -> np.ndarray:
    """Twice the side by linear interpolation that wraps round, as the textures tile."""
    for axis in (1, 2):
        before, after = np.roll(x, 1, axis), np.roll(x, -1, axis)
        pair = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    return x


def _sky(which: int) -> np.ndarray:
    """A panorama of one of three skies: a vertical gradient with soft clouds, (rows, columns, 3) in 0..255."""
    top, low = (
        ((70, 120, 200), (170, 205, 235)),
        ((60, 80, 130), (205, 165, 150)),
        ((110, 140, 165), (200, 205, 210)),
    )[which]
    elevation = np.linspace(1, 0, SKY_ROWS)[:, None]
    yaw = np.linspace(0, 2 * np.pi, SKY_COLUMNS, endpoint=False)[None, :]
    cloud = np.sin(3 * yaw + which) * np.sin(7 * elevation + 2 * which) + 0.6 * np.sin(5 * yaw + 9 * elevation)
    cloud = np.clip(cloud, 0, None)[..., None] * 18
    gradient = np.asarray(top) * elevation[..., None] + np.asarray(low) * (1 - elevation[..., None])
    return np.clip(np.round(gradient + cloud, 6), 0, 255)


@functools.cache
def atlas() -> Atlas:
    with np.load(_FILE) as file:
        base = file["x"].astype(np.float64)
    levels = [_enlarge(base), base]
    for side in LEVELS[2:]:
        last = levels[-1]
        levels.append(last.reshape(len(base), side, 2, side, 2, 3).mean((2, 4)))
    textures = np.concatenate([x.reshape(len(base), -1, 3) for x in levels], 1).reshape(-1, 3)
    skies = np.concatenate([_sky(i).reshape(-1, 3) for i in range(SKIES)])
    rgb = np.concatenate([textures, skies]).round().astype(np.uint32)
    words = rgb[:, 0] | rgb[:, 1] << np.uint32(8) | rgb[:, 2] << np.uint32(16)
    words.setflags(write=False)
    return Atlas(words.astype("<u4"), len(textures))
