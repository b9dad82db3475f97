"""The embedded maze videos: what they contain, what they depend on, what they refuse."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, strategies as st

from slotzoo.data.spec import Source, check_record
from slotzoo.data.synthetic.layout import COS, FORWARD, HEADINGS, LEFT, RIGHT, SIN, STEP, Walk, make_maze, walk
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.data.synthetic.raycast import render
from slotzoo.errors import ConfigError
from tests.arrays import same_record


def test_record_keeps_its_spec_and_source_its_protocol():
    source = MazeSource("train", length=5, size=16, clips=3, depth=True)
    assert isinstance(source, Source) and len(source) == 3
    record = source[2]
    check_record(record, source.spec, "clip 2")
    assert record["video"].shape == (5, 16, 16, 3) and record["depth"].shape == (5, 16, 16)
    with pytest.raises(IndexError):
        source[3]


def test_a_clip_depends_on_seed_split_and_index_only():
    make = lambda split="train", seed=0, clips=4: MazeSource(split, length=4, size=16, clips=clips, seed=seed)
    first = make()
    first[3]
    assert same_record(first[1], make(clips=9)[1])
    for other in (first[2], make("test")[1], make(seed=1)[1]):
        assert not np.array_equal(first[1]["video"], other["video"])


def test_a_clip_is_the_same_on_every_machine():
    record = MazeSource("train", length=6, size=32, clips=1, seed=3)[0]
    digest = hashlib.sha256(record["video"].tobytes() + record["actions"].tobytes()).hexdigest()
    # Changes only together with VERSION in slotzoo/data/synthetic/maze.py: caches are recognised by it.
    assert digest[:16] == "e05082fa1986e6e0"


def test_fingerprint_tells_data_sets_apart():
    options = [{}, {"seed": 1}, {"length": 5}, {"size": 32}, {"clips": 9}, {"depth": True}]
    prints = [MazeSource("train", **{"length": 4, "size": 16, "clips": 2, **o}).fingerprint for o in options]
    prints.append(MazeSource("test", length=4, size=16, clips=2).fingerprint)
    assert len(set(prints)) == len(prints)


@given(seed=st.integers(0, 10**6), cells=st.integers(2, 8))
def test_mazes_are_closed_and_connected(seed, cells):
    walls = make_maze(np.random.default_rng(seed), cells).walls
    solid = walls > 0
    assert solid.shape == (2 * cells + 1,) * 2
    assert solid[0].all() and solid[-1].all() and solid[:, 0].all() and solid[:, -1].all()
    reached = np.zeros_like(solid)
    reached[1, 1] = True
    for _ in range(solid.size):
        grown = reached.copy()
        for axis in (0, 1):
            grown |= np.roll(reached, 1, axis) | np.roll(reached, -1, axis)
        grown &= ~solid
        if (grown == reached).all():
            break
        reached = grown
    assert np.array_equal(reached, ~solid)


@given(seed=st.integers(0, 10**6))
def test_the_walk_obeys_its_actions_and_the_walls(seed):
    rng = np.random.default_rng(seed)
    maze = make_maze(rng)
    path = walk(rng, maze, 120)
    turn = np.select([path.actions == LEFT, path.actions == RIGHT], [-1, 1], 0)
    assert np.array_equal(np.diff(path.heading) % HEADINGS, turn[1:] % HEADINGS)
    assert set(np.unique(path.actions)) <= {FORWARD, LEFT, RIGHT}
    moved = np.diff(path.position, axis=0)
    ahead = np.stack([COS, SIN], 1)[path.heading[1:]] * STEP
    still = path.actions[1:] != FORWARD
    assert not moved[still].any()
    # Forward is one step ahead, except along an axis that a wall blocks.
    assert (np.isclose(moved, ahead) | np.isclose(moved, 0))[~still].all()
    for x, y in path.position:
        for dx in (-0.15, 0.15):
            for dy in (-0.15, 0.15):
                assert maze.walls[int(y + dy), int(x + dx)] == 0


def test_the_agent_comes_back_to_where_it_was():
    path = walk(np.random.default_rng(0), make_maze(np.random.default_rng(0)), 300)
    squares = [tuple(p) for p in path.position.astype(int)]
    visits = [s for i, s in enumerate(squares) if i == 0 or squares[i - 1] != s]
    assert len(set(visits)) >= 10 and len(visits) > len(set(visits))


def test_depth_of_a_wall_straight_ahead_and_turning_right_moves_the_picture_left():
    maze = make_maze(np.random.default_rng(1), cells=3)
    walls = np.zeros_like(maze.walls)
    walls[0], walls[-1], walls[:, 0], walls[:, -1] = 1, 2, 3, 4
    maze = maze._replace(walls=walls)
    path = Walk(np.full((2, 2), 3.5), np.array([0, 1], np.int32), np.array([0, RIGHT], np.int32))
    frames, depth = render(maze, path, 64, depth=True)
    assert depth is not None
    # The wall at x = 6 stands 2.5 ahead: every column that meets it has the same depth along the viewing axis.
    assert np.allclose(depth[0, 32, 4:60], 2.5)
    assert depth[0, 0, 32] == 0 and 0.5 < depth[0, 63, 32] < 0.52
    assert frames.shape == (2, 64, 64, 3)
    # The corner 45 degrees to the right stands at 30 after a turn of 15: column 32 + 32 tan(30) = 50.5.
    assert abs(int(np.argmax(depth[1, 32])) - 50) <= 1
    assert np.isclose(depth[1, 32].max(), 2.5 * np.sqrt(2) * np.cos(np.pi / 6), atol=0.1)


@pytest.mark.parametrize("option", ["length", "size", "clips"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ConfigError, match=f"{option} of at least 1"):
        MazeSource("train", **{option: 0})


def test_labmaze_layouts_are_an_option():
    pytest.importorskip("labmaze", reason="labmaze has no wheel for this Python")
    a = MazeSource("train", length=3, size=16, clips=1, layout="labmaze")
    assert same_record(a[0], MazeSource("train", length=3, size=16, clips=1, layout="labmaze")[0])
    assert not np.array_equal(a[0]["video"], MazeSource("train", length=3, size=16, clips=1)[0]["video"])


@given(size=st.integers(1, 40), length=st.integers(1, 4))
def test_any_size_and_length(size, length):
    record = MazeSource("test", length=length, size=size, clips=1)[0]
    assert record["video"].shape == (length, size, size, 3) and record["actions"].shape == (length,)
