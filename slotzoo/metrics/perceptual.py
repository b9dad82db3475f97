"""Measures that compare what a trained network sees: LPIPS of images (extra `metrics`)."""

from slotzoo.metrics.lpips import LPIPS as LPIPS, load_lpips as load_lpips, lpips_batch as lpips_batch
