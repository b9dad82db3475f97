"""Walks the recorded cases of the seeds and hands each to the checker that was registered for it.

    # tests/parity/convssm/ssm.py
    @checks("ssm_*.npz")
    def check_layer(case):
        case.compare(layer(case.inputs["us"]), "ys", rtol=1e-5)

The folder of a checker is that of its module, so seeds do not see each other's patterns. A case is an `.npz`
file, a checkpoint file, or the folder of a checkpoint: inside `native_ckpt`, or named `native_ckpt_*` or
`native_checkpoint*`. What is expected of a checkpoint lies in its folder as `expected.npz`, or beside it as
`<its name>_expected.npz`, a case of its own. A case fails that no checker matches, and one of whose arrays none
of its checkers has read, unless `unchecked` gives the reason:

    @checks("ssm_*.npz", unchecked={"out/seconds": "how long the seed took"})
"""

import dataclasses
import fnmatch
import functools
import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.tolerance import EPS, assert_close


Checker = Callable[["Case"], None]


class Check(NamedTuple):
    """A checker, the pattern of its cases, and why which of their arrays have none."""

    pattern: str
    run: Checker
    unchecked: Mapping[str, str]


_CHECKERS: dict[str, list[Check]] = {}
# Text beside the cases; everything else in a fixture folder is a case.
_NOT_CASES = ("README.md", "*.txt")
_CHECKPOINTS = ("native_ckpt_*", "native_checkpoint*")


class Recorded(Mapping[str, np.ndarray]):
    """The arrays whose key starts with `prefix`, by the rest of it. Adds the whole key of what is read to `read`."""

    def __init__(self, arrays: Mapping[str, np.ndarray], read: set[str], prefix: str = ""):
        self._arrays, self._read, self._prefix = arrays, read, prefix
        self._names = [key.removeprefix(prefix) for key in arrays if key.startswith(prefix)]

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[self._prefix + name]
        self._read.add(self._prefix + name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's would read it


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case: flat arrays by key, and the JSON that says how they were made."""

    path: Path
    stored: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    read: set[str] = dataclasses.field(default_factory=set)  # the keys of `stored` that were looked at

    def group(self, prefix: str) -> Recorded:
        """The arrays whose key starts with `prefix/`, by the rest of the key."""
        return Recorded(self.stored, self.read, f"{prefix}/")

    @functools.cached_property
    def arrays(self) -> Recorded:
        """All of them, by their whole keys."""
        return Recorded(self.stored, self.read)

    @property
    def checkpoint(self) -> Path:
        """The file or folder of which `<name>_expected.npz`, this case, says what is expected."""
        name = self.path.name.removesuffix("_expected.npz")
        (found,) = [path for path in self.path.parent.glob(f"{name}*") if path.name in (name, f"{name}.ckpt")]
        return found

    @property
    def config(self) -> dict[str, Any]:
        """The seed's configuration of this case."""
        return self.meta["config"]

    @functools.cached_property
    def params(self) -> Recorded:
        """The seed's parameters, by path."""
        return self.group("param")

    @functools.cached_property
    def inputs(self) -> Recorded:
        """What was fed in, the random draws included."""
        return self.group("in")

    @functools.cached_property
    def outputs(self) -> Recorded:
        """What came out."""
        return self.group("out")

    @functools.cached_property
    def grads(self) -> Recorded:
        """The gradient of the loss that `meta` states, by parameter path."""
        return self.group("grad")

    def compare(self, actual: Any, name: str, *, rtol: float) -> None:
        """Assert that `actual` equals `out/<name>`, relative to its largest entry."""
        assert_close(actual, self.outputs[name], rtol=rtol, what=f"{self.path.name}: {name}")

    def compare_grads(
        self,
        actual: Mapping[str, Any],
        *,
        rtol: float,
        zero: Collection[str] = (),
        loose: Mapping[str, float] | None = None,
    ) -> None:
        """Assert that `actual`, by the seed's parameter path, equals every recorded gradient and no other.

        What matches a pattern of `zero` is zero in theory and rounding noise on both sides: less than is left of the
        largest gradient. `loose` gives other tolerances to paths that match a pattern; a comment says why.
        """
        assert set(actual) == set(self.grads), f"{self.path.name}: {set(actual) ^ set(self.grads)}"
        noise = EPS["float32"] * max(float(np.abs(expected).max()) for expected in self.grads.values())
        for name, expected in self.grads.items():
            what = f"{self.path.name}: gradient of {name}"
            if any(fnmatch.fnmatch(name, pattern) for pattern in zero) or not expected.any():
                for found in (expected, np.asarray(actual[name])):
                    assert found.shape == expected.shape and np.abs(found).max() <= noise, f"{what} is not zero"
                continue
            own = [value for pattern, value in (loose or {}).items() if fnmatch.fnmatch(name, pattern)]
            assert_close(actual[name], expected, rtol=max([rtol, *own]), what=what)


def fixture_root() -> Path:
    """The folder with one sub-folder per seed: `$SLOTZOO_FIXTURES`, else the project's own selection."""
    return Path(os.environ.get("SLOTZOO_FIXTURES") or Path(__file__).parent.parent / "fixtures")


def folders(prefix: str) -> list[str]:
    """The sub-folders of `fixture_root()` whose name starts with `prefix`."""
    return sorted(path.name for path in fixture_root().glob(f"{prefix}*") if path.is_dir())


def load_case(path: Path) -> Case:
    """Read an `.npz` case, or the `expected.npz` of a folder; without either a case has no arrays."""
    file = path / "expected.npz" if path.is_dir() else path
    if file.suffix != ".npz" or not file.is_file():
        return Case(path, {}, {})
    with np.load(file, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return Case(path, arrays, json.loads(str(arrays.pop("meta", "{}"))))


def checks(*patterns: str, unchecked: Mapping[str, str] | None = None) -> Callable[[Checker], Checker]:
    """Register a checker for the cases of its folder whose relative path matches one of `patterns`.

    `unchecked` maps patterns of whole keys, such as `out/seconds`, to the reason why nothing looks at them.
    """

    def add(checker: Checker) -> Checker:
        folder = checker.__module__.split(".")[-2]
        _CHECKERS.setdefault(folder, []).extend(Check(each, checker, unchecked or {}) for each in patterns)
        return checker

    return add


def cases(folder: str) -> list[str]:
    """The relative paths of all cases under `<root>/<folder>`: files, and the folders of checkpoints.

    Such a folder is `native_ckpt/*`, `native_ckpt_*` or `native_checkpoint*`.
    """
    top = fixture_root() / folder
    found = set()
    for path in top.rglob("*"):
        parts = path.relative_to(top).parts
        if path.is_file() and not any(fnmatch.fnmatch(path.name, skip) for skip in _NOT_CASES):
            whole = any(fnmatch.fnmatch(parts[0], pattern) for pattern in _CHECKPOINTS)
            depth = 1 if whole else 2 if parts[0] == "native_ckpt" else len(parts)
            found.add("/".join(parts[:depth]))
    return sorted(found)


def run_case(folder: str, name: str) -> None:
    """Run the checkers of one case; fail when there is none, and when they leave an array unread without a reason."""
    package = importlib.import_module(f"tests.parity.{folder}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tests.parity.{folder}.{module.name}")
    matching = [check for check in _CHECKERS.get(folder, []) if fnmatch.fnmatch(name, check.pattern)]
    if not matching:
        pytest.fail(f"no checker in tests/parity/{folder} covers {name}")
    case = load_case(fixture_root() / folder / name)
    for check in matching:
        check.run(case)
    excused = [pattern for check in matching for pattern in check.unchecked]
    unread = sorted(set(case.stored) - case.read)
    left = [key for key in unread if not any(fnmatch.fnmatch(key, each) for each in excused)]
    if left:
        pytest.fail(
            f"{name}: nothing in tests/parity/{folder} reads {len(left)} arrays: {', '.join(left[:20])}"
        )
