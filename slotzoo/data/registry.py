"""The front door to the data sets: `open_source(name, split, root=...)`.

Every name stands for a published data set and for an embedded double with the same element specification. With
a `root` the published one is read; without, the double is generated, and its `provenance` says so.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from slotzoo.data.cache import cached
from slotzoo.data.preparation import Progress
from slotzoo.data.sources.array_record import MANIFEST, ArrayRecordSource
from slotzoo.data.sources.folders import checked_root
from slotzoo.data.sources.teco import TecoSource
from slotzoo.data.sources.tfds import EncodedSource
from slotzoo.data.spec import Source
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.data.synthetic.tokens import MazeTokenSource
from slotzoo.errors import ConfigError, DataError, nearest


Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a name is opened: `reader(root, split)` or `double(split, **options)`; `options` are the double's."""

    reader: Callable[[pathlib.Path, Split], Source]
    double: Callable[..., Source]
    options: tuple[str, ...]
    title: str


_VIDEO = ("length", "size", "clips", "seed")
_ENTRIES = {
    "dmlab": Entry(
        TecoSource, MazeSource, (*_VIDEO, "depth", "layout"), "DMLab mazes (TECO): 64 x 64 video and actions"
    ),
    "dmlab_encoded": Entry(
        EncodedSource, MazeTokenSource, _VIDEO, "DMLab mazes (TECO) as 16 x 16 VQ-GAN tokens and actions"
    ),
}


def list_sources() -> tuple[str, ...]:
    return tuple(sorted(_ENTRIES))


def source_options(name: str) -> tuple[str, ...]:
    """The options that `open_source` takes for a data set, none for an unknown one."""
    return _ENTRIES[name].options if name in _ENTRIES else ()


def open_source(
    name: str,
    split: Split,
    *,
    root: str | pathlib.Path | None = None,
    cache: str | pathlib.Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Source:
    """Open one split of a data set.

    `root` is the published folder or one that `prepare` wrote (`<root>/<split>/manifest.json`). Without it the
    double is generated; the `options` are its own (`length`, `size`, `clips`, `seed`, ...) and it is kept in
    the folder `cache` if one is given, with `progress(done, total)` called while that is filled. An unknown
    name or option is a `ConfigError`, a root that does not hold the data set a `DataError`.
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
    if root is None:
        double = entry.double(split, **options)
        return double if cache is None else cached(double, cache, split, progress=progress)
    folder = checked_root(root, name)
    if not (folder / split / MANIFEST).is_file():
        return entry.reader(folder, split)
    source = ArrayRecordSource(folder / split)
    if source.name != name:
        raise DataError(f"{folder / split} holds the data set {source.name!r}, not {name!r}.")
    return source
