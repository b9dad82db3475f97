"""The suite `video_models` compares equal functions: our rollout, and the authors' loop over frames."""

import dataclasses

import jax
import pytest

from experiments.benchmarks import video_models
from slotzoo.models.video import VideoPixels


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("core", list(video_models.models("tiny")))
def test_both_forms_generate_the_same_frames(core):
    small = dict(height=16, width=16, encoder_depths=(16,), decoder_depths=(16,), layers=1)
    model = VideoPixels(dataclasses.replace(video_models.models("tiny")[core], **small), key=jax.random.key(0))
    # The authors' complex arithmetic leans on what the tests forbid our own code.
    with jax.numpy_dtype_promotion("standard"):
        video_models.check_agreement(model, video_models.TOLERANCE.get(core, 2e-4), frames=2)
