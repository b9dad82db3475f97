"""Moving-MNIST as the ConvSSM authors generate it: digits that move straight and bounce off the walls.

Every video is made anew from its index, so it can be as long as an experiment needs, and a longer one begins with
the shorter one's frames. Source: the generator published with Smith et al., "Convolutional State Space Models for
Long-Range Spatiotemporal Modeling" (NeurIPS 2023), which is that of Srivastava et al. (ICML 2015).
"""

import hashlib
import json
import math
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from slotzoo.data.spec import FieldSpec, Provenance, Record
from slotzoo.data.synthetic.digits import SIDE, digits, digits_hash, idx_of
from slotzoo.errors import ConfigError


VERSION = 1  # counts changes of what a given (seed, split, index) looks like
Split = Literal["train", "test"]
_PUBLISHED = 64  # side of the published frames, on which a digit has its own 28 pixels


def trajectory(
    uniforms: Float64[np.ndarray, "3"], length: int, *, canvas: int, step: float = 0.15
) -> Int64[np.ndarray, "time 2"]:
    """Top and left pixel of a digit in each frame.

    The three uniforms in [0, 1) are the start x and y in the unit box and the direction as a share of a full
    turn. Each frame is one step of `step` further, the first one included; a digit that would leave the box is
    put on its wall and that part of its velocity changes sign. `canvas` pixels are the side of the box.
    """
    x, y, turn = (float(u) for u in uniforms)
    vx, vy = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    path = np.empty((length, 2))
    for time in range(length):
        x, y = x + vx * step, y + vy * step
        if not 0 < x < 1:
            x, vx = min(max(x, 0.0), 1.0), -vx
        if not 0 < y < 1:
            y, vy = min(max(y, 0.0), 1.0), -vy
        path[time] = y, x
    return (canvas * path).astype(np.int64)


def draw_digits(
    images: UInt8[np.ndarray, "digit side side"], paths: Int64[np.ndarray, "digit time 2"], size: int
) -> UInt8[np.ndarray, "time size size 1"]:
    """Frames with each digit at its places; where digits meet, the brighter pixel is seen."""
    side = images.shape[-1]
    frames = np.zeros((paths.shape[1], size, size, 1), np.uint8)
    for image, path in zip(images, paths, strict=True):
        for frame, (top, left) in zip(frames[..., 0], path, strict=True):
            part = frame[top : top + side, left : left + side]
            np.maximum(part, image, out=part)
    return frames


class MovingMnistSource:
    """Clip `index` of a split is a function of (seed, split, index) alone: no state, order or process in it.

    `length` frames of `size` x `size` pixels with `digits` digits of `digit_size` pixels (default: as large a
    part of the frame as the published 28 of 64) that move `step` of their box a frame. `mnist` is a folder with
    the training images of MNIST (IDX), which the authors drew their digits from; without it, the 1,000 digits
    that ship with the package are taken, and `provenance` and `about` say so.
    """

    name = "moving_mnist"

    def __init__(
        self,
        split: Split,
        *,
        length: int = 300,
        size: int = 64,
        clips: int = 2000,
        seed: int = 0,
        digits: int = 2,
        digit_size: int | None = None,
        step: float = 0.15,
        mnist: str | None = None,
    ):
        digit_size = max(1, round(SIDE * size / _PUBLISHED)) if digit_size is None else digit_size
        for name, value in (("length", length), ("size", size), ("clips", clips), ("digits", digits)):
            if value < 1:
                raise ConfigError(f"Moving-MNIST needs {name} of at least 1, got {value}.")
        if not 1 <= digit_size <= size:
            raise ConfigError(f"Moving-MNIST needs a digit_size from 1 to size={size}, got {digit_size}.")
        if seed < 0:
            raise ConfigError(f"Moving-MNIST needs a seed of at least 0, got {seed}.")
        if not 0 < step <= 1:
            raise ConfigError(f"Moving-MNIST needs a step above 0 and at most 1, got {step}.")
        if mnist is not None:
            idx_of(mnist)  # said now, not at the first clip
        self.split: Split = split
        self.length, self.size, self.clips, self.seed = length, size, clips, seed
        self.digits, self.digit_size, self.step, self.mnist = digits, digit_size, step, mnist
        self.options = {"size": size, "digits": digits, "digit_size": digit_size, "step": step}
        self.provenance: Provenance = "embedded double" if mnist is None else "real"

    def __repr__(self) -> str:
        options = f"length={self.length}, size={self.size}, clips={self.clips}, seed={self.seed}"
        return (
            f"MovingMnistSource({self.split!r}, {options}, digits={self.digits}, digit_size={self.digit_size}, "
            f"step={self.step})"
        )

    @property
    def about(self) -> str:
        """Where the digits come from, for logs and cards."""
        count = len(digits(self.mnist))
        origin = "that ship with slotzoo" if self.mnist is None else f"of {self.mnist}"
        return f"generated as the authors do, from the {count:,} MNIST digits {origin}"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return moving_mnist_spec(self.size)

    @property
    def fingerprint(self) -> str:
        identity = json.dumps([VERSION, repr(self), digits_hash(self.mnist)])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self.length)

    def frames(self, index: int) -> int:
        return self.length

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip: only these are drawn."""
        if not 0 <= index < self.clips:
            raise IndexError(f"clip {index} of {self.clips}")
        rng = np.random.default_rng([self.seed, {"train": 0, "test": 1}[self.split], index])
        images = digits(self.mnist, self.digit_size)
        chosen = images[rng.integers(len(images), size=self.digits)]
        canvas, stop = self.size - self.digit_size, min(start + length, self.length)
        starts = rng.random((self.digits, 3))
        paths = np.stack([trajectory(u, stop, canvas=canvas, step=self.step)[start:] for u in starts])
        return {"video": draw_digits(chosen, paths, self.size)}

    def close(self) -> None:
        """Nothing is held open."""


def moving_mnist_spec(size: int | None = 64) -> dict[str, FieldSpec]:
    """Fields of a Moving-MNIST record, generated or published."""
    return {"video": FieldSpec((None, size, size, 1), "uint8", 0, 255, "grey frames, 0 to 255")}
