"""What models with Slot Attention over pixels share (Locatello et al., NeurIPS 2020): from an image to its slots."""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.broadcast_decoder import PixelActivation
from slotzoo.nn.pixel_encoder import PixelEncoder
from slotzoo.nn.slot_attention import Gradient, Init, SlotAttention


@dataclasses.dataclass(frozen=True)
class PixelSlotsConfig:
    """Sizes of encoder and slot attention, for images with values in [-1, 1]."""

    resolution: int = 128  # side of an image in pixels
    in_channels: int = 3
    num_slots: int = 7
    num_iterations: int = 3  # one more is made, and it alone differentiated, unless gradient is explicit
    slot_dim: int = 64
    mlp_dim: int = 128
    gradient: Gradient = "implicit"
    neumann_terms: int = 4
    encoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    encoder_strides: tuple[int, ...] = (1, 1, 1, 1)
    encoder_norm: bool = False  # a LayerNorm between positions and MLP, as in the authors' own code
    kernel: int = 5
    activation: PixelActivation = "leaky_relu"

    @property
    def low(self) -> float:
        """The value of a black pixel."""
        return -1.0

    @property
    def high(self) -> float:
        """The value of a white pixel."""
        return 1.0


class SlotDraws(NamedTuple):
    """The random numbers of one example, standard normal; None for learned initial slots."""

    slots: Float[Array, "slot dim"] | None


def pixel_slots(
    c: PixelSlotsConfig, init: Init = "gaussian", *, key_encoder: PRNGKeyArray, key_slots: PRNGKeyArray
) -> tuple[PixelEncoder, SlotAttention]:
    """The encoder that makes a token of every pixel, and the attention that makes slots of the tokens."""
    encoder = PixelEncoder(
        c.in_channels,
        widths=c.encoder_widths,
        strides=c.encoder_strides,
        kernel=c.kernel,
        activation=c.activation,
        norm=c.encoder_norm,
        key=key_encoder,
    )
    attention = SlotAttention(
        c.encoder_widths[-1],
        c.slot_dim,
        mlp_dim=c.mlp_dim,
        init=init,
        num_slots=c.num_slots if init == "learned" else None,
        gradient=c.gradient,
        neumann_terms=c.neumann_terms,
        key=key_slots,
    )
    return encoder, attention


def slot_draws(c: PixelSlotsConfig, key: PRNGKeyArray, slots: int | None) -> SlotDraws:
    """Noise for as many `slots`, for the configuration's number if None."""
    return SlotDraws(jax.random.normal(key, (slots or c.num_slots, c.slot_dim)))


def slots_of(
    encoder: PixelEncoder,
    slot_attention: SlotAttention,
    image: Float[Array, "height width channel"],
    *,
    draws: SlotDraws | None,
    slots: int | None,
    iterations: int,
) -> tuple[Float[Array, "slot dim"], Float[Array, "slot height2 width2"]]:
    """The slots of one image, and how the last step shared each token of the encoder's grid among them, float32."""
    features = encoder(image)
    found, attention = slot_attention(
        features.reshape(-1, features.shape[-1]),
        slot_attention.sample_slots(slots, noise=None if draws is None else draws.slots),
        iterations=iterations,
    )
    return found, attention.T.reshape(-1, *features.shape[:2])


def check_pixel_slots(c: PixelSlotsConfig, system: str, *sizes: int) -> None:
    """Raise `ConfigError` where a size (the `sizes` of the system too) or the layers of the encoder cannot be."""
    if min(c.num_slots, c.slot_dim, c.mlp_dim, c.in_channels, *sizes) < 1 or not c.encoder_widths:
        raise ConfigError(f"{system}: every size must be at least 1, got {c}.")
    if c.kernel % 2 == 0:
        raise ConfigError(f"{system}: kernel={c.kernel} must be odd.")
    if len(c.encoder_widths) != len(c.encoder_strides):
        raise ConfigError(
            f"{system}: encoder_widths={c.encoder_widths} and encoder_strides={c.encoder_strides} must name "
            "the same layers."
        )
