"""Who may import whom (the design's section 2), read from the source text; and what importing a part brings in."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest


ROOT = pathlib.Path(__file__).parent.parent
BASE = {"errors", "files", "precision", "prng"}
ALLOWED = {
    "errors": set(),
    "files": set(),
    "precision": set(),
    "prng": set(),
    "typecheck": set(),
    "ops": BASE | {"ops"},
    "nn": BASE | {"ops", "nn"},
    "models": BASE | {"ops", "nn", "models", "losses"},
    "weights": BASE | {"ops", "nn", "models", "weights"},
    "losses": BASE | {"ops"},
    "metrics": BASE | {"ops", "metrics"},
    "viz": BASE | {"ops", "viz"},
    "data": {"errors", "files", "data"},  # precision and prng import jax
    "tasks": BASE | {"ops", "nn", "models", "losses", "metrics", "viz", "tasks"},
    "train": BASE | {"train"},
}
# Third-party packages that a part must not import anywhere, not even inside a function.
FORBIDDEN = {"data": {"jax", "equinox"}}
NOWHERE = {"hydra", "omegaconf", "experiments", "conf", "tensorflow", "flax"}

FILES = sorted((ROOT / "slotzoo").rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join((*package, *([node.module] if node.module else [])))
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_direction(path):
    parts = path.relative_to(ROOT / "slotzoo").with_suffix("").parts
    part = parts[0]
    for name in imported(path):
        top = name.split(".")[0]
        assert top not in NOWHERE, f"{path.name} imports {name}: nothing in slotzoo may"
        assert top not in FORBIDDEN.get(part, set()), f"{path.name} imports {name}: {part} may not"
        if top == "slotzoo" and part != "__init__" and len(name.split(".")) > 1:
            other = name.split(".")[1]
            if other in ALLOWED:
                assert other in ALLOWED[part], f"{path.name} imports {name}: {part} may not import {other}"


def test_every_part_is_ruled():
    parts = {
        p.name
        for p in (ROOT / "slotzoo").iterdir()
        if p.is_dir() and p.name != "__pycache__" and any(p.glob("*.py"))
    }
    parts |= {p.stem for p in (ROOT / "slotzoo").glob("*.py")} - {"__init__"}
    assert parts <= set(ALLOWED), f"tell ALLOWED what {parts - set(ALLOWED)} may import"


def test_light_parts_stay_light():
    """Data without jax, models without optimisers, readers of data and the command line."""
    code = """
import sys

def brought(*names):
    return [name for name in names if name in sys.modules]

import slotzoo.data
assert not (found := brought("jax", "equinox", "grain", "optax", "av", "h5py")), found
import slotzoo.models
assert not (found := brought("optax", "chex", "orbax", "grain", "flax", "hydra", "slotzoo.train")), found
"""
    # jaxtyping's own checks import jax, so they are off.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SLOTZOO_TYPECHECK": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
