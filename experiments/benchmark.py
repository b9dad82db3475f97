"""`python -m experiments.benchmark suite=linear_scan`: measure, print a table, write JSON by device."""

from omegaconf import DictConfig

from experiments import cli


def suites() -> list[str]:
    """The names of the suites: the modules of `experiments.benchmarks` that have a function `run`.

    Found in their text, since importing one imports jax and the models.
    """
    import re
    from pathlib import Path

    files = sorted((Path(__file__).parent / "benchmarks").glob("*.py"))
    return [file.stem for file in files if re.search(r"^def run\(", file.read_text(), re.MULTILINE)]


def benchmark(config: DictConfig) -> int:
    """Run the suite; `run(settings)` of its module returns its rows and the columns to print."""
    import dataclasses
    import importlib
    from pathlib import Path

    from omegaconf import OmegaConf

    from experiments import validate
    from experiments.schema import BenchmarkSettings
    from slotzoo.errors import ConfigError, nearest

    known = suites()
    if OmegaConf.is_missing(config, "suite"):
        raise ConfigError(f"suite is missing: add suite=NAME, one of {', '.join(known)}.")
    asked = validate.settings(config, BenchmarkSettings)
    if asked.suite not in known:
        raise ConfigError(
            f"suite={asked.suite} is unknown: one of {', '.join(known)}.{nearest(asked.suite, known)}"
        )
    if asked.repeats < 1:
        raise ConfigError(f"repeats={asked.repeats} must be 1 or more.")

    import jax

    from experiments.benchmarks import timing

    if asked.scale == "auto":
        asked = dataclasses.replace(asked, scale="tiny" if jax.default_backend() == "cpu" else "paper")
    print(f"suite {asked.suite}, scale {asked.scale}, {timing.machine()['device']}", flush=True)
    rows, columns = importlib.import_module(f"experiments.benchmarks.{asked.suite}").run(asked)
    print(timing.table(rows, columns))
    # What is only compiled has sizes of its own and is not repeated.
    how = {} if asked.suite.endswith("_compiled") else {"scale": asked.scale, "repeats": asked.repeats}
    path = timing.write_results(Path(asked.output), asked.suite, rows, **how)
    print(f"Written to {path}")
    return 0


main = cli.command("benchmark", benchmark)


if __name__ == "__main__":
    main()
