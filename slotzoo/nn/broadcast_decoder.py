"""The spatial broadcast decoder: every slot painted over the whole picture, the paintings mixed by their masks."""

import math
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.conv import Conv, ConvTranspose
from slotzoo.nn.position import SoftPositionEmbedding


PixelActivation = Literal["relu", "leaky_relu"]


class DecodedSlots(NamedTuple):
    """A picture taken apart."""

    reconstruction: Float[Array, "height width channel"]  # sum over slots of mask times picture
    masks: Float[Array, "slot height width"]  # float32; each pixel's sum to 1
    pictures: Float[Array, "slot height width channel"]


class SpatialBroadcastDecoder(eqx.Module):
    """`x = sum_s softmax_s(alpha_s) picture_s`, where `(picture_s, alpha_s)` is what convolutions make of slot s.

    A slot is repeated over a grid of pixels, positions are added, and (transposed) convolutions, one for each of
    `widths` with the strides `strides`, bring it to `grid * prod(strides)` pixels, of which the upper left `size`
    are kept; a last one of 3 x 3 makes the channels and alpha.

    With `remat` the slots are decoded one after the other and again for the gradient: what is kept for it is
    one slot's maps in place of all slots' (about one part in the number of slots of the memory, for a third more
    time).

    Sources: Watters et al., Spatial Broadcast Decoder, 2019; Locatello et al., NeurIPS 2020, appendix E.2.
    """

    position: SoftPositionEmbedding
    layers: tuple[ConvTranspose, ...]
    last: Conv
    grid: tuple[int, int] = eqx.field(static=True)
    size: tuple[int, int] = eqx.field(static=True)
    slot_dim: int = eqx.field(static=True)
    channels: int = eqx.field(static=True)
    activation: PixelActivation = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        slot_dim: int,
        channels: int,
        *,
        grid: tuple[int, int],
        size: tuple[int, int],
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        kernel: int = 5,
        padding: Literal["torch", "SAME"] = "torch",
        activation: PixelActivation = "leaky_relu",
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """An even stride cannot be centred: `padding` puts the pixel that is left over before ("SAME", as in Flax) or
        after the picture ("torch": padding `kernel // 2`, output padding `stride - 1`). `kernel` is odd for "torch".
        """
        if not widths or len(widths) != len(strides):
            raise ConfigError(
                f"broadcast decoder: widths={widths} and strides={strides} must name the same layers, at least one."
            )
        if padding == "torch" and kernel % 2 == 0:
            raise ConfigError(f'broadcast decoder: padding="torch" needs an odd kernel, got {kernel}.')
        factor = math.prod(strides)
        if any(side * factor < wanted for side, wanted in zip(grid, size, strict=True)):
            raise ConfigError(
                f"broadcast decoder: a grid of {grid} and strides={strides} paint fewer than {size} pixels."
            )
        key_position, key_last, *keys = jax.random.split(key, 2 + len(widths))
        self.position = SoftPositionEmbedding(slot_dim, key=key_position)
        inputs = (slot_dim, *widths[:-1])
        half = (kernel - 1) // 2
        pads = [(half, half + stride - 1) for stride in strides]
        self.layers = tuple(
            ConvTranspose(
                a, b, kernel, stride=stride, padding="SAME" if padding == "SAME" else (pad, pad), key=k
            )
            for a, b, stride, pad, k in zip(inputs, widths, strides, pads, keys, strict=True)
        )
        self.last = Conv(widths[-1], channels + 1, 3, key=key_last)
        self.grid, self.size, self.slot_dim, self.channels = grid, size, slot_dim, channels
        self.activation, self.remat = activation, remat

    def __call__(self, slots: Float[Array, "slot {self.slot_dim}"]) -> DecodedSlots:
        """Decode and mix."""
        if self.remat:
            # One slot at a time, and only its own vector kept for the gradient.
            maps = jax.lax.map(jax.checkpoint(lambda slot: self._paint(slot)), slots)
        else:
            maps = self._paint(slots)
        pictures, alpha = maps[..., :-1], maps[..., -1]
        masks = jax.nn.softmax(alpha.astype(jnp.float32), axis=0)
        mixed = (masks[..., None] * pictures.astype(jnp.float32)).sum(0)
        return DecodedSlots(mixed.astype(pictures.dtype), masks, pictures)

    def _paint(self, slots: Float[Array, "*slot dim"]) -> Float[Array, "*slot height width channels"]:
        x = jnp.broadcast_to(slots[..., None, None, :], (*slots.shape[:-1], *self.grid, slots.shape[-1]))
        x = self.position(x)
        for layer in self.layers:
            x = rectified(layer(x), self.activation)
        return self.last(x[..., : self.size[0], : self.size[1], :])


def rectified(x: Float[Array, "*shape"], activation: PixelActivation) -> Float[Array, "*shape"]:
    """`max(x, 0)`, or `max(x, x / 100)`."""
    return jax.nn.relu(x) if activation == "relu" else jax.nn.leaky_relu(x, 0.01)
