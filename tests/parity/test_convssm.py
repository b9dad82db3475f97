"""The recorded numbers of ConvSSM (and of S5, on which it builds)."""

import pytest

from tests.parity.harness import cases, run_case


pytestmark = pytest.mark.usefixtures("compiled_quickly")

LATER: dict[str, str] = {}  # patterns of files whose system the zoo lacks, with the reason


@pytest.mark.parametrize("name", cases("convssm"))
def test_case(name):
    run_case("convssm", name, LATER)


def test_uncovered_file_fails(tmp_path, monkeypatch):
    (tmp_path / "convssm").mkdir()
    (tmp_path / "convssm" / "novel.npz").touch()
    monkeypatch.setenv("SLOTZOO_FIXTURES", str(tmp_path))
    assert cases("convssm") == ["novel.npz"]
    with pytest.raises(pytest.fail.Exception, match=r"no checker.*novel\.npz"):
        run_case("convssm", "novel.npz", LATER)
