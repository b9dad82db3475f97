"""The benchmark command: what it finds, what it refuses, what it writes."""

import json

import jax
import jax.numpy as jnp
import pytest
from omegaconf import OmegaConf

from experiments import benchmark
from experiments.benchmarks import linear_scan, timing
from experiments.schema import BenchmarkSettings
from slotzoo.errors import ConfigError


def settings(**values):
    return OmegaConf.merge(OmegaConf.structured(BenchmarkSettings), values)


def test_finds_its_suites():
    assert {"linear_scan", "linear_scan_compiled"} <= set(benchmark.suites())
    assert "timing" not in benchmark.suites()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, r"suite is missing: add suite=NAME, one of .*linear_scan"),
        ({"suite": "linear_scam"}, r"suite=linear_scam is unknown: .*Did you mean 'linear_scan'\?"),
        ({"suite": "linear_scan", "repeats": 0}, r"repeats=0 must be 1 or more"),
        ({"suite": "linear_scan", "scale": "papr"}, r"scale.*papr"),
    ],
    ids=["missing", "unknown", "repeats", "scale"],
)
def test_says_what_is_wrong(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        benchmark.benchmark(settings(**values))


def test_writes_rows_with_the_machine(tmp_path, monkeypatch, capsys, traced_only):
    traced_only |= {"published both": 3.0}
    monkeypatch.setitem(linear_scan.SIZES, "tiny", [(2, 3, 2)])
    monkeypatch.setattr(linear_scan, "GRID", (2, 2))
    asked = settings(suite="linear_scan", scale="tiny", repeats=1, output=str(tmp_path))
    assert benchmark.benchmark(asked) == 0
    (path,) = tmp_path.glob("linear_scan_*.json")
    assert str(path) in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert written["machine"]["jax"] == jax.__version__
    assert {row["implementation"] for row in written["rows"]} == {
        "published",
        "reference",
        "associative",
        "auto",
    }
    assert all(row["both_ms"] > 0 and row["roofline"] > 0 for row in written["rows"])
    assert [row["faster"] for row in written["rows"]] == [1, 3, 3, 3]


def test_the_baseline_computes_the_same():
    a, u, _ = linear_scan.inputs(None, 5, 4)
    found, expected = linear_scan.published(a, u), linear_scan.ours("reference")(a, u)
    assert jnp.allclose(found, expected, atol=1e-5)


def test_programs_take_turns_and_are_compared_within_a_round():
    x = jnp.ones((64, 64))
    programs = {"once": (lambda x: x @ x, (x,)), "twice": (lambda x: x @ x @ x, (x,))}
    results = timing.measure(programs, repeats=2, min_sample_s=0.0)
    assert list(results) == ["once", "twice"]
    assert len(results["once"].times_s) == 2
    assert timing.speedup(results, "once", over="once") == 1.0
    assert results["twice"].peak_bytes >= 2 * x.nbytes
