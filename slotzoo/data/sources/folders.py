"""What lies in the folder that a user named: sentences about roots that are missing, empty or laid out
otherwise."""

import contextlib
import hashlib
import itertools
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import TypeVar

from slotzoo.data.spec import Provenance, Source
from slotzoo.errors import DataError


T = TypeVar("T")
R = TypeVar("R")
PROVENANCE = "provenance.json"
# What reading an npz file raises when it is cut, garbage, or compressed in a way that zipfile does not know. An OSError
# may have other reasons: `slotzoo.data.skipping.check_skippable` looks at its number.
UNREADABLE_NPZ = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError)


def short(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def checked_root(root: str | pathlib.Path, name: str, *, file: bool = False) -> pathlib.Path:
    """The folder that a user named, or with `file` the file; a `DataError` where there is none."""
    root = pathlib.Path(root).expanduser()
    wanted = "folder or file" if file else "folder"
    if not root.exists():
        raise DataError(
            f"data.root={root}: no such {wanted}; give the {wanted} of the published {name} data set."
        )
    if not file and not root.is_dir():
        raise DataError(f"data.root={root} is a file; give the folder of the published {name} data set.")
    return root


def contents(folder: pathlib.Path, most: int = 6) -> str:
    """A few of the names in a folder, to say what was found instead of what was expected."""
    names = sorted(
        path.name + ("/" if path.is_dir() else "") for path in folder.iterdir() if path.name[0] != "."
    )
    if not names:
        return "it is empty"
    return (
        "it holds " + ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
    )


def first_readable(clips: Iterable[T], read: Callable[[T], R], root: pathlib.Path) -> tuple[T, R]:
    """The first of twenty clips that `read` makes something of, and what: one bad file should not hide a whole set."""
    problem: DataError | None = None
    for clip in itertools.islice(clips, 20):
        try:
            return clip, read(clip)
        except DataError as error:
            problem = problem or error
    raise problem or DataError(f"{root}: no clip can be read.")


def provenance_of(*folders: pathlib.Path) -> Provenance:
    """`real`, unless one of the folders is an export of an embedded double, which says so in a file of its own."""
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if json.loads((folder / PROVENANCE).read_text())["provenance"] == "embedded double":
                return "embedded double"
    return "real"


def mark(source: Source, root: pathlib.Path) -> None:
    """Say in a folder what its files are: nobody should take an embedded double for the published set."""
    root.mkdir(parents=True, exist_ok=True)
    (root / PROVENANCE).write_text(json.dumps({"provenance": source.provenance, "source": repr(source)}))


def clip_files(
    root: str | pathlib.Path, split: str, suffix: str, title: str, layout: str
) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The root, and the files `<root>/<split>/*/*<suffix>` in the order of their paths.

    Files directly in the split's folder count too: some copies lack the level in between. `layout` says in the
    `DataError` of a folder without any how the data set is published.
    """
    root = checked_root(root, title)
    expected = f"expected {root}/{split}/*/*{suffix} ({layout}) or {root}/{split}/manifest.json (prepared)"
    if not (root / split).is_dir():
        raise DataError(f"data.root={root} has no folder {split!r}: {contents(root)}; {expected}.")
    found = [*(root / split).glob(f"*/*{suffix}"), *(root / split).glob(f"*{suffix}")]
    files = sorted(path for path in found if path.name[0] != ".")
    if not files:
        raise DataError(f"{root / split} has no {suffix[1:]} files: {contents(root / split)}; {expected}.")
    return root, files


def files_fingerprint(root: pathlib.Path, files: Iterable[pathlib.Path]) -> str:
    """Of the paths and sizes of the files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)}:{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
