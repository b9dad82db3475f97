"""The recorded numbers of ConvSSM (and of S5, on which it builds)."""

import pytest

from tests.parity.harness import cases, run_case


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("name", cases("convssm"))
def test_case(name):
    run_case("convssm", name)
