"""Files are there whole or not at all."""

import numpy as np
import pytest

from slotzoo.files import replacing, write_bytes, write_npz, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_takes_the_place_of_the_old_one(tmp_path, durable):
    path = tmp_path / "made" / "notes.txt"
    assert write_text(path, "old", durable=durable) == path
    with replacing(path, durable=durable) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new"
    assert write_bytes(path, "ä".encode()).read_text(encoding="utf-8") == "ä"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_text(tmp_path / "notes.txt", "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        _ = 1 / 0
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(path, thing=np.asarray([object()]))
    with pytest.raises(FileNotFoundError), replacing(path):
        pass  # nothing was written
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_arrays_come_back(tmp_path):
    path = write_npz(tmp_path / "arrays", a=np.arange(3), b=np.zeros((2, 0)))  # the name stays as it is
    with np.load(path) as found:
        assert found["a"].tolist() == [0, 1, 2] and found["b"].shape == (2, 0)
    assert list(tmp_path.iterdir()) == [path]
