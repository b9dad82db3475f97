"""The benchmark command: what it finds, what it refuses, what it writes."""

import json

import jax
import jax.numpy as jnp
import pytest
from omegaconf import OmegaConf

from experiments import benchmark
from experiments.benchmarks import conv_transpose, h200, linear_scan, linear_scan_compiled, timing
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
    found = linear_scan.published(linear_scan.as_complex(a), linear_scan.as_complex(u))
    expected = linear_scan.ours("reference")(a, u)
    assert jnp.allclose(found, linear_scan.as_complex(expected), atol=1e-5)


def test_transposed_convolutions_are_those_of_the_baseline(monkeypatch, traced_only):
    traced_only |= {"published both": 10.0}
    monkeypatch.setitem(conv_transpose.SIZES, "tiny", [(2, 3)])
    monkeypatch.setattr(conv_transpose, "CHANNELS", 4)
    rows, columns = conv_transpose.run(BenchmarkSettings(suite="conv_transpose", scale="tiny", repeats=1))
    assert [(row["implementation"], row["faster"]) for row in rows] == [("published", 1), ("ours", 10)]
    assert set(columns) <= set(rows[0])
    args = conv_transpose.inputs(2, 3)
    both = [
        conv_transpose.with_gradients(form)(*args) for form in (conv_transpose.ours, conv_transpose.published)
    ]
    for ours, published in zip(*map(jax.tree.leaves, both), strict=True):
        assert jnp.allclose(ours, published, atol=1e-4 * float(jnp.abs(published).max()))


def test_what_is_only_compiled_has_no_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(
        linear_scan_compiled, "rows", lambda full: [dict.fromkeys(linear_scan_compiled.COLUMNS, 1)]
    )
    assert benchmark.benchmark(settings(suite="linear_scan_compiled", output=str(tmp_path))) == 0
    (path,) = tmp_path.glob("*.json")
    assert not {"scale", "repeats"} & set(json.loads(path.read_text()))


def test_a_compiler_that_does_not_end(monkeypatch):
    monkeypatch.setattr(h200, "plugin_missing", lambda: None)
    monkeypatch.setattr(h200, "LONGEST_S", 0.1)
    with pytest.raises(ConfigError, match=r"took more than 0.1 seconds: experiments.benchmark was ended"):
        h200.rows_of("experiments.benchmark")


def test_programs_take_turns_and_are_compared_within_a_round():
    x = jnp.ones((64, 64))
    programs = {"once": (lambda x: x @ x, (x,)), "twice": (lambda x: x @ x @ x, (x,))}
    results = timing.measure(programs, repeats=2, min_sample_s=0.0)
    assert list(results) == ["once", "twice"]
    assert len(results["once"].times_s) == 2
    assert timing.speedup(results, "once", over="once") == 1.0
    assert results["twice"].peak_bytes >= 2 * x.nbytes
