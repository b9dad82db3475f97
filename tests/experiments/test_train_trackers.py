"""Experiments that follow objects in videos train two steps."""

import pytest

from tests.experiments.small import train_two_steps, trained


@pytest.mark.slow
@pytest.mark.parametrize("name", trained("trackers"))
def test_trains_two_steps(name, shared, compiled_once):
    train_two_steps(name, shared)
