"""Reads the `args` file of a ConvSSM run: a pickled argparse.Namespace of plain values, and nothing else."""

import io
import pickle
from pathlib import Path
from typing import Any

from slotzoo.errors import WeightsError


MOST_BYTES = 1 << 20
MOST_VALUES = 10_000
DEEPEST = 20


class _Namespace:
    """Stands for argparse.Namespace: takes attributes, does nothing."""


class _NamespaceOnly(pickle.Unpickler):
    """Knows one name; every other one, and with it every way to run code, is refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("argparse", "Namespace"):
            return _Namespace
        raise WeightsError(
            f"it asks for {module_name}.{global_name}; only argparse.Namespace is read, so it was not "
            "written by ConvSSM or TECO, or somebody tampered with it."
        )

    def persistent_load(self, pid: Any) -> Any:
        raise WeightsError("it refers to objects outside of the file.")


def read_namespace(path: str | Path) -> dict[str, Any]:
    """The values of a pickled argparse.Namespace as a dictionary of plain values (lists, dicts, numbers, text).

    **Raises** `WeightsError` when the file names any class or function but that one, or holds anything else.
    """
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise WeightsError(f"'{path}' is larger than a run's arguments can be ({path.stat().st_size} bytes).")
    try:
        value = _NamespaceOnly(io.BytesIO(path.read_bytes())).load()
        if not isinstance(value, _Namespace):
            raise WeightsError(f"it holds a {type(value).__name__}, not an argparse.Namespace.")
        return _Plain().of(vars(value), 0)
    except WeightsError as error:
        raise WeightsError(f"'{path}' cannot be read as a run's arguments: {error}") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise WeightsError(f"'{path}' is not a pickled argparse.Namespace ({type(error).__name__}).") from error


class _Plain:
    """Copies plain values; shared references cannot blow up, as every value counts."""

    def __init__(self) -> None:
        self.count = 0

    def of(self, value: Any, depth: int) -> Any:
        self.count += 1
        if depth > DEEPEST or self.count > MOST_VALUES:
            raise WeightsError("it is nested too deeply or holds too many values.")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in (list, tuple):
            return [self.of(item, depth + 1) for item in value]
        if isinstance(value, _Namespace):
            value = vars(value)
        if type(value) is dict:
            if not all(type(key) is str for key in value):
                raise WeightsError("it holds a dictionary whose keys are not text.")
            return {key: self.of(item, depth + 1) for key, item in value.items()}
        raise WeightsError(f"it holds a {type(value).__name__}.")
