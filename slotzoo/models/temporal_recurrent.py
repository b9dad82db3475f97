"""Temporal cores that carry a state of fixed size: stacks of ConvS5, S5 or ConvLSTM layers. See `temporal.py`."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.models.video_config import StackConfig, VideoConfig
from slotzoo.nn.conv import Conv
from slotzoo.nn.conv_ssm_stack import ConvSSMLayer, ConvSSMStack, PreparedStack, StackOutput
from slotzoo.nn.linear import Embedding
from slotzoo.nn.patches import PatchExpand, PatchProject
from slotzoo.nn.recurrence import AbstractRecurrence


class TemporalOutput(NamedTuple):
    """Features of the next frames, and the state after the last latents (None if the Transformer was given none)."""

    features: Float[Array, "*time height width feature"]
    state: Any


class PreparedTemporal(NamedTuple):
    """What `RecurrentTemporal.step` computes from the parameters alone: of the layers, and how squares go back."""

    sequence: PreparedStack
    expand: Float[Array, "in pixels"] | None


class Actions(eqx.Module):
    """`[latents, embedding[action]]` on the channels; hidden latents are a constant."""

    embedding: Embedding
    used: bool = eqx.field(static=True)
    hidden_value: float = eqx.field(static=True)

    def __init__(self, config: VideoConfig, *, key: PRNGKeyArray):
        self.embedding = Embedding(config.num_actions + 1, config.action_dim, key=key)
        self.used, self.hidden_value = config.use_actions, config.hidden_value

    def __call__(
        self,
        latents: Float[Array, "*time height width channel"],
        actions: Int[Array, "*time"],
        hide: Bool[Array, "*time"],
    ) -> Float[Array, "*time height width both"]:
        hidden = jnp.full_like(latents, self.hidden_value)
        latents = jnp.where(hide[..., None, None, None], hidden, latents)
        actions = actions if self.used else jnp.zeros_like(actions)
        embedded = self.embedding(actions).astype(latents.dtype)[..., None, None, :]
        embedded = jnp.broadcast_to(embedded, (*latents.shape[:-1], embedded.shape[-1]))
        return jnp.concatenate([latents, embedded], -1)


class RecurrentTemporal(eqx.Module):
    """A stack of recurrent layers, over the map itself (ConvS5, ConvLSTM) or over its squares (S5).

    Either `input_conv` brings every place to `d_model` channels, or `project` and `expand` every square, and back to
    `out_channels` per place.
    """

    actions: Actions
    input_conv: Conv | None
    project: PatchProject | None
    sequence: ConvSSMStack
    expand: PatchExpand | None
    recurrent: ClassVar[bool] = True
    out_channels: int = eqx.field(static=True)
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(
        self,
        config: StackConfig,
        channels: int,
        make: Callable[[PRNGKeyArray], AbstractRecurrence],
        *,
        patch: int | None = None,
        feature_dim: int | None = None,
        key: PRNGKeyArray,
    ):
        """Over latents of `channels` channels on maps that are `config.reduction` times smaller than the frames.

        `make` makes one recurrence of `config.d_model` channels. With `patch` it runs over squares of that side;
        `feature_dim` channels come back (`channels` unless given).
        """
        action_key, in_key, out_key, *keys = jax.random.split(key, 3 + config.layers)
        self.actions = Actions(config, key=action_key)
        dim, inputs = config.d_model, channels + config.action_dim
        self.height, self.width = config.latent_size
        self.input_conv = self.project = self.expand = None
        if patch is None:
            self.input_conv = Conv(inputs, dim, 1, key=in_key)
            self.out_channels = dim
        else:
            self.out_channels = channels if feature_dim is None else feature_dim
            self.project = PatchProject(inputs, dim, patch, key=in_key)
            self.expand = PatchExpand(dim, self.out_channels, patch, key=out_key)
            self.height, self.width = self.height // patch, self.width // patch
        layers = (
            ConvSSMLayer(
                make(layer_key),
                dropout=config.dropout,
                use_norm=config.use_norm,
                prenorm=config.prenorm,
                residual=config.residual,
            )
            for layer_key in keys
        )
        self.sequence = ConvSSMStack(
            tuple(layers),
            skip_connections=config.skip_connections,
            scan_layers=config.scan_layers,
            remat=config.remat,
        )

    def init_state(self, length: int | None = None) -> Float[Array, "layer height width planes"]:
        """Zeros, whatever the length."""
        del length
        return self.sequence.init_state(self.height, self.width)

    def __call__(
        self,
        latents: Float[Array, "time height width channel"],
        actions: Int[Array, " time"],
        hide: Bool[Array, " time"],
        state: Any = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> TemporalOutput:
        """All frames of a clip; a `key` turns dropout on."""
        return self._expanded(self.sequence(self._inputs(latents, actions, hide), state, key=key), None)

    def prepare(self) -> PreparedTemporal:
        """What `step` takes; fixed while the parameters are."""
        expand = None if self.expand is None else self.expand.prepare()
        return PreparedTemporal(self.sequence.prepare(), expand)

    def step(
        self,
        latents: Float[Array, "height width channel"],
        action: Int[Array, ""],
        hide: Bool[Array, ""],
        state: Any,
        prepared: PreparedTemporal | None = None,
    ) -> TemporalOutput:
        """One frame."""
        sequence, expand = self.prepare() if prepared is None else prepared
        inputs = self._inputs(latents, action, hide)
        return self._expanded(self.sequence.step(inputs, state, prepared=sequence), expand)

    def _inputs(self, latents: Array, actions: Array, hide: Array) -> Array:
        inputs = self.actions(latents, actions, hide)
        for layer in (self.input_conv, self.project):
            inputs = inputs if layer is None else layer(inputs)
        return inputs

    def _expanded(self, out: StackOutput, prepared: Array | None) -> TemporalOutput:
        features = out.output if self.expand is None else self.expand(out.output, prepared)
        return TemporalOutput(features, out.state)
