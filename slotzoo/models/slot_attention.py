"""Slot Attention (Locatello et al., NeurIPS 2020): an autoencoder that takes images apart into objects.

An encoder makes a token of every pixel, slot attention makes a few slots of the tokens, and a spatial broadcast
decoder paints each slot; the mixture has to be the image. Sizes and training of the published checkpoints are those
of the port by Housen (object-discovery-pytorch), which differentiates the last step only (Chang et al., 2022).
"""

import dataclasses
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.models.checks import explained
from slotzoo.models.objects import ObjectsOutput
from slotzoo.models.pixel_slots import (
    PixelSlotsConfig,
    SlotDraws as SlotDraws,
    check_pixel_slots,
    pixel_slots,
    slot_draws,
    slots_of,
)
from slotzoo.models.registry import FROM_MEMORY, ModelCard, register
from slotzoo.nn.broadcast_decoder import SpatialBroadcastDecoder
from slotzoo.nn.pixel_encoder import PixelEncoder
from slotzoo.nn.slot_attention import SlotAttention


@dataclasses.dataclass(frozen=True)
class SlotAttentionConfig(PixelSlotsConfig):
    """Sizes at 128 x 128 pixels, and the weights of the auxiliary losses."""

    init: Literal["gaussian", "learned"] = "gaussian"  # what is learned of either needs gradient="explicit"
    decoder_grid: int = 8  # side of the grid that a slot is repeated over
    decoder_widths: tuple[int, ...] = (64, 64, 64, 64, 64)
    decoder_strides: tuple[int, ...] = (2, 2, 2, 2, 1)
    decoder_remat: bool = False  # decode slot by slot, and again for the gradient: far less memory
    separation: Literal["none", "max", "entropy"] = "none"  # a loss for masks that overlap
    separation_weight: float = 0.003
    separation_ramp: tuple[int, ...] = (60_000, 65_000)  # steps between which the weight grows from 0
    area: bool = False  # a loss for masks of unlikely size (BoxWorld)
    area_weight: float = 0.006
    area_ramp: tuple[int, ...] = (60_000, 65_000)
    area_object: int = 81  # pixels of one object


class SlotAttentionAutoencoder(eqx.Module):
    """`image -> slots -> sum_s mask_s picture_s`. Takes one image with values in [-1, 1].

    The number of slots and of iterations may differ from call to call: `slots` and `iterations` stand in for
    the configuration's.
    """

    encoder: PixelEncoder
    slot_attention: SlotAttention
    decoder: SpatialBroadcastDecoder
    config: SlotAttentionConfig = eqx.field(static=True)

    def __init__(self, config: SlotAttentionConfig, *, key: PRNGKeyArray):
        _check(config)
        key_encoder, key_slots, key_decoder = jax.random.split(key, 3)
        c = config
        self.encoder, self.slot_attention = pixel_slots(c, c.init, key_encoder=key_encoder, key_slots=key_slots)
        self.decoder = SpatialBroadcastDecoder(
            c.slot_dim,
            c.in_channels,
            grid=(c.decoder_grid, c.decoder_grid),
            size=(c.resolution, c.resolution),
            widths=c.decoder_widths,
            strides=c.decoder_strides,
            kernel=c.kernel,
            activation=c.activation,
            remat=c.decoder_remat,
            key=key_decoder,
        )
        self.config = config

    def draw(self, key: PRNGKeyArray, *, slots: int | None = None) -> SlotDraws:
        """The random numbers of one example."""
        if self.config.init == "learned":
            return SlotDraws(None)
        return slot_draws(self.config, key, slots)

    @explained(image="{resolution} {resolution} {in_channels}")
    def __call__(
        self,
        image: Float[Array, "height width channel"],
        *,
        draws: SlotDraws | None = None,
        key: PRNGKeyArray | None = None,
        slots: int | None = None,
        iterations: int | None = None,
    ) -> ObjectsOutput:
        """Take one image apart. The initial slots come from `draws`, or are drawn with `key`.

        `extra` holds `attention`, float32 `(slot, height, width)` at the resolution of the encoder: how the last step
        shared each token among the slots.
        """
        if draws is None and key is not None:
            draws = self.draw(key, slots=slots)
        found, attention = slots_of(
            self.encoder,
            self.slot_attention,
            image,
            draws=draws,
            slots=slots,
            iterations=self.config.num_iterations if iterations is None else iterations,
        )
        return ObjectsOutput(*self.decoder(found), found, {"attention": attention})

    def loss(
        self,
        image: Float[Array, "height width channel"],
        *,
        step: Int[Array, ""] | int,
        draws: SlotDraws | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """`mean (reconstruction - image)^2`, plus the configuration's auxiliary losses at their weight at `step`."""
        c = self.config
        out = self(image, draws=draws, key=key)
        error = out.reconstruction.astype(jnp.float32) - image.astype(jnp.float32)
        total = mse = jnp.mean(jnp.square(error))
        terms = {"mse": mse}
        if c.separation != "none":
            terms["separation"] = separation_loss(out.masks, c.separation)
            weight = ramp(step, c.separation_weight, c.separation_ramp)
            terms["separation_weight"] = weight
            total = total + weight * terms["separation"]
        if c.area:
            terms["area"] = area_loss(out.masks, c.area_object)
            weight = ramp(step, c.area_weight, c.area_ramp)
            terms["area_weight"] = weight
            total = total + weight * terms["area"]
        return total, terms

    def explain(
        self,
        image: Float[Array, "height width channel"],
        *,
        draws: SlotDraws | None = None,
        key: PRNGKeyArray | None = None,
        slots: int | None = None,
        iterations: int | None = None,
    ) -> ObjectsOutput:
        """As a call: what is in one image."""
        return self(image, draws=draws, key=key, slots=slots, iterations=iterations)


def separation_loss(
    masks: Float[Array, "slot height width"], kind: Literal["max", "entropy"]
) -> Float[Array, ""]:
    """`1 - mean max_s mask_s`, or the mean over pixels of the entropy of the masks, in nats."""
    if kind == "max":
        return 1 - jnp.mean(masks.max(axis=0))
    masks = masks + 1e-8
    return -jnp.mean(jnp.sum(masks * jnp.log(masks), axis=0))


def area_loss(masks: Float[Array, "slot height width"], pixels: int) -> Float[Array, ""]:
    """Per slot `min((a - 2 p)^2, max(b - a, 0) (b - a)) / (2 p)^2`, averaged; `a` is the slot's area.

    It asks each slot for two objects of `pixels` (p) each, a box and its content, or for all of the background,
    `b = height width - (slots - 1) p`. Source: object-discovery-pytorch, for BoxWorld.
    """
    areas = masks.sum((1, 2))
    background = masks.shape[1] * masks.shape[2] - (masks.shape[0] - 1) * pixels
    objects = jnp.square(areas - 2 * pixels)
    rest = jnp.maximum(background - areas, 0) * (background - areas)
    return jnp.mean(jnp.minimum(objects, rest)) / (2 * pixels) ** 2


def ramp(step: Int[Array, ""] | int, top: float, steps: tuple[int, ...]) -> Float[Array, ""]:
    """From 0 to `top` along half a cosine between the two `steps`; `top` throughout if they are equal."""
    start, end = steps
    if start == end:
        return jnp.float32(top)
    passed = jnp.clip((jnp.asarray(step, jnp.float32) - start) / (end - start), 0.0, 1.0)
    return top * 0.5 * (1 - jnp.cos(math.pi * passed))


def _check(c: SlotAttentionConfig) -> None:
    check_pixel_slots(c, "Slot Attention", c.decoder_grid)
    factor = math.prod(c.decoder_strides)
    wanted = -(-c.resolution // factor)
    if c.decoder_grid != wanted:
        raise ConfigError(
            f"Slot Attention: decoder_strides={c.decoder_strides} enlarge decoder_grid={c.decoder_grid} to "
            f"{c.decoder_grid * factor} pixels, but resolution={c.resolution}; set decoder_grid={wanted}, or change "
            "decoder_strides."
        )
    for name in ("separation_ramp", "area_ramp"):
        steps = getattr(c, name)
        if len(steps) != 2 or steps[1] < steps[0]:
            raise ConfigError(f"Slot Attention: {name} is two steps in order, got {steps}.")


# The authors' own sizes at 35 and 64 pixels: 32 channels, slots painted at full size, every iteration differentiated.
_SMALL = SlotAttentionConfig(
    resolution=35,
    num_slots=4,
    gradient="explicit",
    encoder_widths=(32, 32, 32, 32),
    encoder_norm=True,
    activation="relu",
    decoder_grid=35,
    decoder_widths=(32, 32, 32),
    decoder_strides=(1, 1, 1),
)
_PAPER = "Locatello et al.: Object-Centric Learning with Slot Attention, NeurIPS 2020"
_PORT = "https://github.com/HHousen/object-discovery-pytorch"
_AUTHORS = "https://github.com/google-research/google-research/tree/master/slot_attention"
_TINY_128 = dict(
    resolution=32,
    encoder_widths=(16, 24, 24),
    encoder_strides=(1, 2, 1),
    decoder_grid=8,
    decoder_widths=(32, 24),
    decoder_strides=(2, 2),
    slot_dim=32,
    mlp_dim=64,
)
_TINY_SMALL = dict(
    encoder_widths=(16, 24, 24),
    encoder_strides=(1, 2, 1),
    slot_dim=32,
    mlp_dim=64,
    decoder_grid=9,
    decoder_widths=(32, 16),
    decoder_strides=(2, 2),
    gradient="implicit",
)

for _name, _title, _config, _parameters, _source, _metrics, _note, _tiny in (
    (
        "slot_attention_clevr6",
        "Slot Attention for CLEVR with at most six objects",
        SlotAttentionConfig(),
        890_180,
        _PORT,
        {"fg_ari": 0.988},
        "Sizes of the port's checkpoint; the figure is the paper's, whose encoder ends in a LayerNorm and which "
        "differentiates three iterations.",
        _TINY_128,
    ),
    (
        "slot_attention_clevrtex6",
        "Slot Attention for ClevrTex with at most six objects",
        SlotAttentionConfig(),
        890_180,
        _PORT,
        {"fg_ari": 0.624},
        "Sizes of the port's checkpoint; the figure is that of the ClevrTex paper (Karazija et al., 2021), on scenes "
        "of up to ten objects.",
        _TINY_128,
    ),
    (
        "slot_attention_sketchy",
        "Slot Attention for Sketchy, a robot arm over a table",
        SlotAttentionConfig(num_slots=10),
        890_180,
        _PORT,
        {},
        "Sizes of the port's checkpoint; the data set has no masks to measure against.",
        _TINY_128,
    ),
    (
        "slot_attention_boxworld",
        "Slot Attention for BoxWorld, with losses for masks that overlap or have an unlikely size",
        SlotAttentionConfig(num_slots=10, separation="entropy", area=True),
        890_180,
        _PORT,
        {},
        "The port's default run; nothing was published of it.",
        _TINY_128 | dict(num_slots=4, area_object=5),
    ),
    (
        "slot_attention_tetrominoes",
        "Slot Attention for Tetrominoes",
        _SMALL,
        235_812,
        _AUTHORS,
        {"fg_ari": 0.995},
        "Sizes of the paper's appendix; no weights are published.",
        _TINY_SMALL,
    ),
    (
        "slot_attention_multi_dsprites",
        "Slot Attention for Multi-dSprites",
        dataclasses.replace(_SMALL, resolution=64, decoder_grid=64, num_slots=6),
        235_812,
        _AUTHORS,
        {"fg_ari": 0.913},
        "Sizes of the paper's appendix; no weights are published.",
        _TINY_SMALL | dict(decoder_grid=16),
    ),
):
    register(
        _name,
        _config,
        SlotAttentionAutoencoder,
        ModelCard(
            name=_name,
            title=_title,
            paper=_PAPER,
            section="4.1 and appendix E",
            licence="Apache-2.0",
            parameters=_parameters,
            source=_source,
            metrics=_metrics,
            description=_note + (FROM_MEMORY if _metrics else ""),
        ),
        tiny=_tiny,
    )
