"""What takes long to find out about a set of files, kept beside the caches under a complete key."""

import hashlib
import json
import logging
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from slotzoo.errors import DataError
from slotzoo.files import replacing


log = logging.getLogger(__name__)
_VERSION = 1
Columns = dict[str, np.ndarray]


def identity_of(files: Iterable[pathlib.Path]) -> list[list[Any]]:
    """Path, size and time of change of every file: equal as long as nothing was written to them."""
    found = []
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
        found.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return found


def remembered(cache: str | pathlib.Path | None, key: Sequence[Any], make: Callable[[], Columns]) -> Columns:
    """`make()`, or what it returned when it was called before with an equal `key`.

    The key must name everything that the result depends on; its hash is stored with the result and compared. Without
    a `cache` folder, or where it cannot be written, the result is made every time.
    """
    if cache is None:
        return make()
    digest = hashlib.sha256(json.dumps([_VERSION, *key]).encode()).hexdigest()
    path = pathlib.Path(cache).expanduser() / "index" / f"{digest[:24]}.npz"
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
        if str(columns.pop("key")) == digest:
            return columns
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if not isinstance(error, FileNotFoundError):  # which it is the first time
            log.warning("%s cannot be used (%s); it is made again", path, error)
    columns = make()
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, key=np.asarray(digest), **columns)
    except OSError as error:
        log.warning("the index of %s is not kept: %s", key[0] if key else "the files", error)
    return columns
