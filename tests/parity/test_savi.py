"""The recorded numbers of SAVi, SAVi++ and STATM: modules, models, metrics, preprocessing, checkpoints."""

import pytest

from tests.parity.harness import cases, run_case


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("name", cases("savi"))
def test_case(name):
    run_case("savi", name)
