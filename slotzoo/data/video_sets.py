"""The video sets of the registry that ConvS5 and TECO are measured on: published files and doubles.

A record has `video` uint8 (time, size, size, channel) or `tokens` int32 (time, side, side), and `actions` int32
(time,) where the set has them.
"""

import functools
from typing import Literal

from slotzoo.data.entries import Entry
from slotzoo.data.sources.moving_mnist import open_moving_mnist
from slotzoo.data.sources.mp4 import Mp4Source
from slotzoo.data.sources.teco import TecoSource
from slotzoo.data.sources.tfds import EncodedSource
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.data.synthetic.moving_mnist import MovingMnistSource
from slotzoo.data.synthetic.tokens import MazeTokenSource
from slotzoo.data.synthetic.worlds import World, WorldSource


_VIDEO = ("length", "size", "clips", "seed")
_GENERATOR = (*_VIDEO, "digits", "digit_size", "step", "mnist")


def _encoded(name: World | Literal["dmlab"], title: str) -> Entry:
    return Entry(
        functools.partial(EncodedSource, name=f"{name}_encoded"),
        functools.partial(MazeTokenSource, world=name),
        _VIDEO,
        f"{title} as 16 x 16 VQ-GAN tokens and actions",
    )


def _world(name: World, title: str) -> Entry:
    return Entry(functools.partial(Mp4Source, name), functools.partial(WorldSource, name), _VIDEO, title)


VIDEO_SETS: dict[str, Entry] = {
    "dmlab": Entry(
        TecoSource, MazeSource, (*_VIDEO, "depth", "layout"), "DMLab mazes (TECO): 64 x 64 video and actions"
    ),
    "dmlab_encoded": _encoded("dmlab", "DMLab mazes (TECO)"),
    "minecraft": _world("minecraft", "Minecraft (TECO): 128 x 128 video and actions"),
    "minecraft_encoded": _encoded("minecraft", "Minecraft (TECO)"),
    "habitat": _world("habitat", "Habitat (TECO): 128 x 128 video and actions"),
    "habitat_encoded": _encoded("habitat", "Habitat (TECO)"),
    "moving_mnist": Entry(
        open_moving_mnist,
        MovingMnistSource,
        _GENERATOR,
        "Moving-MNIST (ConvSSM): 64 x 64 grey video of two digits",
        reader_options=_GENERATOR,
    ),
}
