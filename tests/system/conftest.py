"""Every system test has a folder of its own; the tokenizer and an uninterrupted run are made once."""

import pytest

from tests.system.commands import TOKENIZER, Place


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder with a trained tokenizer."""
    folder = tmp_path_factory.mktemp("shared")
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
