"""A ray caster in numpy: all frames of a clip at once, walls, floor and sky from one texture table.

Every column of a frame is one ray, followed from grid line to grid line (Amanatides and Woo, 1987). Textures
are sampled at the mip level that fits the distance, so that far walls do not flicker.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from slotzoo.data.synthetic.layout import COS, HEADINGS, SIN, Maze, Walk
from slotzoo.data.synthetic.textures import LEVELS, SKY_COLUMNS, SKY_ROWS, TEXELS, atlas


_FOG = 0.07  # brightness is 1 / (1 + fog * distance)
_SIDE = 0.82  # walls that face north or south are this much darker
_FINER = (2.0 ** (np.arange(len(LEVELS) - 1) - 0.5)).astype(np.float32)  # where each next level begins
_EYE = 0.5  # eye height; walls are 1 high. The field of view is 90 degrees.


class _Rows(NamedTuple):
    """What depends only on the size of the frame, for its rows and columns."""

    slope: np.ndarray  # (width,) sideways slope of a column's ray
    yaw: np.ndarray  # (width,) its angle from straight ahead
    row: np.ndarray  # (height,) rows below the horizon, in pixels
    ground: np.ndarray  # (below,) distance at which a row below the horizon meets the ground
    ground_level: np.ndarray
    ground_shade: np.ndarray
    sky_row: np.ndarray  # (above,)


def _level(texels: np.ndarray) -> np.ndarray:
    """Mip level for so many 32-pixel texels per pixel."""
    # Compared, not computed by log2: its last bit differs between processors, and videos must not.
    return np.searchsorted(_FINER, texels, side="right").astype(np.int32)


def _shade(distance: np.ndarray) -> np.ndarray:
    return (256 / (1 + _FOG * distance)).astype(np.uint16)


@functools.lru_cache(maxsize=8)
def _rows(height: int, width: int) -> _Rows:
    slope = ((np.arange(width) + 0.5) / width * 2 - 1).astype(np.float32)
    row = (np.arange(height) + 0.5 - height / 2).astype(np.float32)
    below = row[row > 0]
    ground = _EYE * (width / 2) / below
    # A row's footprint on the ground is wide across and wider along: their geometric mean sets the level.
    footprint = np.sqrt((64 * ground / width) * (32 * ground / below))
    above = -row[row <= 0]
    elevation = np.round(np.arctan2(above.astype(np.float64), width / 2), 6) / (np.pi / 4)
    sky_row = np.clip(((1 - elevation) * SKY_ROWS).astype(np.int32), 0, SKY_ROWS - 1)
    return _Rows(
        slope,
        np.round(np.arctan(slope.astype(np.float64)), 6),
        row,
        ground,
        _level(footprint),
        _shade(ground),
        sky_row,
    )


def _cast(walls: np.ndarray, x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray):
    """Distance along the viewing axis to the first wall, if it faces north or south, and its texture + 1."""
    side = walls.shape[1]
    solid = walls.ravel()
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    step_x, step_y = np.where(dx > 0, 1, -1).astype(np.int32), np.where(dy > 0, side, -side).astype(np.int32)
    gap_x, gap_y = 1 / np.maximum(np.abs(dx), 1e-6), 1 / np.maximum(np.abs(dy), 1e-6)
    next_x = np.where(dx > 0, column + 1 - x, x - column) * gap_x
    next_y = np.where(dy > 0, row + 1 - y, y - row) * gap_y
    square = row * side + column
    distance, facing = np.empty_like(dx), np.empty(dx.shape, bool)
    texture = np.empty(dx.shape, np.int32)
    # Only rays that have not met a wall yet are carried on; the border of the grid is wall, so all do.
    alive = np.arange(dx.size)
    while alive.size:
        across = next_x < next_y
        reached = np.where(across, next_x, next_y)
        square += np.where(across, step_x, step_y)
        next_x, next_y = next_x + gap_x * across, next_y + gap_y * ~across
        hit = solid[square]
        done = hit > 0
        where = alive[done]
        distance[where], facing[where], texture[where] = reached[done], ~across[done], hit[done]
        keep = ~done
        alive, square, next_x, next_y = alive[keep], square[keep], next_x[keep], next_y[keep]
        gap_x, gap_y, step_x, step_y = gap_x[keep], gap_y[keep], step_x[keep], step_y[keep]
    return distance, facing, texture


def render(
    maze: Maze, path: Walk, size: int, *, depth: bool = False
) -> tuple[UInt8[np.ndarray, "time size size 3"], Float32[np.ndarray, "time size size"] | None]:
    """Frames of a walk, and with `depth` the distance along the viewing axis in grid squares (sky: 0)."""
    table, rows = atlas(), _rows(size, size)
    time = len(path.heading)
    cos, sin = (f.astype(np.float32)[path.heading][:, None] for f in (COS, SIN))
    x, y = (np.repeat(path.position[:, i].astype(np.float32)[:, None], size, 1) for i in (0, 1))
    dx, dy = cos - sin * rows.slope[None, :], sin + cos * rows.slope[None, :]
    flat = _cast(maze.walls, x.ravel(), y.ravel(), dx.ravel(), dy.ravel())
    distance, facing, texture = (a.reshape(time, size) for a in flat)

    along = np.where(facing, x + distance * dx, y + distance * dy)
    along -= np.floor(along)
    level = _level(64 * distance / size)
    side = np.asarray(LEVELS, np.int32)[level]
    column = np.minimum((along * side).astype(np.int32), side - 1)
    start = (texture - 1) * TEXELS + table.level_offset(level) + column
    half = (size / 2 * _EYE) / np.maximum(distance, 1e-3)  # of the wall's height, in pixels

    scale = (side / (2 * half)).astype(np.float32)  # texels per row
    middle = (side / 2).astype(np.float32)
    texel = (rows.row[None, :, None] * scale[:, None, :] + middle[:, None, :]).astype(np.int32)
    wall = np.abs(rows.row)[None, :, None] < half[:, None, :].astype(np.float32)
    index = texel * side[:, None, :] + start[:, None, :]
    wall_shade = (_shade(distance) * np.where(facing, np.float32(_SIDE), np.float32(1))).astype(np.uint16)
    shade = np.broadcast_to(wall_shade[:, None, :], index.shape).copy()

    above = size - len(rows.ground)
    yaw = path.heading[:, None] / HEADINGS + rows.yaw[None, :] / (2 * np.pi)
    sky = (np.floor(yaw * SKY_COLUMNS).astype(np.int32)) % SKY_COLUMNS
    sky = sky + table.sky + maze.sky * SKY_ROWS * SKY_COLUMNS
    np.copyto(
        index[:, :above], sky[:, None, :] + (rows.sky_row * SKY_COLUMNS)[None, :, None], where=~wall[:, :above]
    )
    np.copyto(shade[:, :above], np.uint16(256), where=~wall[:, :above])
    np.copyto(index[:, above:], _ground(maze, rows, x, y, dx, dy), where=~wall[:, above:])
    np.copyto(shade[:, above:], rows.ground_shade[None, :, None], where=~wall[:, above:])

    words = table.words.take(index, mode="clip")
    frames = words.view(np.uint8).reshape(time, size, size, 4)[..., :3]
    frames = ((frames * shade[..., None]) >> np.uint16(8)).astype(np.uint8)
    if not depth:
        return frames, None
    far = np.concatenate([np.zeros(above), rows.ground]).astype(np.float32)
    return frames, np.where(wall, distance[:, None, :], far[None, :, None]).astype(np.float32)


def _ground(
    maze: Maze, rows: _Rows, x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray
) -> np.ndarray:
    """Texel of every pixel below the horizon as if no wall stood before it: (time, below, width)."""
    reach = rows.ground.astype(np.float32)[None, :, None]
    gx, gy = x[:, None, :] + reach * dx[:, None, :], y[:, None, :] + reach * dy[:, None, :]
    column, row = np.floor(gx), np.floor(gy)
    side = np.asarray(LEVELS, np.int32)[rows.ground_level][None, :, None]
    u, v = ((gx - column) * side).astype(np.int32), ((gy - row) * side).astype(np.int32)
    last = len(maze.floors) - 1
    square = np.clip(row, 0, last).astype(np.int32) * (last + 1) + np.clip(column, 0, last).astype(np.int32)
    offset = atlas().level_offset(rows.ground_level)[None, :, None]
    u, v = np.minimum(u, side - 1), np.minimum(v, side - 1)
    return maze.floors.ravel()[square] * TEXELS + offset + v * side + u
