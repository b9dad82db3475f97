"""What a name in the registry stands for: a reader of published files, and a double."""

import dataclasses
from collections.abc import Callable

from slotzoo.data.spec import Source
from slotzoo.errors import ConfigError


# What the options of data sets are, where a configuration can hold anything.
_FLAGS = (
    "antialias",
    "attributes",
    "depth",
    "flip",
    "flow",
    "grouped",
    "masks",
    "random_crop",
    "seed_counting",
    "seed_splits",
)
_NUMBERS = ("balls", "clips", "length", "max_objects", "min_objects", "periods", "seed", "size")
_WORDS = ("config", "crop", "depth_scale", "rule", "short", "test_split", "variant")
_OPTIONAL = ("config", "max_objects", "size")


def check_option(name: str, option: str, value: object) -> None:
    """Raise `ConfigError` where a common option of data set `name` is of another type."""
    if value is None and option in _OPTIONAL:
        return
    for options, kind, meaning in (
        (_FLAGS, bool, "true or false"),
        (_NUMBERS, int, "a whole number"),
        (_WORDS, str, "a word"),
    ):
        # A bool is an int in Python, but not a size.
        if option in options and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise ConfigError(f"Data set {name!r}: {option} must be {meaning}, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """How a name is opened: `reader(root, split, **reader_options)` or `double(split, **options)`.

    Of the options that a user gives, each of the two takes those it knows; `cache` among the reader's stands
    for the folder where indices are kept. A `view` makes of either, and of prepared records, what the data set gives:
    `view(source, **view_options)`.
    """

    reader: Callable[..., Source]
    double: Callable[..., Source]
    options: tuple[str, ...]
    title: str
    reader_options: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("train", "test")
    view: Callable[..., Source] | None = None
    view_options: tuple[str, ...] = ()
