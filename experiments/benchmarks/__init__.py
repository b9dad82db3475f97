"""Benchmark suites. Each module has `run(config) -> list[dict]`; `experiments.benchmark` finds them in `SUITES`."""
