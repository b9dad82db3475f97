"""What lies in the folder of fixtures and is not looked at fails: a folder, a file, an array."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity import harness
from tests.parity.harness import Case, Check, cases, fixture_root, folders, run_case


OWN = Path(harness.__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("folder", folders(""))
def test_every_folder_is_tested(folder):
    """By the module of its name; copies of one data set by the module of that."""
    name = next((name for name in ("movi", "clevrer") if folder.startswith(f"{name}_")), folder)
    assert importlib.util.find_spec(f"tests.parity.test_{name}"), f"no tests/parity/test_{name}.py for {folder}"
    assert cases(folder), f"{folder} is empty"


@pytest.mark.parametrize("folder", sorted(path.name for path in OWN.iterdir() if path.is_dir()))
def test_no_folder_is_missing(folder):
    """Wherever the fixtures are read from, what the project has of its own is there, too."""
    assert folder in folders(""), f"{fixture_root()} holds no {folder}"


def test_nothing_to_test_is_an_error(pytestconfig):
    assert pytestconfig.getini("empty_parameter_set_mark") == "fail_at_collect"


@pytest.fixture
def one_case(tmp_path, monkeypatch):
    """Writes `convssm/novel.npz`, all there is; its checkers are those given, its arrays those named."""
    (tmp_path / "convssm").mkdir()
    monkeypatch.setenv("SLOTZOO_FIXTURES", str(tmp_path))

    def write(*names, checkers):
        arrays: dict[str, Any] = dict.fromkeys(names, np.zeros(1))
        np.savez(tmp_path / "convssm" / "novel.npz", **arrays)
        monkeypatch.setitem(harness._CHECKERS, "convssm", checkers)
        assert cases("convssm") == ["novel.npz"]

    return write


def test_uncovered_file_fails(one_case):
    one_case("out/y", checkers=[])
    with pytest.raises(pytest.fail.Exception, match=r"no checker.*novel\.npz"):
        run_case("convssm", "novel.npz")


def test_array_that_nothing_reads_fails(one_case):
    def first(case: Case):
        case.compare(np.zeros(1), "y", rtol=0)
        assert set(case.group("out")) == set(case.outputs) and "z" not in case.grads  # not to look at them

    def second(case: Case):
        assert case.group("in/deep")["x"].shape == (1,)

    checkers = [Check("novel*", first, {}), Check("*.npz", second, {"out/sec*": "how long it took"})]
    one_case("out/y", "in/deep/x", "out/seconds", checkers=checkers)
    run_case("convssm", "novel.npz")
    one_case("out/y", "in/deep/x", "out/extra", "grad/w", checkers=checkers)
    with pytest.raises(pytest.fail.Exception, match=r"novel\.npz: nothing .* 2 arrays: grad/w, out/extra$"):
        run_case("convssm", "novel.npz")


def test_a_small_gradient_is_compared_and_one_of_zero_is_not_read_off_noise(tmp_path):
    """However much smaller than the largest it is; only what is named may be rounding noise."""
    stored = {"grad/large": np.full(3, 1e3), "grad/small": np.full(3, 1e-5), "grad/bias": np.full(3, 1e-6)}
    case = Case(tmp_path, stored, {})
    right = {name: case.grads[name] for name in case.grads}
    case.compare_grads(right | {"bias": np.full(3, -3e-6)}, rtol=1e-5, zero=["bi*"])
    for wrong in ({"small": np.zeros(3)}, {"bias": np.full(3, 1e-2)}):
        with pytest.raises(AssertionError, match=f"gradient of {next(iter(wrong))}"):
            case.compare_grads(right | wrong, rtol=1e-5, zero=["bi*"])
