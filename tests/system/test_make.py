"""How the Makefile comes to its environment: with stand-ins for Python, which say what they were told."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
ROOT = Path(__file__).parent.parent.parent
# An environment of it has pip where there is a file `has_pip` in the folder of the project.
PYTHON = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
  -V) echo "Python VERSION" ;;
  "-c import sys"*) exit UNSUPPORTED ;;
  "-m venv "*)
    for folder; do :; done
    test "$3" = --clear && rm -rf "$folder"
    mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
    test -e has_pip && touch "$folder/pip" ;;
  "-m pip -V") test -e "$here/../pip" ;;
  "-m pip install "*) test -e "$here/../pip" && echo "VERSION $*" >>installed ;;
  "-m pytest "*) echo "tested with VERSION" ;;
  *) echo "not expected: $*"; exit 1 ;;
esac
"""


class Project:
    """A folder with the Makefile in it, and what is on the path."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "bin").mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / "has_pip").touch()
        # Neither a real Python nor uv: whatever the recipes may call.
        for tool in ("sh", "rm", "mkdir", "cp", "cat", "touch", "dirname", "tail"):
            (folder / "bin" / tool).symlink_to(shutil.which(tool))

    def python(self, version: str, name: str = "python3") -> None:
        supported = version.startswith(("3.11.", "3.12.", "3.13."))
        path = self.folder / "bin" / name
        path.write_text(PYTHON.replace("VERSION", version).replace("UNSUPPORTED", str(int(not supported))))
        path.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        environment["PATH"] = str(self.folder / "bin")
        command = [str(shutil.which("make")), "-C", str(self.folder), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def installed(self) -> list[str]:
        """What was installed, and by which Python, one line for each time."""
        return (self.folder / "installed").read_text().splitlines()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_an_environment_is_made_once(project):
    project.python("3.12.1")
    for _ in range(2):
        assert "tested with 3.12.1" in project.make("test").stdout
    extras = ".[dev,dmlab,log,metrics,video]"
    assert project.installed() == [f"3.12.1 -m pip install -q -c constraints.txt -e {extras}"]


def test_other_extras_are_added(project):
    project.python("3.11.7")
    project.make("test")
    project.make("test", "EXTRAS=cuda,dev")
    project.make("test")
    assert [line.split()[-1] for line in project.installed()] == [
        ".[dev,dmlab,log,metrics,video]",
        ".[cuda,dev,dmlab,log,metrics,video]",
    ]


def test_a_python_that_is_not_supported_is_named_and_not_kept(project):
    project.python("3.10.13")
    project.python("3.12.1", "python3.12")
    done = project.make("test")
    assert (
        done.returncode
        and "python3 is Python 3.10.13, and slotzoo needs Python 3.11, 3.12 or 3.13" in done.stderr
    )
    assert "make test PYTHON=python3.12" in done.stderr
    done = project.make("test", "PYTHON=python3.12")
    assert "tested with 3.12.1" in done.stdout and not done.stderr
    # Made with such a Python before, by hand or by an older version.
    shutil.copy(project.folder / "bin" / "python3", project.folder / ".venv" / "bin" / "python")
    (project.folder / ".venv" / ".ready").unlink()
    assert project.make("test").returncode
    assert "tested with 3.12.1" in project.make("test", "PYTHON=python3.12").stdout


def test_another_python_that_is_named_is_taken(project):
    project.python("3.11.7")
    project.python("3.13.0", "python3.13")
    project.make("test")
    for _ in range(2):
        assert "tested with 3.13.0" in project.make("test", "PYTHON=python3.13").stdout
    assert [line.split()[0] for line in project.installed()] == ["3.11.7", "3.13.0"]
    assert "tested with 3.13.0" in project.make("test").stdout


def test_a_half_made_environment_is_made_again(project):
    """Debian's Python without python3-venv leaves one without pip."""
    project.python("3.11.7")
    (project.folder / "has_pip").unlink()
    assert project.make("test").returncode
    assert (project.folder / ".venv" / "bin" / "python").exists()
    (project.folder / "has_pip").touch()
    assert "tested with 3.11.7" in project.make("test").stdout


def test_a_missing_python_is_named(project):
    done = project.make("test")
    assert done.returncode and "slotzoo needs Python 3.11, 3.12 or 3.13" in done.stderr
