"""What a name in the registry stands for: a reader of published files, and a double."""

import dataclasses
from collections.abc import Callable

from slotzoo.data.spec import Source


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a name is opened: `reader(root, split, **reader_options)` or `double(split, **options)`.

    Of the options that a user gives, each of the two takes those it knows; `cache` among the reader's stands
    for the folder where indices are kept.
    """

    reader: Callable[..., Source]
    double: Callable[..., Source]
    options: tuple[str, ...]
    title: str
    reader_options: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "test")
