"""PSNR and SSIM against scikit-image, and what they must do by definition."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from skimage import metrics as reference

from slotzoo.errors import ShapeError
from slotzoo.metrics import frame_scores, psnr, ssim
from slotzoo.metrics.video import gaussian_window


def pair(shape, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(size=shape).astype(np.float32)
    other = np.clip(truth + noise * rng.normal(size=shape), 0, 1).astype(np.float32)
    return other, truth


@pytest.mark.parametrize("shape", [(11, 11, 3), (16, 23, 1), (64, 64, 3)])
@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_agrees_with_scikit_image(shape, noise):
    prediction, truth = pair(shape, noise=noise)
    expected = reference.structural_similarity(
        truth.astype(np.float64),
        prediction.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
        data_range=1,
    )
    assert float(ssim(prediction, truth)) == pytest.approx(expected, abs=2e-6)
    expected = reference.peak_signal_noise_ratio(truth, prediction, data_range=1)
    assert float(psnr(prediction, truth)) == pytest.approx(expected, rel=1e-6)


def test_flat_bright_images_do_not_lose_digits():
    # Variances near zero at a mean near one: where E[x^2] - E[x]^2 cancels worst.
    rng = np.random.default_rng(0)
    truth, prediction = (0.98 + 1e-3 * rng.normal(size=(32, 32, 3)) for _ in range(2))
    expected = reference.structural_similarity(
        truth,
        prediction,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
        data_range=1,
    )
    got = ssim(truth.astype(np.float32), prediction.astype(np.float32))
    assert float(got) == pytest.approx(expected, abs=2e-4)


def test_scores_in_other_value_ranges():
    prediction, truth = pair((2, 16, 16, 3))
    for function in (psnr, ssim):
        np.testing.assert_allclose(
            function(prediction * 255, truth * 255, max_value=255.0), function(prediction, truth), rtol=1e-5
        )


def test_equal_images():
    _, truth = pair((3, 12, 12, 3))
    assert np.all(np.isposinf(psnr(truth, truth)))
    np.testing.assert_allclose(ssim(truth, truth), 1.0, atol=1e-6)


@given(
    clips=st.integers(1, 3),
    time=st.integers(1, 3),
    height=st.integers(11, 14),
    width=st.integers(11, 14),
)
def test_frame_scores_over_drawn_sizes(clips, time, height, width):
    prediction, truth = pair((clips, time, height, width, 3), seed=time)
    scores = frame_scores(prediction, truth)
    assert scores.psnr.shape == scores.ssim.shape == (clips, time)
    assert scores.per_video().psnr.shape == (clips,)
    assert scores.per_step().ssim.shape == (time,)
    alone = ssim(jnp.asarray(prediction[0, 0]), jnp.asarray(truth[0, 0]))
    np.testing.assert_allclose(scores.ssim[0, 0], alone, rtol=1e-5)
    np.testing.assert_allclose(scores.per_video().psnr, np.asarray(scores.psnr).mean(1), rtol=1e-5)


def test_too_small_for_the_window():
    image = np.zeros((10, 32, 3), np.float32)
    with pytest.raises(ShapeError, match="windows of 11x11 pixels, and these images have 10x32"):
        ssim(image, image)


def test_the_window_sums_to_one():
    assert gaussian_window().shape == (11, 11)
    assert gaussian_window().sum() == pytest.approx(1.0)
