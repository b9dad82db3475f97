"""How good a prediction is: pure functions on arrays, and the seeds' evaluation protocols."""

from slotzoo.metrics.protocol import VideoProtocol as VideoProtocol, video_table as video_table
from slotzoo.metrics.sums import add_states as add_states, sum_over_processes as sum_over_processes
from slotzoo.metrics.video import (
    FrameScores as FrameScores,
    frame_scores as frame_scores,
    psnr as psnr,
    ssim as ssim,
)
