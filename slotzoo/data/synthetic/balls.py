"""Balls that move straight, bounce off the walls and off each other: Blinking Color Balls, and plain bouncing balls.

Source: Jiang et al., "Slot State Space Models" (NeurIPS 2024), sections on long-context reasoning and on video
prediction, and the sample figure of its project page; the generators were not published. Measured there: a black
canvas of 64 x 64 pixels, four hard-edged discs of a radius of about 6 pixels that move 2 to 5 pixels a frame, the
five colours of `PALETTE`. Ours are the range of speeds, the collisions (elastic, equal masses) and the sizes of
the plain balls.
"""

import hashlib
import json
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.errors import ConfigError


VERSION = 1  # counts changes of what a given (seed, split, index) looks like
Split = Literal["train", "val", "test"]
Rule = Literal["earliest", "most_frequent"]
_SPLITS = {"train": 0, "test": 1, "val": 2}
_PUBLISHED = 64  # side of the published frames, on which a ball's radius and speed are given in pixels
RADIUS = 6.0
_SPEEDS = (2.0, 5.0)
_ROOM = 288.0  # for the sum of squared radii: eight balls of the published size, which always find their places
_STEPS = 4  # of the motion within a frame: a ball moves at most 1.25 pixels of 64 in one
# White, and what a ball blinks in: red, yellow, cyan, blue, magenta.
PALETTE = np.asarray(
    [(255, 255, 255), (217, 0, 0), (255, 255, 60), (140, 255, 255), (0, 0, 255), (217, 0, 250)], np.uint8
)


def simulate(
    rng: np.random.Generator, radii: Float64[np.ndarray, " ball"], frames: int
) -> Float64[np.ndarray, "frame ball 2"]:
    """Centres (x, y) of balls in each frame, on a canvas of 64 x 64.

    They start apart from each other, each with a speed of its own, and never leave the canvas. Two that touch and
    come closer exchange their velocities along the line between them.
    """
    place = _apart(rng, radii)
    turn = rng.integers(360, size=len(radii)) * (np.pi / 180)
    # Rounded, so that the last bit of a platform's libm cannot change a picture.
    direction = np.round(np.stack([np.cos(turn), np.sin(turn)], axis=1), 6)
    velocity = direction * rng.uniform(*_SPEEDS, (len(radii), 1)) / _STEPS
    low, high = radii[:, None], _PUBLISHED - radii[:, None]
    reach = np.square(radii[:, None] + radii[None, :])
    np.fill_diagonal(reach, -1.0)
    path = np.empty((frames, len(radii), 2))
    for frame in range(frames):
        path[frame] = place
        for _ in range(_STEPS):
            place = place + velocity
            outside = ((place < low) & (velocity < 0)) | ((place > high) & (velocity > 0))
            velocity = np.where(outside, -velocity, velocity)
            gap = place[None, :] - place[:, None]
            near = np.square(gap[..., 0]) + np.square(gap[..., 1]) < reach
            if near.any():
                velocity = _bounced(velocity, gap, near)
            place = np.clip(place, low, high)
    return path


def _apart(rng: np.random.Generator, radii: np.ndarray) -> np.ndarray:
    """Random places inside the walls, no two balls touching."""
    while True:
        place = np.zeros((len(radii), 2))
        for k, radius in enumerate(radii):
            for _ in range(50):
                place[k] = rng.uniform(radius, _PUBLISHED - radius, 2)
                gap = place[:k] - place[k]
                if (np.square(gap[:, 0]) + np.square(gap[:, 1]) > np.square(radii[:k] + radius)).all():
                    break
            else:
                break
        else:
            return place


def _bounced(velocity: np.ndarray, gap: np.ndarray, near: np.ndarray) -> np.ndarray:
    velocity = velocity.copy()
    for i, j in zip(*np.nonzero(np.triu(near)), strict=True):
        line = gap[i, j]
        length = line[0] * line[0] + line[1] * line[1]
        relative = velocity[j] - velocity[i]
        along = (relative[0] * line[0] + relative[1] * line[1]) / max(length, 1e-9)
        if along < 0:  # they come closer
            velocity[i] += along * line
            velocity[j] -= along * line
    return velocity


def discs(
    path: Float64[np.ndarray, "frame ball 2"], radii: Float64[np.ndarray, " ball"], size: int
) -> UInt8[np.ndarray, "frame size size"]:
    """Label maps: k + 1 inside ball k (a later one covers an earlier one), 0 elsewhere. No anti-aliasing."""
    grid = (np.arange(size) + 0.5) * (_PUBLISHED / size)
    labels = np.zeros((len(path), size, size), np.uint8)
    for k, radius in enumerate(radii):
        across = np.square(grid[None, None, :] - path[:, k, 0, None, None])
        down = np.square(grid[None, :, None] - path[:, k, 1, None, None])
        labels[across + down < radius * radius] = k + 1
    return labels


def final_colours(
    chosen: Int64[np.ndarray, " frame"], colours: Int64[np.ndarray, " frame"], balls: int, rule: Rule
) -> Int64[np.ndarray, " ball"]:
    """The colour that each ball has in the target, 0 for one that was never chosen.

    In frame t ball `chosen[t]` had colour `colours[t]`. `earliest`: its first one. `most_frequent`: the one it had
    most often, of several the one that it had first, as in all ties of the project page's figure.
    """
    found = np.zeros(balls, np.int64)
    for ball in range(balls):
        own = colours[chosen == ball]
        if not len(own):
            continue
        if rule == "earliest":
            found[ball] = own[0]
        else:
            counts = np.bincount(own)
            found[ball] = next(colour for colour in own if counts[colour] == counts.max())
    return found


class _Balls:
    """What both sources share: clip `index` of a split is a function of (seed, split, index) alone."""

    provenance: Provenance = "embedded double"

    def __init__(self, split: str, **numbers: int):
        for name, value in numbers.items():
            if value < (0 if name == "seed" else 1):
                raise ConfigError(f"Balls need a {name} of at least {0 if name == 'seed' else 1}, got {value}.")
        if split not in _SPLITS:
            raise ConfigError(f"Balls have no split {split!r}; they have {', '.join(_SPLITS)}.")
        self.split = split
        self._numbers = numbers
        self.options: dict[str, object] = {name: numbers[name] for name in ("size", "balls")}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.split!r}, {', '.join(f'{k}={v}' for k, v in self._said().items())})"
        )

    def _said(self) -> dict[str, object]:
        return dict(self._numbers)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([VERSION, repr(self)]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._numbers["clips"]

    def _rng(self, index: int) -> np.random.Generator:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return np.random.default_rng([self._numbers["seed"], _SPLITS[self.split], index])

    def close(self) -> None:
        """Nothing is held open."""


class BlinkingColorBalls(_Balls):
    """Which colour did each ball blink in? `length` context frames, then the target.

    In each context frame one ball, drawn anew each time, has a random colour; the others are white. In the target,
    the frame after them, each ball has the colour of `rule`: the `earliest` it had, or the `most_frequent`; white if
    it never had one. Published: 4 balls, 5 context frames (both rules) and 10 (`most_frequent`). `radius` of a ball
    in pixels of 64: in small pictures larger ones show their colour sooner in the error.
    """

    name = "blinking_color_balls"

    def __init__(
        self,
        split: Split,
        *,
        length: int = 5,
        size: int = 64,
        clips: int = 100000,
        seed: int = 0,
        balls: int = 4,
        radius: int = int(RADIUS),
        rule: str = "earliest",
    ):
        super().__init__(split, length=length, size=size, clips=clips, seed=seed, balls=balls, radius=radius)
        if rule not in get_args(Rule):
            raise ConfigError(
                f"Blinking Color Balls have no rule={rule}; there are {', '.join(get_args(Rule))}."
            )
        if balls * radius * radius > _ROOM:
            raise ConfigError(
                f"Blinking Color Balls: balls={balls} do not fit on the canvas with a radius={radius} of 64 pixels; "
                f"take fewer or smaller ones ({int(_ROOM // (radius * radius))} of this radius at most)."
            )
        self.rule: Rule = rule  # type: ignore[assignment]
        self.options |= {"length": length, "radius": radius, "rule": rule}
        self.length, self.size, self.balls, self.radius = length, size, balls, float(radius)

    def _said(self) -> dict[str, object]:
        return {**self._numbers, "rule": self.rule}

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return blinking_spec(self.length, self.size, self.balls)

    def __getitem__(self, index: int) -> Record:
        rng = self._rng(index)
        radii = np.full(self.balls, self.radius)
        labels = discs(simulate(rng, radii, self.length + 1), radii, self.size)
        chosen = rng.integers(self.balls, size=self.length)
        colours = rng.integers(1, len(PALETTE), size=self.length)
        final = final_colours(chosen, colours, self.balls, self.rule)
        # Colour of each ball in each frame; label 0 is black.
        shown = np.zeros((self.length + 1, self.balls), np.int64)
        shown[np.arange(self.length), chosen] = colours
        shown[-1] = final
        table = np.concatenate([np.zeros((self.length + 1, 1, 3), np.uint8), PALETTE[shown]], axis=1)
        frames = table[np.arange(self.length + 1)[:, None, None], labels]
        return {
            "video": frames[:-1],
            "target": frames[-1],
            "target_mask": labels[-1],
            "colors": final.astype(np.int32),
        }


def blinking_spec(length: int | None, size: int | None, balls: int | None = None) -> dict[str, FieldSpec]:
    """Fields of a record. A clip is a whole: cut, it would no longer answer its question."""
    field = lambda shape, dtype, high, meaning: FieldSpec(shape, dtype, 0, high, meaning, time=False)
    return {
        "video": field((length, size, size, 3), "uint8", 255, "RGB context frames, 0 to 255"),
        "target": field((size, size, 3), "uint8", 255, "the RGB frame after them, in the colours of the rule"),
        "target_mask": field((size, size), "uint8", balls, "label map of the target: 0 black, k + 1 ball k"),
        "colors": field(
            (balls,), "int32", len(PALETTE) - 1, "of each ball in the target: 0 white, then palette"
        ),
    }


class BouncingBalls(_Balls):
    """White balls of several sizes on black, `length` frames: what comes next? Label maps beside the video."""

    name = "bouncing_balls"
    _RADII = (4.0, 8.0)  # pixels of 64

    def __init__(
        self,
        split: Split,
        *,
        length: int = 30,
        size: int = 64,
        clips: int = 100000,
        seed: int = 0,
        balls: int = 4,
    ):
        super().__init__(split, length=length, size=size, clips=clips, seed=seed, balls=balls)
        if balls > 8:
            raise ConfigError(f"Bouncing balls: balls={balls} do not fit on the canvas; take 8 at most.")
        self.length, self.size, self.balls = length, size, balls

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return {
            "video": FieldSpec((None, self.size, self.size, 3), "uint8", 0, 255, "white balls on black"),
            "mask": FieldSpec((None, self.size, self.size), "uint8", 0, self.balls, "label map, 0 black"),
        }

    def frames(self, index: int) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self.length)

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip: only these are drawn."""
        rng = self._rng(index)
        radii = rng.uniform(*self._RADII, self.balls)
        path = simulate(rng, radii, min(start + length, self.length))[start:]
        labels = discs(path, radii, self.size)
        video = np.repeat(np.where(labels > 0, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)
        return {"video": video, "mask": labels}
