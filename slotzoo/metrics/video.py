"""PSNR and SSIM of frames, as the ConvSSM and TECO evaluations compute them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slotzoo.errors import ShapeError


SSIM_WINDOW = 11
Images = Float[Array | np.ndarray, "*batch height width channel"]


class FrameScores(NamedTuple):
    """Scores of every predicted frame of a batch of clips."""

    psnr: Float[Array, "clip time"]
    ssim: Float[Array, "clip time"]

    def per_video(self) -> "VideoScores":
        """Mean over the frames of each clip (of the scores, not of the squared errors)."""
        return VideoScores(self.psnr.mean(1), self.ssim.mean(1))

    def per_step(self) -> "VideoScores":
        """Mean over the clips at each time: the curve of how a rollout decays."""
        return VideoScores(self.psnr.mean(0), self.ssim.mean(0))


class VideoScores(NamedTuple):
    """Scores averaged over the frames of each clip, or over the clips at each time."""

    psnr: Float[Array, " entry"]
    ssim: Float[Array, " entry"]


def psnr(prediction: Images, truth: Images, *, max_value: int | float = 1.0) -> Float[Array, "*batch"]:
    """Peak signal-to-noise ratio of each image in dB: `10 log10(max_value^2 / mean((prediction - truth)^2))`.

    Images lie in [0, max_value]. Equal images give +inf, as in the seed; tables clamp it (see `protocol`).
    """
    difference = jnp.asarray(prediction, jnp.float32) - jnp.asarray(truth, jnp.float32)
    error = jnp.mean(difference**2, axis=(-3, -2, -1))
    return 20.0 * np.log10(max_value) - 10.0 * jnp.log10(error)


def ssim(
    prediction: Images,
    truth: Images,
    *,
    max_value: int | float = 1.0,
    window: int = SSIM_WINDOW,
    sigma: int | float = 1.5,
    k1: int | float = 0.01,
    k2: int | float = 0.03,
) -> Float[Array, "*batch"]:
    """Structural similarity of each image, in [-1, 1]; 1 for equal images.

    The mean over positions and channels of
    `(2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2))`, where m and s are means and
    (co)variances under a Gaussian window of `window` x `window` pixels, at the positions where the window fits
    (Wang et al. 2004; scikit-image calls it `gaussian_weights=True, use_sample_covariance=False`).

    Images lie in [0, max_value]. Raises ShapeError for images smaller than the window.
    """
    height, width = prediction.shape[-3:-1]
    if min(height, width) < window:
        raise ShapeError(
            f"SSIM looks at windows of {window}x{window} pixels, and these images have {height}x{width}: "
            f"use images of at least {window} pixels a side, or a smaller window="
        )
    rows, columns = _band(height, window, sigma), _band(width, window, sigma)

    def blur(image):
        # Two small matrix products: exact float32 on every platform, and faster than a depthwise convolution.
        image = jnp.einsum("ih,...hwc->...iwc", rows, image, precision="highest")
        return jnp.einsum("jw,...iwc->...ijc", columns, image, precision="highest")

    # E[x^2] - E[x]^2 cancels; moving the origin to the middle of the range halves the digits lost.
    middle = max_value / 2
    x, y = (jnp.asarray(image, jnp.float32) - middle for image in (prediction, truth))
    mean_x, mean_y = blur(x), blur(y)
    var_x = jnp.maximum(blur(x * x) - mean_x * mean_x, 0.0)
    var_y = jnp.maximum(blur(y * y) - mean_y * mean_y, 0.0)
    covariance = blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + middle, mean_y + middle
    c1, c2 = (k1 * max_value) ** 2, (k2 * max_value) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return jnp.mean(above / below, axis=(-3, -2, -1))


def gaussian_window(size: int = SSIM_WINDOW, sigma: int | float = 1.5) -> Float[np.ndarray, "size size"]:
    """The window of `ssim`: a Gaussian sampled at whole pixels, sum 1."""
    line = _gaussian(size, sigma)
    return np.outer(line, line)


@jax.jit
def frame_scores(
    prediction: Float[Array | np.ndarray, "clip time height width channel"],
    truth: Float[Array | np.ndarray, "clip time height width channel"],
) -> FrameScores:
    """PSNR (dB) and SSIM of every frame; videos in [0, 1]."""
    return FrameScores(psnr(prediction, truth), ssim(prediction, truth))


def _gaussian(size: int, sigma: float) -> np.ndarray:
    offset = np.arange(size) - (size - 1) / 2
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    return weight / weight.sum()


def _band(length: int, window: int, sigma: float) -> Float[Array, "outside inside"]:
    """The matrix of a one-dimensional blur without padding."""
    line = _gaussian(window, sigma)
    matrix = np.zeros((length - window + 1, length))
    for i in range(matrix.shape[0]):
        matrix[i, i : i + window] = line
    return jnp.asarray(matrix, jnp.float32)
