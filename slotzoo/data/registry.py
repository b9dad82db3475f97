"""The front door to the data sets: `open_source(name, split, root=...)`.

Every name stands for a published data set and for an embedded double with the same element specification. With
a `root` the published one is read; without, the double is generated, and its `provenance` says so.
"""

import pathlib
from typing import Any, Literal

from slotzoo.data.cache import cached
from slotzoo.data.entries import Entry, check_option
from slotzoo.data.image_sets import IMAGE_SETS
from slotzoo.data.preparation import Progress
from slotzoo.data.reasoning_sets import REASONING_SETS
from slotzoo.data.sources.array_record import MANIFEST, ArrayRecordSource
from slotzoo.data.sources.folders import checked_root
from slotzoo.data.spec import Source
from slotzoo.data.tracking_sets import TRACKING_SETS
from slotzoo.data.video_sets import VIDEO_SETS
from slotzoo.errors import ConfigError, DataError, nearest


Split = Literal["train", "val", "test"]


_ENTRIES: dict[str, Entry] = {
    **VIDEO_SETS,
    **IMAGE_SETS,
    **REASONING_SETS,
    **TRACKING_SETS,
}


def list_sources() -> tuple[str, ...]:
    return tuple(sorted(_ENTRIES))


def source_options(name: str) -> tuple[str, ...]:
    """The options that `open_source` takes for a data set, none for an unknown one."""
    if name not in _ENTRIES:
        return ()
    entry = _ENTRIES[name]
    asked = (*entry.options, *entry.reader_options, *entry.view_options)
    return tuple(option for option in dict.fromkeys(asked) if option != "cache")


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

    `root` is the published folder (or file), or one that `prepare` wrote (`<root>/<split>/manifest.json`).
    Without it the double is generated and kept in the folder `cache` if one is given, with `progress(done,
    total)` called while that is filled. `options` are those of `source_options(name)`: some (`clips`, `seed`)
    are the double's alone, some (`crop`, `antialias`) the reader's; the other one leaves them unused. An
    unknown name, split or option is a `ConfigError`, a root that does not hold the data set a `DataError`.
    """
    if name not in _ENTRIES:
        raise ConfigError(
            f"No data set {name!r}; known are {', '.join(list_sources())}.{nearest(name, list_sources())}"
        )
    entry, known = _ENTRIES[name], source_options(name)
    if split not in entry.splits:
        raise ConfigError(f"Data set {name!r} has no split {split!r}; it has {', '.join(entry.splits)}.")
    for option in options:
        if option not in known:
            raise ConfigError(
                f"Data set {name!r} has no option {option!r}; it takes {', '.join(known)}."
                f"{nearest(option, known)}"
            )
        options[option] = check_option(name, option, options[option], entry)
    source = _opened(name, split, root, cache, progress, options)
    return source if entry.view is None else entry.view(source, **_taken(options, entry.view_options))


def _taken(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of `names`; one that is None is left at its default."""
    return {name: value for name, value in options.items() if name in names and value is not None}


def _opened(
    name: str,
    split: Split,
    root: str | pathlib.Path | None,
    cache: str | pathlib.Path | None,
    progress: Progress | None,
    options: dict[str, Any],
) -> Source:
    entry = _ENTRIES[name]
    if root is None:
        double = entry.double(split, **_taken(options, entry.options))
        return double if cache is None else cached(double, cache, split, progress=progress)
    folder = checked_root(root, name, file=bool(entry.reader_options))
    taken = _taken({**options, "cache": cache}, entry.reader_options)
    if not (folder / split / MANIFEST).is_file():
        return entry.reader(folder, split, **taken)
    source = ArrayRecordSource(folder / split)
    if source.name != name:
        raise DataError(f"{folder / split} holds the data set {source.name!r}, not {name!r}.")
    # Of those that a view takes, any will do.
    source.check_options({o: value for o, value in options.items() if o not in entry.view_options})
    return source
