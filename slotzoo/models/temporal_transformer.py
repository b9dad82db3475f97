"""Temporal cores that attend: the Transformer of TECO, and the Performer. See `temporal.py`."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import ShapeError
from slotzoo.models.temporal_recurrent import Actions, TemporalOutput
from slotzoo.models.video_config import VideoConfig
from slotzoo.nn.favor import FavorOptions
from slotzoo.nn.patches import PatchExpand, PatchProject
from slotzoo.nn.transformer import Transformer, TransformerState


class WindowState(NamedTuple):
    """Of a Transformer that sees the last frames only: their tokens, how many frames there were, and the caches,
    which serve until the window is full."""

    caches: TransformerState
    tokens: Float[Array, "frame token dim"]
    seen: Int[Array, ""]


class TransformerTemporal(eqx.Module):
    """A Transformer over squares of `patch x patch` latents; a frame's tokens see each other and earlier frames.

    What it says about a frame is what comes out at the frame before; a learned frame stands in front of the first.
    """

    actions: Actions
    project: PatchProject
    start: Float[Array, "rows columns dim"]
    net: Transformer
    expand: PatchExpand
    recurrent: ClassVar[bool] = False
    out_channels: int = eqx.field(static=True)
    window: int | None = eqx.field(static=True)

    def __init__(
        self,
        config: VideoConfig,
        channels: int,
        *,
        patch: int,
        mlp_dim: int,
        heads: int,
        feature_dim: int | None = None,
        attention_dropout: float = 0.0,
        window: int | None = None,
        favor: FavorOptions | None = None,
        key: PRNGKeyArray,
    ):
        """`config.layers` layers of `config.d_model` channels over latents of `channels` channels.

        - `feature_dim`: channels of the features, `channels` unless given.
        - `window`: how many frames it attends to at most (the learned one is the first); None: to all.
        - `favor`: attention by random features, which makes it a Performer.
        """
        action_key, in_key, start_key, net_key, out_key = jax.random.split(key, 5)
        dim = config.d_model
        rows, columns = (side // patch for side in config.latent_size)
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
            attention_dropout=attention_dropout,
            favor=favor,
            remat=config.remat,
            key=net_key,
        )
        self.out_channels = channels if feature_dim is None else feature_dim
        self.expand = PatchExpand(dim, self.out_channels, patch, key=out_key)
        self.window = window

    @property
    def _tokens(self) -> int:
        """Tokens of a frame."""
        return self.start.shape[0] * self.start.shape[1]

    def init_state(self, length: int | None = None) -> TransformerState | WindowState:
        """Room for `length` frames, the learned one in front being seen; a Performer's has no end.

        What is predicted from more frames than there is room for is NaN.

        **Raises** `ShapeError` where a Transformer is not told the length.
        """
        if length is None:
            if not self.net.unbounded:
                raise ShapeError(
                    "a Transformer's state has room for a number of frames: say init_state(length)."
                )
            length = 0
        slides = self.window is not None and length + 1 > self.window
        room = self.window if slides and self.window is not None else length + 1
        caches = self.net.extend(self._start_tokens(), self.net.init_cache(room * self._tokens))[1]
        if not slides:
            return caches
        tokens = jnp.zeros((room - 1, self._tokens, self.start.shape[-1]), self.project.weight.dtype)
        return WindowState(caches, tokens, jnp.int32(0))

    def __call__(
        self,
        latents: Float[Array, "time height width channel"],
        actions: Int[Array, " time"],
        hide: Bool[Array, " time"],
        state: Any = None,
        *,
        prepared: Float[Array, "in pixels"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> TemporalOutput:
        """Parallel over time; with a `state`, the latents follow what it has seen. A `key` turns dropout on."""
        x = self.project(self.actions(latents, actions, hide))
        tokens = x.reshape(len(x), self._tokens, -1)
        if state is None:
            tokens = jnp.concatenate([self._start_tokens(), tokens.reshape(-1, tokens.shape[-1])])
            out = self.net(tokens, frame=self._tokens, key=key)[self._tokens :]
        elif isinstance(state, WindowState):
            out, state = self._within_window(tokens, state)
        else:
            flat = tokens.reshape(-1, tokens.shape[-1])
            out, state = self.net.extend(flat, state, frame=self._tokens)
        return TemporalOutput(self.expand(out.reshape(x.shape), prepared), state)

    def prepare(self) -> Float[Array, "in pixels"]:
        """What `step` takes beside the cache: the way back from squares."""
        return self.expand.prepare()

    def step(
        self,
        latents: Float[Array, "height width channel"],
        action: Int[Array, ""],
        hide: Bool[Array, ""],
        state: Any,
        prepared: Float[Array, "in pixels"] | None = None,
    ) -> TemporalOutput:
        """One frame."""
        out = self(latents[None], action[None], hide[None], state, prepared=prepared)
        return TemporalOutput(out.features[0], out.state)

    def _start_tokens(self) -> Array:
        return self.start.reshape(self._tokens, -1).astype(self.project.weight.dtype)

    def _within_window(self, tokens: Array, state: WindowState) -> tuple[Array, WindowState]:
        """Outputs for new frames, by the caches while all fits into the window, else by looking at it again."""

        def one_by_one(tokens: Array, state: WindowState):
            def body(state: WindowState, frame: Array):
                out, state = self._slid(frame, state)
                return state, out

            state, out = lax.scan(body, state, tokens)
            return out, state

        def at_once(tokens: Array, state: WindowState):
            flat = tokens.reshape(-1, tokens.shape[-1])
            out, caches = self.net.extend(flat, state.caches, frame=self._tokens)
            at = (state.seen, jnp.int32(0), jnp.int32(0))
            kept = lax.dynamic_update_slice(state.tokens, tokens, at)
            return out.reshape(tokens.shape), WindowState(caches, kept, state.seen + len(tokens))

        def one_alone(tokens: Array, state: WindowState):
            out, state = self._slid(tokens[0], state)
            return out[None], state

        if len(tokens) > len(state.tokens):
            return one_by_one(tokens, state)
        fits = state.seen + len(tokens) <= len(state.tokens)
        # The number of frames is the same for all clips of a batch, so that vmap keeps this a choice.
        return lax.cond(fits, at_once, one_by_one if len(tokens) > 1 else one_alone, tokens, state)

    def _slid(self, frame: Array, state: WindowState) -> tuple[Array, WindowState]:
        """One frame, whether or not the window is full."""
        full = state.seen >= len(state.tokens)
        shifted = jnp.where(full, jnp.roll(state.tokens, -1, 0), state.tokens)
        place = jnp.minimum(state.seen, len(state.tokens) - 1)
        kept = lax.dynamic_update_slice(shifted, frame[None], (place, jnp.int32(0), jnp.int32(0)))
        flat = jnp.concatenate([self._start_tokens(), kept.reshape(-1, kept.shape[-1])])
        out = self.net(flat, frame=self._tokens).reshape(-1, *frame.shape)
        # What has not been filled lies after `place`, which does not see it.
        return out[place + 1], WindowState(state.caches, kept, state.seen + 1)
