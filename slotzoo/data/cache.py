"""Embedded doubles on disk: made once, then read."""

import logging
import pathlib

import numpy as np

from slotzoo.data.preparation import Progress, locked, prepare
from slotzoo.data.sources.array_record import MANIFEST, ArrayRecordSource
from slotzoo.data.spec import Source
from slotzoo.errors import DataError


log = logging.getLogger(__name__)


def cached(
    source: Source, cache: str | pathlib.Path, split: str, *, progress: Progress | None = None
) -> Source:
    """The same records from `<cache>/<name>-<split>-<fingerprint>`, written there first if they are not yet.

    The first record is made again and compared, so that a cache of an older generator is never taken for a new
    one. Where the cache cannot be written, a warning says so and the records are made anew each time.
    """
    folder = pathlib.Path(cache).expanduser() / f"{source.name}-{split}-{source.fingerprint}"
    try:
        if (folder / MANIFEST).exists():
            with locked(folder):  # another process may be making it again just now
                _clear_if_outdated(source, folder)
        return prepare(source, folder, progress=progress)
    except (DataError, OSError) as error:
        log.warning("the cache is not used, clips are made anew each time: %s", error)
        return source


def _clear_if_outdated(source: Source, folder: pathlib.Path) -> None:
    if _outdated(source, folder):
        log.warning("%s was written by another version of slotzoo; making it again", folder)
        (folder / MANIFEST).unlink()  # first: what is left without it is not taken for a whole
        for path in folder.glob("*.array_record"):
            path.unlink()


def _outdated(source: Source, folder: pathlib.Path) -> bool:
    """Whether the folder is complete but cannot be read, or does not begin as the source does."""
    if not (folder / MANIFEST).exists():
        return False
    try:
        stored = ArrayRecordSource(folder)
        made, read = source[0], stored[0]
        stored.close()
    except DataError:
        return True
    same = made.keys() == read.keys() and all(np.array_equal(made[name], read[name]) for name in made)
    return not same or len(source) != len(stored)
