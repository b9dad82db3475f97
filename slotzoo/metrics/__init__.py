"""How good a prediction is: pure functions on arrays, and the seeds' evaluation protocols."""

from slotzoo.metrics.video import (
    FrameScores as FrameScores,
    frame_scores as frame_scores,
    psnr as psnr,
    ssim as ssim,
)
