"""The recorded numbers of object-discovery-pytorch: Slot Attention, SLATE, GNM, and the metrics of several seeds."""

import pytest

from tests.parity.harness import cases, run_case


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("name", cases("object_discovery"))
def test_case(name):
    run_case("object_discovery", name)
