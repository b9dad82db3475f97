"""The recorded numbers of SlotSSM and of Mamba's mixers and scans."""

import jax
import pytest

from tests.parity.harness import cases, run_case


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Programs that run once need no optimisation."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("name", cases("slotssm"))
def test_case(name):
    run_case("slotssm", name, {})
