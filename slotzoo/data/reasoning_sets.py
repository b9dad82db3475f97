"""The sets of the registry that ask for memory: blinking balls, bouncing balls, and CATER's snitch."""

import pathlib
from typing import Any, NoReturn

from slotzoo.data.entries import Entry
from slotzoo.data.sources.cater import CaterSource
from slotzoo.data.synthetic.balls import BlinkingColorBalls, BouncingBalls
from slotzoo.data.synthetic.cater import CaterDouble
from slotzoo.errors import DataError


_BALLS = ("length", "size", "clips", "seed", "balls")
_SPLITS = ("train", "val", "test")


def _generated_only(root: pathlib.Path, split: str, **options: Any) -> NoReturn:
    """These sets were never published; a prepared folder is read before this is asked."""
    raise DataError(
        f"data.root={root}: its clips are generated, there is nothing published to read; leave data.root out, or give "
        f"a folder that experiments.prepare wrote ({split}/manifest.json)."
    )


REASONING_SETS: dict[str, Entry] = {
    "blinking_color_balls": Entry(
        _generated_only,
        BlinkingColorBalls,
        (*_BALLS, "radius", "rule"),
        "Blinking Color Balls (SlotSSM): which colour did each ball have first, or most often?",
        splits=_SPLITS,
    ),
    "bouncing_balls": Entry(
        _generated_only,
        BouncingBalls,
        _BALLS,
        "White balls that bounce (SlotSSM's video prediction), with masks",
        splits=_SPLITS,
    ),
    "cater": Entry(
        CaterSource,
        CaterDouble,
        ("length", "size", "clips", "seed", "max_objects", "periods"),
        "CATER, snitch localisation: 36 cells, and a ray-traced double",
        reader_options=("length", "size"),
        splits=_SPLITS,
    ),
}
