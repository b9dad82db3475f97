"""What the files share that train experiments, and those that look at benchmarks."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.benchmarks import timing


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs that run twice need no optimisation; those that several experiments share are compiled once."""
    options = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One folder for the experiments of a file, so that a tokenizer is trained once for all that need it."""
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture
def traced_only(monkeypatch):
    """Benchmarks trace their programs and take the seconds of this mapping, 1 where it has none, for measured."""
    seconds: dict[str, float] = {}

    def measure(programs, repeats, **options):
        for function, arguments in programs.values():
            jax.eval_shape(function, *arguments)
        taken = {name: seconds.get(name, 1.0) for name in programs}
        return {name: timing.Result(s, s, 0.0, 1000, 1000, (s,)) for name, s in taken.items()}

    monkeypatch.setattr(timing, "measure", measure)
    return seconds
