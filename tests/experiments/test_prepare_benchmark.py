"""The suite `prepare`: its files are read as the published ones are, and its rows tell the whole set's time."""

import numpy as np
import pytest

from experiments.benchmarks import prepare
from slotzoo.data import open_source


@pytest.mark.parametrize("published", prepare.SETS[:3], ids=lambda published: published.name)
def test_files_and_rows(published, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "PARSED", 1)
    short = prepare.MazeSource
    monkeypatch.setattr(prepare, "MazeSource", lambda split, clips: short(split, clips=clips, length=4))
    published.write(tmp_path / published.name, 11, 1)
    rows = list(prepare.measured(published, tmp_path, 11))
    found = {row["row"]: row for row in rows}
    assert list(found)[:2] == ["index", "prepare"] and found["index"]["records"] == 11
    made = found["prepare"]
    train = 9 if published.name == "clevrtex" else 11  # of 11 pictures one is for testing, one for validation
    assert made["records"] == train and made["per_second"] == pytest.approx(train / made["seconds"])
    each = found["index"]["seconds"] / 11 + made["seconds"] / train
    assert made["minutes"] >= each * published.total / 60 * 0.999
    assert ("entry by entry" in found) == (published.name == "clevr_with_masks")


def test_a_written_record_of_clevr_is_the_drawn_one(tmp_path):
    prepare.write_clevr(tmp_path / "set", 2, 2)
    source = open_source("clevr_with_masks", "train", root=tmp_path / "set", crop="whole")
    for index, drawn in enumerate(prepare._pictures(2)):
        record = source[index]
        np.testing.assert_array_equal(record["image"], drawn["image"])
        np.testing.assert_array_equal(record["mask"] > 0, drawn["mask"] > 0)
        assert record["visible"].sum() == drawn["visible"].sum() == len(np.unique(drawn["mask"])) - 1
