"""The network that all video models share around their temporal core: random choices, outputs, encoder and decoder.

    frames -> encoder -> [features, action] -> temporal core -> decoder -> next frames

The input at t is frame t and the action that leads to frame t + 1; the prediction at t is frame t + 1.
"""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import ShapeError
from slotzoo.models.temporal import Temporal, TemporalOutput, make_temporal
from slotzoo.models.video_config import VideoConfig
from slotzoo.nn.resnet import ResamplingKernels, ResNetDecoder, ResNetEncoder
from slotzoo.ops.device import compiling_for_gpu


UNKNOWN_ACTION = -1
# Numbers in one map of the encoder over a clip from which a CPU observes it faster frame by frame. Two layers,
# two cores: equal at 0.5 million, 1.7 times as fast at 2 million, 1.9 times at 8 million; 0.7 times for small maps.
LONG_CLIP = 2**20


class Draws(NamedTuple):
    """The random choices of one training example.

    `drop_actions`: all actions are unknown. `frames`: the predictions to compute (0 is that of frame 1).
    """

    drop_actions: Bool[Array, ""]
    frames: Int[Array, " kept"]


class VideoOutput(NamedTuple):
    """Predictions of frames `frames` of the clip: logits over codes, or pixels in [-1, 1].

    `weights` sum to one: the share of each prediction in the loss of this clip. `features` are the outputs of
    the temporal core for every step, `state` is the one after the last (None where a Transformer was given none:
    its state is as large as `init_state` is told).
    """

    prediction: Float[Array, "kept height width channel"]
    frames: Int[Array, " kept"]
    weights: Float[Array, " kept"]
    features: Float[Array, "steps latent_height latent_width feature"]
    state: Any


class StepOutput(NamedTuple):
    """The prediction of the next frame (logits or pixels) and the next state."""

    prediction: Float[Array, "height width channel"]
    state: Any


class Prepared(NamedTuple):
    """What `step` computes from the parameters alone; a loop over steps has it made once, before it."""

    encoder: ResamplingKernels
    temporal: Any
    decoder: ResamplingKernels


class VideoCore(eqx.Module):
    """From frames (or embedded tokens) and actions to decoded maps, by way of the core that `config` names."""

    encoder: ResNetEncoder
    temporal: Temporal
    decoder: ResNetDecoder
    config: VideoConfig = eqx.field(static=True)

    def __init__(self, config: VideoConfig, in_channels: int, out_channels: int, *, key: PRNGKeyArray):
        encoder_key, temporal_key, decoder_key = jax.random.split(key, 3)
        groups, remat = config.norm_groups, config.remat
        self.encoder = ResNetEncoder(
            in_channels,
            config.encoder_depths,
            config.encoder_blocks,
            groups=groups,
            remat=remat,
            key=encoder_key,
        )
        self.temporal = make_temporal(config, config.encoder_depths[-1], key=temporal_key)
        self.decoder = ResNetDecoder(
            self.temporal.out_channels,
            config.decoder_depths,
            config.decoder_blocks,
            out_channels,
            groups=groups,
            remat=remat,
            key=decoder_key,
        )
        self.config = config

    @property
    def dtype(self) -> jnp.dtype:
        """What the model computes in: the dtype that its weights were cast to."""
        return self.decoder.head.weight.dtype

    def init_state(self, length: int | None = None) -> Any:
        """The state before the first frame; a Transformer's has room for `length` frames, NaN comes after."""
        return self.temporal.init_state(length)

    def __call__(
        self,
        frames: Float[Array, "time height width channel"],
        actions: Int[Array, " time"] | None,
        state: Any,
        draws: Draws | None,
        key: PRNGKeyArray | None,
    ) -> VideoOutput:
        """Predictions of the frames after the first; the decoder's output is taken as it is."""
        steps = len(frames) - 1
        actions = known_actions(actions, len(frames))[1:]
        hide = jnp.zeros(steps, bool)
        kept, weights = jnp.arange(steps), jnp.full(steps, 1 / steps)
        if draws is not None:
            actions = jnp.where(draws.drop_actions, UNKNOWN_ACTION, actions)
            kept = jnp.minimum(draws.frames, steps - 1)
            weights = jnp.full(kept.shape, 1 / len(kept))
            if self.config.causal_masking:
                context = self.config.open_loop_context
                if steps < context:
                    raise ShapeError(
                        f"with causal_masking a clip must be longer than open_loop_context = {context} frames, "
                        f"so that there is something to predict after them; got {len(frames)} frames."
                    )
                hide = (jnp.arange(steps) >= context) & ~draws.drop_actions
                late = (kept >= context - 1).astype(weights.dtype)
                weights = jnp.where(draws.drop_actions, weights, late / (steps - context + 1))
        encoded = self.encoder(frames[:-1].astype(self.dtype))
        features, last = self.temporal(encoded, actions, hide, state, key=key)
        # An index beyond the last prediction, which the seed could draw and `draw` cannot, reads the last one
        # and gets no gradient: that is what indexing means to JAX, and what the recorded numbers have.
        chosen = features if draws is None or self.config.causal_masking else features[draws.frames]
        return VideoOutput(self.decoder(chosen), kept + 1, weights, features, last)

    def prepare(self) -> Prepared:
        """What `step` and `observe` take; fixed while the parameters are."""
        return Prepared(self.encoder.prepare(), self.temporal.prepare(), self.decoder.prepare())

    def step(
        self,
        frame: Float[Array, "height width channel"],
        action: Int[Array, ""],
        state: Any,
        hide: Bool[Array, ""],
        prepared: Prepared | None,
    ) -> StepOutput:
        """The prediction of the next frame."""
        prepared = self.prepare() if prepared is None else prepared
        out = self._advance(frame, action, state, hide, prepared)
        return StepOutput(frame_through(self.decoder, out.features, prepared.decoder), out.state)

    def _advance(
        self, frame: Array, action: Array, state: Any, hide: Array, prepared: Prepared
    ) -> TemporalOutput:
        features = frame_through(self.encoder, frame.astype(self.dtype), prepared.encoder)
        return self.temporal.step(features, action, hide, state, prepared.temporal)

    def observe(
        self,
        frames: Float[Array, "time height width channel"],
        actions: Int[Array, " time"],
        state: Any,
        prepared: Prepared,
        *,
        implementation: Literal["auto", "parallel", "per_frame"] = "auto",
    ) -> Any:
        """The state after `frames`, each with the action that follows it.

        "parallel" computes as a call does, "per_frame" in a loop, in which a frame's maps stay in a CPU's cache
        (of a Transformer only the encoder is in it): "auto" takes it there for long clips. It is for states that
        are wanted without a gradient, which keeps more in a loop and is no faster.
        """
        if not len(frames):
            return state
        if implementation == "auto":
            numbers = len(frames) * self.config.height * self.config.width * self.config.encoder_depths[0]
            long = numbers >= LONG_CLIP and not compiling_for_gpu()
            implementation = "per_frame" if long else "parallel"
        visible = jnp.zeros(len(frames), bool)
        if implementation == "parallel":
            encoded = self.encoder(frames.astype(self.dtype))
            return self.temporal(encoded, actions, visible, state).state
        if not self.temporal.recurrent:
            encode = lambda frame: frame_through(self.encoder, frame.astype(self.dtype), prepared.encoder)
            return self.temporal(lax.map(encode, frames), actions, visible, state).state

        def body(state, now):
            frame, action = now
            return self._advance(frame, action, state, jnp.zeros((), bool), prepared).state, None

        return lax.scan(body, state, (frames, actions))[0]

    def draw(self, length: int, *, key: PRNGKeyArray) -> Draws:
        """Draw whether the actions of a clip of `length` frames are dropped, and what to predict."""
        action_key, frame_key = jax.random.split(key)
        config, steps = self.config, length - 1
        kept = steps if config.causal_masking else max(1, int((1 - config.drop_loss) * steps))
        # Without replacement, and never beyond the last prediction (the seed draws that one twice as often).
        frames = (
            jnp.sort(jax.random.permutation(frame_key, steps)[:kept]) if kept < steps else jnp.arange(steps)
        )
        return Draws(jax.random.bernoulli(action_key, config.action_dropout), frames)


def frame_through(network: ResNetEncoder | ResNetDecoder, x: Array, kernels: ResamplingKernels) -> Array:
    """`network(x)` of a single frame, by the joined kernels that it prepared where these are faster."""
    # Not by `platform_dependent`, which traces both forms: a tenth of a second before every small rollout.
    return network(x) if compiling_for_gpu() else network.step(x, kernels)


def known_actions(actions: Array | None, length: int) -> Array:
    return jnp.full(length, UNKNOWN_ACTION) if actions is None else actions
