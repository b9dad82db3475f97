"""What a name in the registry stands for: a reader of published files, and a double."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

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


_MEANINGS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    type(None): "null",
}


def check_option(name: str, option: str, value: object, entry: Entry) -> object:
    """The value, a whole number as a float where one is taken.

    Raise `ConfigError` where it is not of the type that common options have, or that those who take the option in
    data set `name` annotate it with.
    """
    if option in (*_FLAGS, *_NUMBERS, *_WORDS):
        kinds = [bool if option in _FLAGS else int if option in _NUMBERS else str]
        if option in _OPTIONAL and value is None:
            return value
    else:
        takers = (
            (entry.double, entry.options),
            (entry.reader, entry.reader_options),
            (entry.view, entry.view_options),
        )
        kinds = [kind for taker, taken in takers if option in taken for kind in _annotated(taker, option)]
    if kinds and not any(_fits(value, kind) for kind in kinds):
        expected = dict.fromkeys(meaning for kind in kinds for meaning in _meanings(kind))
        raise ConfigError(f"Data set {name!r}: {option} must be {' or '.join(expected)}, got {value!r}.")
    # beartype, as Python, takes no int for a float.
    whole = isinstance(value, int) and not isinstance(value, bool)
    as_float = whole and float in kinds and not any(_fits(value, kind) for kind in kinds if kind is not float)
    return float(value) if as_float else value  # type: ignore[arg-type]


def _annotated(taker: object, option: str) -> list[object]:
    """The alternatives that a function, or one that a partial calls or hands on, annotates an option with."""
    if isinstance(taker, functools.partial):
        return [kind for inner in (taker.func, *taker.args) for kind in _annotated(inner, option)]
    if not callable(taker):
        return []
    parameter = inspect.signature(taker).parameters.get(option)
    if parameter is None or parameter.annotation is inspect.Parameter.empty:
        return []
    kind = parameter.annotation
    kinds = list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]
    # Of others, what takes them judges.
    return kinds if all(kind in _MEANINGS or get_origin(kind) is Literal for kind in kinds) else []


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    # A bool is an int in Python, but not a size; a whole number is a number.
    return isinstance(value, (int, float) if kind is float else kind) and (
        kind is bool or not isinstance(value, bool)
    )


def _meanings(kind: object) -> list[str]:
    return [_MEANINGS[kind]] if kind in _MEANINGS else [str(choice) for choice in get_args(kind)]
