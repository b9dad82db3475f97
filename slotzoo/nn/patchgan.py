"""Patch discriminator (Isola et al., CVPR 2017): one real-or-fake score for every patch of an image."""

import math

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.conv import Conv
from slotzoo.nn.norm import GroupNorm


class PatchDiscriminator(eqx.Module):
    """4 x 4 convolutions with leaky ReLU (slope 0.2): `layers` of stride 2, one of stride 1, one to a score.

    Widths double from `width` up to `8 * width`. GroupNorm stands where the original has BatchNorm, so that the
    score of an image does not depend on its batch and the module carries no running statistics.
    """

    convs: tuple[Conv, ...]
    norms: tuple[GroupNorm, ...]

    def __init__(self, d_in: int, width: int = 64, layers: int = 3, *, key: PRNGKeyArray):
        keys = jax.random.split(key, layers + 2)
        widths = (d_in, *(width * min(2**i, 8) for i in range(layers + 1)), 1)
        strides = (2,) * layers + (1, 1)
        # A normalised layer needs no bias of its own; the first and the last are not normalised.
        self.convs = tuple(
            Conv(a, b, 4, stride=s, padding=((1, 1), (1, 1)), bias=i in (0, layers + 1), key=k)
            for i, (a, b, s, k) in enumerate(zip(widths[:-1], widths[1:], strides, keys, strict=True))
        )
        self.norms = tuple(GroupNorm(math.gcd(w, 32), w) for w in widths[2:-1])

    def __call__(self, image: Float[Array, "height width d_in"]) -> Float[Array, "height2 width2"]:
        """Scores of the patches: positive for what looks real."""
        x = jax.nn.leaky_relu(self.convs[0](image), 0.2)
        for conv, norm in zip(self.convs[1:-1], self.norms, strict=True):
            x = jax.nn.leaky_relu(norm(conv(x)), 0.2)
        return self.convs[-1](x)[..., 0]
