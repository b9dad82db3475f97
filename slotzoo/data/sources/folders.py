"""What lies in the folder that a user named: sentences about roots that are missing, empty or laid out
otherwise."""

import json
import pathlib

from slotzoo.data.spec import Provenance
from slotzoo.errors import DataError


PROVENANCE = "provenance.json"


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


def provenance_of(root: pathlib.Path) -> Provenance:
    """`real`, unless the folder is an export of an embedded double, which says so in a file of its own."""
    try:
        found = json.loads((root / PROVENANCE).read_text())["provenance"]
    except (OSError, ValueError, KeyError, TypeError):
        return "real"
    return "embedded double" if found == "embedded double" else "real"
