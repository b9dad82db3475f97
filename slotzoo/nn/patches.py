"""Between maps and coarser maps: every `patch x patch` square as one place, and back."""

import equinox as eqx
import jax.numpy as jnp
from jax.nn.initializers import lecun_normal
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.conv import conv2d


class PatchProject(eqx.Module):
    """`y[i, j] = sum_{a, b} x[i p + a, j p + b] weight[a, b]`: a convolution whose windows do not overlap."""

    weight: Float[Array, "patch patch in out"]

    def __init__(self, in_channels: int, out_channels: int, patch: int, *, key: PRNGKeyArray):
        """LeCun-normal weights, no bias."""
        self.weight = lecun_normal()(key, (patch, patch, in_channels, out_channels), jnp.float32)

    def __call__(
        self, x: Float[Array, "*batch height width in"]
    ) -> Float[Array, "*batch height_p width_p out"]:
        return conv2d(x, self.weight, stride=self.weight.shape[0], padding="VALID")


class PatchExpand(eqx.Module):
    """`y[i p + a, j p + b] = x[i, j] weight[a, b]`: every place becomes a square."""

    weight: Float[Array, "patch patch in out"]

    def __init__(self, in_channels: int, out_channels: int, patch: int, *, key: PRNGKeyArray):
        """LeCun-normal weights (the fan-in counts the square, as in the seed's transposed convolution), no bias."""
        self.weight = lecun_normal()(key, (patch, patch, in_channels, out_channels), jnp.float32)

    def prepare(self) -> Float[Array, "in pixels"]:
        """The weight as the matrix that a call multiplies with; a loop has it made once, before it."""
        return jnp.moveaxis(self.weight, 2, 0).reshape(self.weight.shape[2], -1)

    def __call__(
        self, x: Float[Array, "*batch height width in"], prepared: Float[Array, "in pixels"] | None = None
    ) -> Float[Array, "*batch height_p width_p out"]:
        *batch, height, width, _ = x.shape
        patch, out = self.weight.shape[0], self.weight.shape[-1]
        matrix = self.prepare() if prepared is None else prepared
        y = (x @ matrix.astype(x.dtype)).reshape(*batch, height, width, patch, patch, out)
        return jnp.swapaxes(y, -4, -3).reshape(*batch, height * patch, width * patch, out)
