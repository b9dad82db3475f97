"""Textures that fill space, procedural stand-ins for the photographed materials of ClevrTex.

A texture gives every point of an object's own coordinates a mixture, 0 to 1, of two colours and a grain. Only
exactly rounded operations, as in the ray tracer.
"""

import functools
from typing import NamedTuple

import numpy as np


PATTERNS = ("checks", "stripes", "noise", "spots", "bricks", "rings")
_LATTICE = 16


class Material(NamedTuple):
    """`pattern` of PATTERNS at `scale` repeats per unit, between the colours `first` and `second` (3,)."""

    pattern: str
    scale: float
    first: np.ndarray
    second: np.ndarray
    offset: np.ndarray  # (3,) where in the pattern the object begins

    def colour(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
        """Red, green and blue, 0 to 1, at points of the object's coordinates."""
        u, v, w = (
            np.float32(self.scale) * axis + np.float32(shift)
            for axis, shift in zip((x, y, z), self.offset, strict=True)
        )
        mixture = _pattern(self.pattern, u, v, w)
        grain = np.float32(0.75) + np.float32(0.5) * _noise(3 * u, 3 * v, 3 * w)
        return tuple(
            np.clip((np.float32(a) + mixture * np.float32(b - a)) * grain, 0, 1)
            for a, b in zip(self.first, self.second, strict=True)
        )


def random_material(rng: np.random.Generator) -> Material:
    """Two colours that differ, muted as those of stone, cloth and wood are, a pattern and its size."""
    first = rng.random(3)
    second = (first + rng.uniform(0.25, 0.75, 3)) % 1.0
    first, second = (0.04 + 0.55 * c + 0.35 * (c[0] + c[1] + c[2]) / 3 for c in (first, second))
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    return Material(pattern, float(rng.uniform(1.2, 3.0)), first, second, rng.uniform(0, _LATTICE, 3))


@functools.cache
def _lattice() -> np.ndarray:
    return np.random.default_rng(0).random((_LATTICE, _LATTICE, _LATTICE)).astype(np.float32)


def _noise(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Random values on a periodic lattice, joined by smooth steps: 0 to 1."""
    table = _lattice().ravel()
    corners, steps = [], []
    for axis, stride in zip((x, y, z), (_LATTICE * _LATTICE, _LATTICE, 1), strict=True):
        low = np.floor(axis)
        f = axis - low
        steps.append(f * f * (3 - 2 * f))
        cell = low.astype(np.int32)
        corners.append(((cell & (_LATTICE - 1)) * stride, ((cell + 1) & (_LATTICE - 1)) * stride))
    planes = []
    for a in corners[0]:
        lines = []
        for b in corners[1]:
            p, q = (table[a + b + c] for c in corners[2])
            lines.append(p + steps[2] * (q - p))
        planes.append(lines[0] + steps[1] * (lines[1] - lines[0]))
    return planes[0] + steps[0] * (planes[1] - planes[0])


def _wave(x: np.ndarray) -> np.ndarray:
    """Period 1, up and down in straight lines between 0 and 1."""
    return np.abs(2 * (x - np.floor(x)) - 1)


def _step(x: np.ndarray) -> np.ndarray:
    """0 below 0.4, 1 above 0.6, a straight line between."""
    return np.clip((x - np.float32(0.4)) * 5, 0, 1)


def _pattern(name: str, u: np.ndarray, v: np.ndarray, w: np.ndarray) -> np.ndarray:
    if name == "checks":
        return ((np.floor(u) + np.floor(v) + np.floor(w)) % 2).astype(np.float32)
    if name == "stripes":
        return _step(_wave(u + np.float32(0.4) * v + np.float32(0.6) * w))
    if name == "noise":
        return _step(np.float32(0.65) * _noise(u, v, w) + np.float32(0.35) * _noise(2 * u, 2 * v, 2 * w))
    if name == "spots":
        a, b, c = (axis - np.floor(axis) - np.float32(0.5) for axis in (u, v, w))
        return (a * a + b * b + c * c < 0.16).astype(np.float32)
    if name == "bricks":
        row = np.floor(2 * w + 2 * v)
        along = u + np.float32(0.5) * (row - 2 * np.floor(row / 2))
        joint = (_wave(along) > 0.9) | (_wave(2 * w + 2 * v) > 0.85)
        return joint.astype(np.float32)
    bent = np.sqrt(u * u + v * v) + np.float32(0.4) * _noise(u, v, w)  # rings, as in wood
    return _step(_wave(2 * bent))
