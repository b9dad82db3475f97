"""Walks the recorded cases of the seeds and hands each to the checker that was registered for it.

    # tests/parity/convssm/ssm.py
    @checks("ssm_*.npz")
    def check_layer(case):
        case.compare(layer(case.inputs["us"]), "ys", rtol=1e-5)

The folder of a checker is that of its module, so seeds do not see each other's patterns. A case is an `.npz`
file or, inside `native_ckpt` or named `native_ckpt_*`, a folder with an `expected.npz`. A case that no checker
matches fails.
"""

import dataclasses
import fnmatch
import functools
import importlib
import json
import os
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tolerance import assert_close


Checker = Callable[["Case"], None]
_CHECKERS: dict[str, list[tuple[str, Checker]]] = {}
# Text beside the cases; everything else in a fixture folder is a case.
_NOT_CASES = ("README.md", "*.txt")


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case: flat arrays by key, and the JSON that says how they were made."""

    path: Path
    arrays: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose key starts with `prefix/`, by the rest of the key."""
        return {k[len(prefix) + 1 :]: v for k, v in self.arrays.items() if k.startswith(prefix + "/")}

    @property
    def config(self) -> dict[str, Any]:
        """The seed's configuration of this case."""
        return self.meta["config"]

    @functools.cached_property
    def params(self) -> dict[str, np.ndarray]:
        """The seed's parameters, by path."""
        return self.group("param")

    @functools.cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """What was fed in, the random draws included."""
        return self.group("in")

    @functools.cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        """What came out."""
        return self.group("out")

    @functools.cached_property
    def grads(self) -> dict[str, np.ndarray]:
        """The gradient of the loss that `meta` states, by parameter path."""
        return self.group("grad")

    def compare(self, actual: Any, name: str, *, rtol: float) -> None:
        """Assert that `actual` equals `out/<name>`, relative to its largest entry."""
        assert_close(actual, self.outputs[name], rtol=rtol, what=f"{self.path.name}: {name}")

    def compare_grads(
        self, actual: Mapping[str, Any], *, rtol: float, loose: Mapping[str, float] | None = None
    ) -> None:
        """Assert that `actual`, by the seed's parameter path, equals every recorded gradient and no other.

        `loose` gives another tolerance to paths that match a pattern; where it is used, a comment says why.
        """
        assert set(actual) == set(self.grads), f"{self.path.name}: {set(actual) ^ set(self.grads)}"
        # A bias in front of a norm has a gradient of zero, recorded as rounding noise: one epsilon of the
        # largest gradient is the least that can be told apart.
        noise = 1.2e-7 * max(float(np.abs(expected).max()) for expected in self.grads.values())
        for name, expected in self.grads.items():
            scale = float(np.abs(expected).max())
            own = [value for pattern, value in (loose or {}).items() if fnmatch.fnmatch(name, pattern)]
            bound = max([rtol, noise / max(scale, 1e-30), *own])
            assert_close(actual[name], expected, rtol=bound, what=f"{self.path.name}: gradient of {name}")


def fixture_root() -> Path:
    """The folder with one sub-folder per seed: `$SLOTZOO_FIXTURES`, else the project's own selection."""
    return Path(os.environ.get("SLOTZOO_FIXTURES") or Path(__file__).parent.parent / "fixtures")


def load_case(path: Path) -> Case:
    """Read an `.npz` case, or what is expected of a folder: `expected.npz` in it, or `<folder>_expected.npz` beside."""
    inside, beside = path / "expected.npz", path.with_name(f"{path.name}_expected.npz")
    file = path if path.is_file() else inside if inside.is_file() else beside
    with np.load(file, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return Case(path, arrays, json.loads(str(arrays.pop("meta", "{}"))))


def checks(*patterns: str) -> Callable[[Checker], Checker]:
    """Register a checker for the cases of its folder whose relative path matches one of `patterns`."""

    def add(checker: Checker) -> Checker:
        folder = checker.__module__.split(".")[-2]
        _CHECKERS.setdefault(folder, []).extend((pattern, checker) for pattern in patterns)
        return checker

    return add


def cases(folder: str) -> list[str]:
    """The relative paths of all cases under `<root>/<folder>`: files, and the folders of checkpoints.

    Such a folder is `native_ckpt/*`, `native_ckpt_*` or `native_checkpoint`.
    """
    top = fixture_root() / folder
    found = set()
    for path in top.rglob("*"):
        parts = path.relative_to(top).parts
        if path.is_file() and not any(fnmatch.fnmatch(path.name, skip) for skip in _NOT_CASES):
            whole = parts[0] == "native_checkpoint" or parts[0].startswith("native_ckpt_")
            depth = 1 if whole else 2 if parts[0] == "native_ckpt" else len(parts)
            found.add("/".join(parts[:depth]))
    return sorted(found)


def run_case(folder: str, name: str, later: Mapping[str, str]) -> None:
    """Run the checkers of one case; fail when there is none.

    `later` maps patterns of systems that are not part of the zoo yet to the reason, which the skip states.
    """
    package = importlib.import_module(f"tests.parity.{folder}")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tests.parity.{folder}.{module.name}")
    matching = [checker for pattern, checker in _CHECKERS.get(folder, []) if fnmatch.fnmatch(name, pattern)]
    if not matching:
        for pattern, reason in later.items():
            if fnmatch.fnmatch(name, pattern):
                pytest.skip(f"{name}: {reason}")
        pytest.fail(f"no checker in tests/parity/{folder} covers {name}")
    case = load_case(fixture_root() / folder / name)
    for checker in matching:
        checker(case)
