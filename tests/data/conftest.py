"""Published image sets that several files of tests read."""

import pytest

from tests.data.image_files import double, write_tetrominoes


@pytest.fixture(scope="session")
def tetrominoes(tmp_path_factory):
    """A folder with the same tetrominoes in both published forms."""
    folder = tmp_path_factory.mktemp("images")
    write_tetrominoes(folder / "tetrominoes_train.tfrecords", double())
    write_tetrominoes(folder / "tetrominoes.h5", double())
    return folder
