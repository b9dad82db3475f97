"""What TECO remembers the past with: from latents and actions of every frame to features of the next one.

The modules here have one face. `x(latents, actions, hide, state)` is parallel over time, `step` takes one frame.
Both give `TemporalOutput(features, state)`: the features at t tell about frame t + 1, given the latents up to t and
the action that leads there. States of the state-space models have one size; that of the Transformer is a cache with
room for a number of frames, which `init_state` is told.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.models.convs5_core import ConvS5Config, ssm_layer
from slotzoo.models.teco_config import TECOConfig
from slotzoo.nn.attention import KVCache
from slotzoo.nn.conv import Conv
from slotzoo.nn.conv_ssm_stack import ConvSSMStack, PreparedStack
from slotzoo.nn.linear import Embedding
from slotzoo.nn.patches import PatchExpand, PatchProject
from slotzoo.nn.transformer import Transformer, frame_mask


class TemporalOutput(NamedTuple):
    """Features of the next frames, and the state after the last latents (None if the Transformer was given none)."""

    features: Float[Array, "*time height width feature"]
    state: Any


class Actions(eqx.Module):
    """`[latents, embedding[action]]` on the channels; hidden latents are a constant."""

    embedding: Embedding
    used: bool = eqx.field(static=True)
    hidden_value: float = eqx.field(static=True)

    def __init__(self, config: ConvS5Config, *, key: PRNGKeyArray):
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


class ConvS5Temporal(eqx.Module):
    """Convolutional state-space layers: maps all the way, `d_model` channels at the end."""

    actions: Actions
    input_conv: Conv
    sequence: ConvSSMStack
    out_channels: int = eqx.field(static=True)
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, config: ConvS5Config, channels: int, *, key: PRNGKeyArray):
        """Over latents of `channels` channels on maps that are `config.reduction` times smaller than the frames."""
        action_key, conv_key, *keys = jax.random.split(key, 2 + config.layers)
        self.actions = Actions(config, key=action_key)
        self.input_conv = Conv(channels + config.action_dim, config.d_model, 1, key=conv_key)
        self.sequence = ConvSSMStack(
            tuple(ssm_layer(config, layer_key) for layer_key in keys),
            skip_connections=config.skip_connections,
            scan_layers=config.scan_layers,
            remat=config.remat,
        )
        self.out_channels = config.d_model
        self.height, self.width = config.height // config.reduction, config.width // config.reduction

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
        """Parallel over time; a `key` turns dropout on."""
        out = self.sequence(self.input_conv(self.actions(latents, actions, hide)), state, key=key)
        return TemporalOutput(*out)

    def prepare(self) -> PreparedStack:
        """What `step` takes; fixed while the parameters are."""
        return self.sequence.prepare()

    def step(
        self,
        latents: Float[Array, "height width channel"],
        action: Int[Array, ""],
        hide: Bool[Array, ""],
        state: Any,
        prepared: PreparedStack | None = None,
    ) -> TemporalOutput:
        """One frame."""
        inputs = self.input_conv(self.actions(latents, action, hide))
        return TemporalOutput(*self.sequence.step(inputs, state, prepared=prepared))


class TransformerTemporal(eqx.Module):
    """A Transformer over squares of `patch x patch` latents; a frame's tokens see each other and earlier frames.

    What it says about a frame is what comes out at the frame before; a learned frame stands in front of the first.
    """

    actions: Actions
    project: PatchProject
    start: Float[Array, "rows columns dim"]
    net: Transformer
    expand: PatchExpand
    out_channels: int = eqx.field(static=True)

    def __init__(
        self,
        config: ConvS5Config,
        channels: int,
        *,
        patch: int,
        mlp_dim: int,
        heads: int,
        key: PRNGKeyArray,
    ):
        """`config.layers` layers of `config.d_model` channels; `channels` of the latents and of the features."""
        action_key, in_key, start_key, net_key, out_key = jax.random.split(key, 5)
        dim = config.d_model
        rows, columns = (size // config.reduction // patch for size in (config.height, config.width))
        self.actions = Actions(config, key=action_key)
        self.project = PatchProject(channels + config.action_dim, dim, patch, key=in_key)
        self.start = 0.02 * jax.random.normal(start_key, (rows, columns, dim))
        self.net = Transformer(
            dim,
            dim,
            mlp_dim=mlp_dim,
            heads=heads,
            layers=config.layers,
            positions="sinusoidal",
            dropout=config.dropout,
            remat=config.remat,
            key=net_key,
        )
        self.expand = PatchExpand(dim, channels, patch, key=out_key)
        self.out_channels = channels

    @property
    def _tokens(self) -> int:
        """Tokens of a frame."""
        return self.start.shape[0] * self.start.shape[1]

    def init_state(self, length: int | None = None) -> tuple[KVCache, ...]:
        """Caches for `length` frames, the first of them seen being the learned one in front."""
        if length is None:
            raise ValueError("a Transformer's state has room for a number of frames: say init_state(length).")
        caches = self.net.init_cache((length + 1) * self._tokens)
        return self.net.extend(self._start_tokens(), caches)[1]

    def __call__(
        self,
        latents: Float[Array, "time height width channel"],
        actions: Int[Array, " time"],
        hide: Bool[Array, " time"],
        state: Any = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> TemporalOutput:
        """Parallel over time; with a `state`, the latents follow what it has seen. A `key` turns dropout on."""
        x = self.project(self.actions(latents, actions, hide))
        tokens = x.reshape(-1, x.shape[-1])
        if state is not None:
            tokens, state = self.net.extend(tokens, state, frame=self._tokens)
            return TemporalOutput(self.expand(tokens.reshape(x.shape)), state)
        tokens = jnp.concatenate([self._start_tokens(), tokens])
        tokens = self.net(tokens, mask=frame_mask(len(x) + 1, self._tokens), key=key)
        return TemporalOutput(self.expand(tokens[self._tokens :].reshape(x.shape)), None)

    def prepare(self) -> None:
        """Nothing: all that depends on the parameters alone is in the cache."""
        return None

    def step(
        self,
        latents: Float[Array, "height width channel"],
        action: Int[Array, ""],
        hide: Bool[Array, ""],
        state: Any,
        prepared: None = None,
    ) -> TemporalOutput:
        """One frame."""
        out = self(latents[None], action[None], hide[None], state)
        return TemporalOutput(out.features[0], out.state)

    def _start_tokens(self) -> Array:
        return self.start.reshape(self._tokens, -1).astype(self.project.weight.dtype)


Temporal = ConvS5Temporal | TransformerTemporal


def make_temporal(config: TECOConfig, *, key: PRNGKeyArray) -> Temporal:
    """The core that `config.temporal` names, over latents of `config.embedding_dim` channels."""
    channels = config.embedding_dim
    match config.temporal:
        case "convs5":
            return ConvS5Temporal(config, channels, key=key)
        case _:
            return TransformerTemporal(
                config, channels, patch=config.patch, mlp_dim=config.mlp_dim, heads=config.heads, key=key
            )
