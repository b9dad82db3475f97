"""Digit paths of the Moving-MNIST generator."""

import numpy as np

from slotzoo.data.synthetic.moving_mnist import trajectory
from tests.parity.harness import checks


@checks("moving_mnist*.npz")
def check_paths(case):
    config = case.config
    canvas = config["image_size"] - config["digit_size"]
    starts = {name.removeprefix("u_"): u for name, u in case.inputs.items()}
    assert len(case.outputs) == 2 * len(starts) > 0
    for number, uniforms in starts.items():
        path = trajectory(uniforms, config["seq_length"], canvas=canvas, step=config["step_length"])
        recorded = [case.outputs[f"start_{axis}_{number}"] for axis in "yx"]
        assert np.array_equal(path, np.stack(recorded, 1)), f"{case.path.name}: path {number}"
