"""Random mazes and an agent that walks them with the actions of DeepMind Lab's navigation set.

A maze of `cells` x `cells` lies on a grid of side `2 cells + 1`: cell (row, column) is grid square
(2 row + 1, 2 column + 1), walls are squares of the same size. Lengths are in grid squares.
"""

import math
from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from slotzoo.data.synthetic.textures import SKIES, styles
from slotzoo.errors import ConfigError


# The data has six action ids (the models' `action_dim`); its agent turns and walks, so the others never occur.
FORWARD, LEFT, RIGHT, BACK, STRAFE_LEFT, STRAFE_RIGHT = range(6)
ACTIONS = 6
HEADINGS = 24  # a turn is 15 degrees
STEP = 0.2
Layout = Literal["backtracker", "labmaze", "rooms", "field"]
_REACHED = 0.3
_MARGIN = 0.22  # how near the agent's eye comes to a wall
# Rounded, so that the last bit of a platform's libm cannot change a video.
COS = np.round(np.cos(np.arange(HEADINGS) * (2 * np.pi / HEADINGS)), 6)
SIN = np.round(np.sin(np.arange(HEADINGS) * (2 * np.pi / HEADINGS)), 6)


class Maze(NamedTuple):
    """`walls`: texture number + 1, 0 where one can walk; `floors`: texture number; `sky`: number."""

    walls: np.ndarray
    floors: np.ndarray
    sky: int


class Walk(NamedTuple):
    """`position` (time, 2) as x, y; `heading` (time,) in units of 15 degrees; `actions` (time,).

    Action t is the one that led to frame t, as the models use it: frame t and action t + 1 give frame t + 1.
    """

    position: np.ndarray
    heading: np.ndarray
    actions: np.ndarray


def _backtracker(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Depth-first maze, then some walls taken out so that there are loops to close."""
    side = 2 * cells + 1
    solid = np.ones((side, side), bool)
    row, column = (int(x) for x in rng.integers(cells, size=2))
    stack, seen = [(row, column)], {(row, column)}
    solid[2 * row + 1, 2 * column + 1] = False
    while stack:
        row, column = stack[-1]
        options = [
            (row + dr, column + dc, dr, dc)
            for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if 0 <= row + dr < cells and 0 <= column + dc < cells and (row + dr, column + dc) not in seen
        ]
        if not options:
            stack.pop()
            continue
        r, c, dr, dc = options[int(rng.integers(len(options)))]
        solid[2 * row + 1 + dr, 2 * column + 1 + dc] = False
        solid[2 * r + 1, 2 * c + 1] = False
        seen.add((r, c))
        stack.append((r, c))
    inner = [(r, c) for r in range(1, side - 1) for c in range(1, side - 1) if (r + c) % 2 and solid[r, c]]
    for i in rng.permutation(len(inner))[: cells - 1]:
        solid[inner[i]] = False
    return solid


def _labmaze(rng: np.random.Generator, cells: int) -> np.ndarray:
    """A layout of DeepMind Lab's own generator: rooms joined by corridors."""
    try:
        import labmaze
    except ImportError as error:
        raise ConfigError(
            "layout='labmaze' needs the package labmaze (Python below 3.13): pip install 'slotzoo[dmlab]', "
            "or use layout='backtracker'."
        ) from error
    side = 2 * cells + 1
    maze = labmaze.RandomMaze(height=side, width=side, max_rooms=4, random_seed=int(rng.integers(1, 2**31 - 1)))
    return np.asarray(maze.entity_layer) == "*"


def _rooms(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Rooms of three by three squares in a grid, a door between all neighbours that a maze of rooms joins."""
    count = max(1, cells // 2)
    joined = _backtracker(rng, count)
    side = 4 * count + 1
    solid = np.zeros((side, side), bool)
    solid[::4], solid[:, ::4] = True, True
    for row in range(1, 2 * count, 2):
        for column in range(2, 2 * count, 2):
            if not joined[row, column]:
                solid[2 * row, 2 * column] = False
            if not joined[column, row]:
                solid[2 * column, 2 * row] = False
    return solid


def _field(rng: np.random.Generator, cells: int) -> np.ndarray:
    """An open field with blocks here and there, so placed that none of it is shut in."""
    side = 2 * cells + 1
    solid = np.ones((side, side), bool)
    solid[1:-1, 1:-1] = False
    places = [(r, c) for r in range(2, side - 2, 2) for c in range(2, side - 2, 2)]
    for i in rng.permutation(len(places))[: len(places) // 2]:
        row, column = places[i]
        solid[row, column] = True
        if rng.random() < 0.5:  # two squares long: too short for all of them to close a row
            solid[row, column + 1 if rng.random() < 0.5 else column - 1] = True
    return solid


_LAYOUTS = {"backtracker": _backtracker, "labmaze": _labmaze, "rooms": _rooms, "field": _field}


def make_maze(rng: np.random.Generator, cells: int = 7, layout: Layout = "backtracker") -> Maze:
    """One maze in one of the five styles; wall and floor textures change between regions of 5 x 5 squares."""
    solid = _LAYOUTS[layout](rng, cells)
    walls, floors = styles()[int(rng.integers(len(styles())))]
    regions = len(solid) // 5 + 1
    index = np.arange(len(solid)) // 5
    wall = rng.choice(np.asarray(walls), (regions, regions))[index[:, None], index[None, :]]
    floor = rng.choice(np.asarray(floors), (regions, regions))[index[:, None], index[None, :]]
    return Maze(np.where(solid, wall + 1, 0).astype(np.int32), floor.astype(np.int32), int(rng.integers(SKIES)))


def _route(open_squares: np.ndarray, start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
    """Shortest way over open squares, without the start (breadth first)."""
    came: dict[tuple[int, int], tuple[int, int]] = {start: start}
    queue = deque([start])
    while queue and goal not in came:
        row, column = queue.popleft()
        for square in ((row, column + 1), (row + 1, column), (row, column - 1), (row - 1, column)):
            if square not in came and open_squares[square]:
                came[square] = (row, column)
                queue.append(square)
    way = []
    square = goal if goal in came else start
    while square != start:
        way.append(square)
        square = came[square]
    return way[::-1]


def _advance(open_squares: np.ndarray, x: float, y: float, heading: int) -> tuple[float, float]:
    """One step forward; walls stop the motion along the axis that they block, so that the agent slides."""
    dx, dy = STEP * COS[heading], STEP * SIN[heading]
    if open_squares[int(y), int(x + dx + math.copysign(_MARGIN, dx))]:
        x += dx
    if open_squares[int(y + dy + math.copysign(_MARGIN, dy)), int(x)]:
        y += dy
    return float(x), float(y)


def walk(rng: np.random.Generator, maze: Maze, length: int) -> Walk:
    """Walk to one random square after another by the shortest way, turning towards the next square first."""
    open_squares = maze.walls == 0
    squares = [(int(r), int(c)) for r, c in np.argwhere(open_squares)]
    square = squares[int(rng.integers(len(squares)))]
    x, y = square[1] + 0.5, square[0] + 0.5
    heading = int(rng.integers(HEADINGS))
    before = int(rng.integers(40))  # clips begin somewhere on the way, not at a square's centre
    way: list[tuple[int, int]] = []
    poses, actions = np.empty((length, 2)), np.empty(length, np.int32)
    headings = np.empty(length, np.int32)
    for t in range(-before, length):
        while way and math.hypot(way[0][1] + 0.5 - x, way[0][0] + 0.5 - y) < _REACHED:
            square = way.pop(0)
        while not way:
            way = _route(open_squares, square, squares[int(rng.integers(len(squares)))])
        angle = math.atan2(way[0][0] + 0.5 - y, way[0][1] + 0.5 - x)
        turn = (round(angle * HEADINGS / (2 * math.pi)) - heading + HEADINGS // 2) % HEADINGS - HEADINGS // 2
        if turn:
            action = RIGHT if turn > 0 else LEFT
            heading = (heading + (1 if turn > 0 else -1)) % HEADINGS
        else:
            action = FORWARD
            x, y = _advance(open_squares, x, y, heading)
        if t >= 0:
            poses[t], headings[t], actions[t] = (x, y), heading, action
    return Walk(poses, headings, actions)
