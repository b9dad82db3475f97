"""Things that slide over a floor and push each other: discs with friction, and a turn about their axis.

Only exactly rounded operations, so that a motion is the same on every processor.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


_STEPS = 12  # of the simulation in a frame
GRAVITY = 9.81
RESTITUTION = 0.8


class Collision(NamedTuple):
    """Two bodies that met: when (in frames), where, how hard, and the direction from the first to the second."""

    first: int
    second: int
    frame: int
    impulse: float
    position: tuple[float, float]
    normal: tuple[float, float]


class Motion(NamedTuple):
    """Places and velocities (time, n, 2), in units and units a second, and turns (time, n) in radians."""

    position: np.ndarray
    velocity: np.ndarray
    turn: np.ndarray
    collisions: list[Collision]


def slide(
    position: Float[np.ndarray, "n 2"],
    velocity: Float[np.ndarray, "n 2"],
    turn: Float[np.ndarray, " n"],
    spin: Float[np.ndarray, " n"],
    radius: Float[np.ndarray, " n"],
    mass: Float[np.ndarray, " n"],
    friction: Float[np.ndarray, " n"],
    *,
    frames: int,
    fps: int,
) -> Motion:
    """Move for `frames` frames; the first is the given state. Spins (radians a second) stay as they are."""
    x, v = position.astype(np.float64), velocity.astype(np.float64)
    step = 1.0 / (fps * _STEPS)
    places, speeds, turns = (
        np.zeros((frames, *x.shape)),
        np.zeros((frames, *x.shape)),
        np.zeros((frames, len(x))),
    )
    first, second = np.triu_indices(len(x), 1)
    reach = radius[first] + radius[second]
    brake = friction * (GRAVITY * step)
    collisions: list[Collision] = []
    for frame in range(frames):
        places[frame], speeds[frame], turns[frame] = x, v, turn + spin * (frame / fps)
        for _ in range(_STEPS):
            speed = np.sqrt(v[:, 0] * v[:, 0] + v[:, 1] * v[:, 1])
            v = v * (np.maximum(speed - brake, 0) / np.maximum(speed, 1e-9))[:, None]
            x = x + v * step
            gap = x[second] - x[first]
            distance = np.sqrt(gap[:, 0] * gap[:, 0] + gap[:, 1] * gap[:, 1])
            for pair in np.flatnonzero(distance < reach):
                a, b = int(first[pair]), int(second[pair])
                n = gap[pair] / max(distance[pair], 1e-9)
                d = v[b] - v[a]
                closing = -(d[0] * n[0] + d[1] * n[1])
                if closing <= 0:
                    continue
                impulse = (1 + RESTITUTION) * closing / (1 / mass[a] + 1 / mass[b])
                v[a] -= n * (impulse / mass[a])
                v[b] += n * (impulse / mass[b])
                touch = x[a] + n * radius[a]
                where, way = (float(touch[0]), float(touch[1])), (float(n[0]), float(n[1]))
                collisions.append(Collision(a, b, frame, float(impulse), where, way))
    return Motion(places, speeds, turns, collisions)
