"""Every test runs on four forced CPU devices, with strict dtype promotion and no silent rank promotion."""

import itertools
import os
import sys
from pathlib import Path


os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=4".strip()

# The shape checks rewrite every module of slotzoo, which takes three seconds unless the bytecode is kept. The tests
# start a hundred processes, so they keep it where the environment says not to.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Derandomised: the same examples on every machine. Compilation makes single examples slow, hence no deadline.
hypothesis.settings.register_profile(
    "slotzoo",
    derandomize=True,
    deadline=None,
    max_examples=15,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("slotzoo")


def pytest_collection_modifyitems(items):
    """Run what is marked slow last; first where tests are spread over processes, which then end together."""
    last = "PYTEST_XDIST_WORKER" not in os.environ
    items.sort(key=lambda item: (item.get_closest_marker("slow") is not None) == last)


# Linux allows a process 65,530 memory mappings (vm.max_map_count). Every program that XLA compiles for the CPU takes
# about ten, and it dies of a segmentation fault when none is left, which ends a test process in mid-suite.
_MAPPINGS = Path("/proc/self/maps")
_MOST_MAPPINGS = 20_000
# To count them takes some ten milliseconds, and no ten tests make as many as are left.
_COUNTED_EVERY = 10
_ended = itertools.count(1)


def pytest_runtest_teardown():
    """Give compiled programs back before there are too many of them."""
    if next(_ended) % _COUNTED_EVERY == 0 and _MAPPINGS.exists():
        if _MAPPINGS.read_bytes().count(b"\n") > _MOST_MAPPINGS:
            jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_quickly():
    """For tests whose programs run once, and so need no optimisation: `pytest.mark.usefixtures("compiled_quickly")`."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def key():
    return jax.random.key(0)
