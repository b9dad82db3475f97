"""The front door to the data sets: `open_source(name, split, root=...)`.

Every name stands for a published data set and for an embedded double with the same element specification. With
a `root` the published one is read; without, the double is generated, and its `provenance` says so.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from slotzoo.data.cache import cached
from slotzoo.data.spec import Source
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.errors import ConfigError, nearest


Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a name is opened: `double(split, **options)`; `options` names those that the double takes."""

    double: Callable[..., Source]
    options: tuple[str, ...]
    title: str


_MAZE = ("length", "size", "clips", "seed", "depth", "layout")
_ENTRIES = {"dmlab": Entry(MazeSource, _MAZE, "DMLab mazes (TECO), 64 x 64 video with actions")}


def list_sources() -> tuple[str, ...]:
    return tuple(sorted(_ENTRIES))


def open_source(
    name: str,
    split: Split,
    *,
    root: str | pathlib.Path | None = None,
    cache: str | pathlib.Path | None = None,
    **options: Any,
) -> Source:
    """Open one split of a data set.

    Options belong to the double (`length`, `size`, `clips`, `seed`, ...), which is kept in the folder `cache`
    if one is given. An unknown name or option is a `ConfigError`.
    """
    if name not in _ENTRIES:
        raise ConfigError(
            f"No data set {name!r}; known are {', '.join(list_sources())}.{nearest(name, list_sources())}"
        )
    entry = _ENTRIES[name]
    for option in options:
        if option not in entry.options:
            raise ConfigError(
                f"Data set {name!r} has no option {option!r}; it takes {', '.join(entry.options)}."
                f"{nearest(option, entry.options)}"
            )
    if root is not None:
        raise ConfigError(f"Data set {name!r} cannot be read from a folder ({root}); leave root empty.")
    double = entry.double(split, **options)
    return double if cache is None else cached(double, cache, split)
