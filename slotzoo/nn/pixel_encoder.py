"""The encoder in front of slot attention: convolutions, positions, and an MLP on every pixel."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.broadcast_decoder import PixelActivation, rectified
from slotzoo.nn.conv import Conv
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import LayerNorm
from slotzoo.nn.position import SoftPositionEmbedding


class PixelEncoder(eqx.Module):
    """`MLP(LN?(position + act(conv(... act(conv(image))))))`: a feature of the last width for every pixel left over
    by the strides. Source: Locatello et al., NeurIPS 2020, appendix E.2.
    """

    layers: tuple[Conv, ...]
    position: SoftPositionEmbedding
    norm: LayerNorm | None
    first: Linear
    second: Linear
    channels: int = eqx.field(static=True)
    activation: PixelActivation = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        *,
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        kernel: int = 5,
        activation: PixelActivation = "leaky_relu",
        norm: bool = False,
        key: PRNGKeyArray,
    ):
        """`norm`: a LayerNorm after the positions, as the authors have it."""
        key_position, key_first, key_second, *keys = jax.random.split(key, 3 + len(widths))
        self.layers = tuple(
            Conv(a, b, kernel, stride=stride, key=k)
            for a, b, stride, k in zip((channels, *widths[:-1]), widths, strides, keys, strict=True)
        )
        width = widths[-1]
        self.position = SoftPositionEmbedding(width, key=key_position)
        self.norm = LayerNorm(width, eps=1e-5) if norm else None
        self.first = Linear(width, width, key=key_first)
        self.second = Linear(width, width, key=key_second)
        self.channels, self.activation = channels, activation

    def __call__(
        self, image: Float[Array, "*batch height width {self.channels}"]
    ) -> Float[Array, "*batch height2 width2 feature"]:
        """Features of every pixel, in the dtype of the parameters: pixels come as float32 under bfloat16 as well."""
        x = image.astype(self.first.weight.dtype)
        for layer in self.layers:
            x = rectified(layer(x), self.activation)
        x = self.position(x)
        if self.norm is not None:
            x = self.norm(x)
        return self.second(rectified(self.first(x), self.activation))
