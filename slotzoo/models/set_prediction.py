"""Slot Attention as a predictor of sets (Locatello et al., NeurIPS 2020, 4.2): each slot is one object."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.models.checks import explained
from slotzoo.models.registry import FROM_MEMORY, ModelCard, register
from slotzoo.models.slot_attention import SlotDraws
from slotzoo.nn.broadcast_decoder import PixelActivation, rectified
from slotzoo.nn.linear import Linear
from slotzoo.nn.pixel_encoder import PixelEncoder
from slotzoo.nn.slot_attention import Gradient, SlotAttention


@dataclasses.dataclass(frozen=True)
class SlotAttentionSetConfig:
    """Sizes for CLEVR at 128 x 128 pixels."""

    resolution: int = 128  # side of an image in pixels
    in_channels: int = 3
    num_slots: int = 10
    num_iterations: int = 3  # one more is made, and it alone differentiated, unless gradient is explicit
    slot_dim: int = 64
    mlp_dim: int = 128
    gradient: Gradient = "explicit"
    neumann_terms: int = 4
    encoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    encoder_strides: tuple[int, ...] = (1, 2, 2, 1)
    encoder_norm: bool = True  # a LayerNorm between positions and MLP
    kernel: int = 5
    activation: PixelActivation = "relu"
    head_dim: int = 64
    features: int = 19  # position 3, size 2, material 2, shape 3, colour 8, and whether there is an object

    @property
    def low(self) -> float:
        """The value of a black pixel."""
        return -1.0

    @property
    def high(self) -> float:
        """The value of a white pixel."""
        return 1.0


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
        _check(config)
        key_encoder, key_slots, key_first, key_second = jax.random.split(key, 4)
        c = config
        self.encoder = PixelEncoder(
            c.in_channels,
            widths=c.encoder_widths,
            strides=c.encoder_strides,
            kernel=c.kernel,
            activation=c.activation,
            norm=c.encoder_norm,
            key=key_encoder,
        )
        self.slot_attention = SlotAttention(
            c.encoder_widths[-1],
            c.slot_dim,
            mlp_dim=c.mlp_dim,
            gradient=c.gradient,
            neumann_terms=c.neumann_terms,
            key=key_slots,
        )
        self.first = Linear(c.slot_dim, c.head_dim, key=key_first)
        self.second = Linear(c.head_dim, c.features, key=key_second)
        self.config = config

    def draw(self, key: PRNGKeyArray, *, slots: int | None = None) -> SlotDraws:
        """The random numbers of one example."""
        return SlotDraws(jax.random.normal(key, (slots or self.config.num_slots, self.config.slot_dim)))

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
        features = self.encoder(image)
        found, attention = self.slot_attention(
            features.reshape(-1, features.shape[-1]),
            self.slot_attention.sample_slots(slots, noise=draws.slots),
            iterations=self.config.num_iterations if iterations is None else iterations,
        )
        logits = self.second(rectified(self.first(found), self.config.activation))
        maps = attention.T.reshape(-1, *features.shape[:2])
        return SetOutput(jax.nn.sigmoid(logits.astype(jnp.float32)), found, maps)


def _check(c: SlotAttentionSetConfig) -> None:
    if (
        min(c.num_slots, c.slot_dim, c.mlp_dim, c.in_channels, c.head_dim, c.features) < 1
        or not c.encoder_widths
    ):
        raise ConfigError(f"set prediction: every size must be at least 1, got {c}.")
    if len(c.encoder_widths) != len(c.encoder_strides):
        raise ConfigError(
            f"set prediction: encoder_widths={c.encoder_widths} and encoder_strides={c.encoder_strides} must name "
            "the same layers."
        )


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
