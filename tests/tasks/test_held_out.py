"""What evaluations share: batches one by one, means of what is defined, and a table that is JSON."""

import json

import jax
import numpy as np
import pytest

from slotzoo.prng import stream
from slotzoo.tasks.clip_sums import ClipSums
from slotzoo.tasks.held_out import held_out, write_table


def test_sums_leave_out_what_is_not_defined():
    sums = ClipSums(("score",))
    valid = np.asarray([True, True, False])
    sums.add({"score": np.asarray([1.0, np.nan, 5.0]), "curve": np.asarray([[0, 1], [2, 3], [9, 9]])}, valid)
    sums.add({"score": np.asarray([np.nan]), "curve": np.asarray([[4, 5]])}, np.asarray([True]))
    means = sums.over_processes().means()
    assert sums.clips == 3 and means["score"] == 1 and means["curve"].tolist() == [2, 3]


def test_one_rule_for_what_is_not_a_number():
    """NaN is left out of scores, whatever their prefix, and nowhere else; infinity is left out of nothing."""
    sums = ClipSums(("score",))
    two = lambda first: np.asarray([first, 2.0])
    values = {"score": two(np.nan), "trivial/score": two(np.nan), "authors/first/score": two(np.nan)}
    values |= {
        "loss": two(np.nan),
        "my_score": two(np.nan),
        "score/error": two(np.nan),
        "infinite/score": two(np.inf),
    }
    sums.add(values | {"nowhere/score": np.full(2, np.nan)}, np.ones(2, bool))
    means = sums.means()
    assert means["score"] == means["trivial/score"] == means["authors/first/score"] == 2
    assert all(np.isnan(means[name]) for name in ("loss", "my_score", "score/error"))
    assert means["infinite/score"] == np.inf
    assert "nowhere/score" not in means


def test_batches_come_with_what_counts_and_their_keys():
    key = jax.random.key(3)
    whole = {"image": np.zeros((3, 2))}
    last = {"image": np.ones((3, 2)), "valid": np.asarray([False, True, True])}
    first, second = held_out([whole, last], key=key, name="images")
    assert list(first.fields) == list(second.fields) == ["image"]
    assert first.valid.tolist() == [True] * 3 and second.valid.tolist() == [False, True, True]
    assert first.to_draw(2).tolist() == [0, 1] and second.to_draw(1).tolist() == [1]
    assert not len(first.to_draw(0))
    assert jax.numpy.array_equal(second.keys, jax.random.split(stream(key, "images", 1), 3))


def test_batches_end_when_a_signal_came():
    taken = []
    for batch in held_out(
        [{"x": np.zeros(1)}] * 5, key=jax.random.key(0), name="", should_stop=lambda: len(taken) == 2
    ):
        taken.append(batch)
    assert len(taken) == 2


def test_a_table_is_json_whatever_was_measured(tmp_path):
    rows = [{"name": "model", "loss": float("nan"), "score": 0.5}]
    write_table(tmp_path, {"tables": [{"columns": ("loss",), "rows": rows, "curves": [float("inf"), None, 1]}]})

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    read = json.loads((tmp_path / "table.json").read_text(), parse_constant=refuse)["tables"][0]
    assert read["rows"] == [{"name": "model", "loss": None, "score": 0.5}]
    assert read["columns"] == ["loss"] and read["curves"] == [None, None, 1]
