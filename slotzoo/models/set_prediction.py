"""Slot Attention as a predictor of sets (Locatello et al., NeurIPS 2020, 4.2): each slot is one object."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.models.checks import explained
from slotzoo.models.pixel_slots import (
    PixelSlotsConfig,
    SlotDraws,
    check_pixel_slots,
    pixel_slots,
    slot_draws,
    slots_of,
)
from slotzoo.models.registry import FROM_MEMORY, ModelCard, register
from slotzoo.nn.broadcast_decoder import PixelActivation, rectified
from slotzoo.nn.linear import Linear
from slotzoo.nn.pixel_encoder import PixelEncoder
from slotzoo.nn.slot_attention import Gradient, SlotAttention


@dataclasses.dataclass(frozen=True)
class SlotAttentionSetConfig(PixelSlotsConfig):
    """Sizes for CLEVR at 128 x 128 pixels."""

    num_slots: int = 10
    gradient: Gradient = "explicit"
    encoder_strides: tuple[int, ...] = (1, 2, 2, 1)
    encoder_norm: bool = True
    activation: PixelActivation = "relu"
    head_dim: int = 64
    features: int = 19  # position 3, size 2, material 2, shape 3, colour 8, and whether there is an object


class SetOutput(NamedTuple):
    """The objects of an image, in no order."""

    prediction: Float[Array, "slot feature"]  # in (0, 1), as the targets: see `slotzoo.tasks.set_prediction`
    slots: Float[Array, "slot dim"]
    attention: Float[Array, "slot height width"]  # float32, how the last step shared each token among the slots


class SlotAttentionSet(eqx.Module):
    """`prediction_s = sigmoid(MLP(slot_s))`. Takes one image with values in [-1, 1].

    The order of the predictions is that of the random initial slots, so a loss has to match them to the targets
    (`slotzoo.losses.hungarian_loss`). There can be more slots than objects: the last feature says which are real.
    """

    encoder: PixelEncoder
    slot_attention: SlotAttention
    first: Linear
    second: Linear
    config: SlotAttentionSetConfig = eqx.field(static=True)

    def __init__(self, config: SlotAttentionSetConfig, *, key: PRNGKeyArray):
        check_pixel_slots(config, "set prediction", config.head_dim, config.features)
        key_encoder, key_slots, key_first, key_second = jax.random.split(key, 4)
        c = config
        self.encoder, self.slot_attention = pixel_slots(c, key_encoder=key_encoder, key_slots=key_slots)
        self.first = Linear(c.slot_dim, c.head_dim, key=key_first)
        self.second = Linear(c.head_dim, c.features, key=key_second)
        self.config = config

    def draw(self, key: PRNGKeyArray, *, slots: int | None = None) -> SlotDraws:
        """The random numbers of one example."""
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
    ) -> SetOutput:
        """Predict the objects of one image. The initial slots come from `draws`, or are drawn with `key`."""
        if draws is None:
            if key is None:
                raise ConfigError("set prediction: initial slots need `draws` or `key`.")
            draws = self.draw(key, slots=slots)
        found, attention = slots_of(
            self.encoder,
            self.slot_attention,
            image,
            draws=draws,
            slots=slots,
            iterations=self.config.num_iterations if iterations is None else iterations,
        )
        logits = self.second(rectified(self.first(found), self.config.activation))
        return SetOutput(jax.nn.sigmoid(logits.astype(jnp.float32)), found, attention)


register(
    "slot_attention_set_prediction",
    SlotAttentionSetConfig(),
    SlotAttentionSet,
    ModelCard(
        name="slot_attention_set_prediction",
        title="Slot Attention for the properties of up to ten CLEVR objects",
        paper="Locatello et al.: Object-Centric Learning with Slot Attention, NeurIPS 2020",
        section="4.2 and appendix E.3",
        licence="Apache-2.0",
        parameters=380_755,
        source="https://github.com/google-research/google-research/tree/master/slot_attention",
        metrics={"ap_inf": 0.943, "ap_1": 0.867, "ap_0.5": 0.560, "ap_0.25": 0.108, "ap_0.125": 0.009},
        description="Average precision by distance. No weights are published." + FROM_MEMORY,
    ),
    tiny=dict(
        resolution=32,
        num_slots=4,
        encoder_widths=(16, 24, 24),
        encoder_strides=(1, 2, 1),
        slot_dim=32,
        mlp_dim=64,
        head_dim=32,
    ),
)
