"""The recorded numbers of SlotSSM and of Mamba's mixers and scans."""

import pytest

from tests.parity.harness import cases, run_case


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("name", cases("slotssm"))
def test_case(name):
    run_case("slotssm", name)
