"""What may be left out of a data set, and what is no fault of its records."""

import errno
import os

import numpy as np
import pytest

from slotzoo.data.pipeline import make_pipeline
from slotzoo.data.preparation import prepare
from slotzoo.data.sources import teco
from slotzoo.errors import DataError
from tests.data.sources import Numbered


class Starved(Numbered):
    """A source whose third clip cannot be opened for the reason `number`."""

    def __init__(self, number):
        super().__init__(6)
        self.number = number

    def __getitem__(self, index):
        try:
            if index == 3:
                raise OSError(self.number, os.strerror(self.number), "three.npz")
        except OSError as error:
            raise DataError(f"clip {index}: cannot be read; use on_error=skip.") from error
        return super().__getitem__(index)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_not_a_bad_record(number, tmp_path):
    told = r"three\.npz: could not be opened .*ulimit -n"
    for on_error in ("skip", "raise"):
        with pytest.raises(DataError, match=told):
            list(make_pipeline(Starved(number), batch_size=2, seed=0, train=False, length=6, on_error=on_error))
        with pytest.raises(DataError, match=told):
            prepare(Starved(number), tmp_path / on_error, on_error=on_error)


def test_a_record_that_the_disk_cannot_give_is_left_out(tmp_path):
    source = Starved(errno.EIO)
    assert prepare(source, tmp_path, on_error="skip").skipped == [3]
    batches = list(make_pipeline(source, batch_size=2, seed=0, train=False, length=6, on_error="skip"))
    labels = np.concatenate([batch["label"][batch["valid"]] for batch in batches])
    assert 3 not in labels and len(labels) == 5


def test_a_reader_says_why_it_could_not_open_a_file(tmp_path, monkeypatch):
    """The number of the error has to survive the sentence that the reader makes of it."""
    folder = tmp_path / "test" / "0"
    folder.mkdir(parents=True)
    np.savez(folder / "0.npz", video=np.zeros((6, 8, 8, 3), np.uint8), actions=np.zeros(6, np.int64))
    source = teco.TecoSource(tmp_path, "test")
    batches = make_pipeline(source, batch_size=1, seed=0, train=False, length=6, on_error="skip")
    assert len(list(batches)) == 1

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files", "0.npz")

    monkeypatch.setattr(teco, "open", refuse, raising=False)
    with pytest.raises(DataError, match=r"0\.npz: could not be opened .*ulimit -n"):
        list(batches)
