"""Benchmark suites: modules with `run(config)`, found by `experiments.benchmark` under their names."""
