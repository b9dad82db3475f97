"""Every system test has a folder of its own; the tokenizer and an uninterrupted run are made once."""

import os
import shutil

import pytest

from tests.system.commands import TOKENIZER, Place


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder with a trained tokenizer."""
    folder = tmp_path_factory.mktemp("shared")
    if "PYTEST_XDIST_WORKER" in os.environ:  # compiled programs are those of all processes that run tests
        compiled = tmp_path_factory.getbasetemp().parent / "compiled"
        compiled.mkdir(exist_ok=True)
        (folder / "compiled").symlink_to(compiled)
    Place(folder, folder).call("train", *TOKENIZER)
    return folder


@pytest.fixture
def place(tmp_path, shared):
    """Where a test runs its commands."""
    return Place(tmp_path, shared)


@pytest.fixture(scope="session")
def straight(tmp_path_factory, shared):
    """The folder of a run that nothing interrupted."""
    place = Place(tmp_path_factory.mktemp("straight"), shared)
    place.train()
    return place.run


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory, shared):
    """The folder in which a run of two steps was finished."""
    place = Place(tmp_path_factory.mktemp("two_steps"), shared)
    place.train("train.steps=2")
    return place.folder


@pytest.fixture
def begun(place, two_steps):
    """Where a test goes on with a run of two steps, a copy of its own."""
    shutil.copytree(two_steps, place.folder, dirs_exist_ok=True)
    return place
