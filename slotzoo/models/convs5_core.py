"""The part that the ConvS5 models on pixels and on tokens share: options, outputs, and the network.

    frames -> encoder -> [features, action] -> 1x1 convolution -> ConvS5 layers -> decoder -> next frames

The input at t is frame t and the action that leads to frame t + 1; the prediction at t is frame t + 1.
"""

import dataclasses
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.nn.activations import Activation
from slotzoo.nn.conv import Conv
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.nn.conv_ssm_head import Head
from slotzoo.nn.conv_ssm_stack import ConvSSMLayer, ConvSSMStack, PreparedStack, StackOutput
from slotzoo.nn.linear import Embedding
from slotzoo.nn.resnet import ResamplingKernels, ResNetDecoder, ResNetEncoder
from slotzoo.ops.device import compiling_for_gpu


UNKNOWN_ACTION = -1
# Numbers in one map of the encoder over a clip from which a CPU observes it faster frame by frame. Two layers,
# two cores: equal at 0.5 million, 1.7 times as fast at 2 million, 1.9 times at 8 million; 0.7 times for small maps.
LONG_CLIP = 2**20


@dataclasses.dataclass(frozen=True)
class ConvS5Config:
    """What both models share. Sizes in pixels or tokens, `*_dim` and `*_depths` in channels."""

    height: int = 64
    width: int = 64
    # Encoder and decoder: one entry per resolution, each half of the one before.
    encoder_depths: tuple[int, ...] = (64, 128, 256)
    encoder_blocks: int = 1
    decoder_depths: tuple[int, ...] = (64, 128, 256)
    decoder_blocks: int = 1
    norm_groups: int = 32
    # Actions are integers below `num_actions`; -1 is an unknown action. Without `use_actions` all are 0.
    use_actions: bool = False
    num_actions: int = 1
    action_dim: int = 1
    action_dropout: float = 0.0
    # The stack of state-space layers.
    layers: int = 8
    d_model: int = 256
    ssm_size: int = 256
    ssm_blocks: int = 1
    kernel_b: int = 3
    kernel_c: int = 3
    kernel_d: int = 3
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    clip_eigenvalues: bool = False
    head: Head = "resnet"
    activation: Activation = "gelu"
    ssm_groups: int = 32
    squeeze_excite: bool = False
    use_norm: bool = True
    prenorm: bool = False
    residual: bool = True
    skip_connections: bool = False
    dropout: float = 0.0
    # Training on two tasks: a clip whose actions were dropped is predicted from its frames; of any other the
    # frames from `open_loop_context` on are hidden (features set to `hidden_value`): only actions tell more.
    causal_masking: bool = False
    open_loop_context: int = 144
    hidden_value: float = -2.0
    # The share of predictions that are not computed in training; ignored with `causal_masking`, as in the seed.
    drop_loss: float = 0.0
    # One layer in a loop compiles faster (for accelerators: XLA's CPU compiler is forty times slower at the
    # gradient of a convolution inside a loop); `remat` recomputes the inside of blocks in the backward pass.
    scan_layers: bool = True
    remat: bool = False

    def __post_init__(self):
        """Check that the sizes fit together."""
        for axis in ("height", "width"):
            if getattr(self, axis) % self.reduction:
                raise ConfigError(
                    f"{axis} = {getattr(self, axis)} cannot be halved {len(self.encoder_depths) - 1} times, as "
                    f"encoder_depths = {self.encoder_depths} wants."
                )
        if len(self.encoder_depths) != len(self.decoder_depths):
            raise ConfigError(
                f"encoder_depths = {self.encoder_depths} and decoder_depths = {self.decoder_depths} must have "
                "the same length, so that predictions are as large as frames."
            )
        for name in ("encoder_depths", "decoder_depths"):
            if any(depth % self.norm_groups for depth in getattr(self, name)):
                raise ConfigError(
                    f"{name} = {getattr(self, name)} must be multiples of norm_groups = {self.norm_groups}."
                )
        if self.head in ("resnet", "standard") and self.d_model % self.ssm_groups:
            raise ConfigError(f"d_model = {self.d_model} must be a multiple of ssm_groups = {self.ssm_groups}.")
        if self.ssm_size % (2 * self.ssm_blocks):
            raise ConfigError(
                f"ssm_size = {self.ssm_size} must be a multiple of twice ssm_blocks = {self.ssm_blocks}."
            )
        for name in ("action_dropout", "dropout", "drop_loss"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must lie in [0, 1).")

    @property
    def reduction(self) -> int:
        """How many times smaller the feature maps are than the frames."""
        return 2 ** (len(self.encoder_depths) - 1)


class Draws(NamedTuple):
    """The random choices of one training example.

    `drop_actions`: all actions are unknown. `frames`: the predictions to compute (0 is that of frame 1).
    """

    drop_actions: Bool[Array, ""]
    frames: Int[Array, " kept"]


class ConvS5Output(NamedTuple):
    """Predictions of frames `frames` of the clip: logits over codes, or pixels in [-1, 1].

    `weights` sum to one: the share of each prediction in the loss of this clip. `features` are the outputs of
    the state-space layers for every step, `state` is the one after the last.
    """

    prediction: Float[Array, "kept height width channel"]
    frames: Int[Array, " kept"]
    weights: Float[Array, " kept"]
    features: Float[Array, "steps latent_height latent_width d_model"]
    state: Float[Array, "layer latent_height latent_width planes"]


class StepOutput(NamedTuple):
    """The prediction of the next frame (logits or pixels) and the next state."""

    prediction: Float[Array, "height width channel"]
    state: Float[Array, "layer latent_height latent_width planes"]


class Prepared(NamedTuple):
    """What `step` computes from the parameters alone; a loop over steps has it made once, before it."""

    encoder: ResamplingKernels
    sequence: PreparedStack
    decoder: ResamplingKernels


class ConvS5Core(eqx.Module):
    """What the two models share: from feature inputs and actions to decoded maps."""

    encoder: ResNetEncoder
    action_embedding: Embedding
    input_conv: Conv
    sequence: ConvSSMStack
    decoder: ResNetDecoder
    config: ConvS5Config = eqx.field(static=True)

    def __init__(self, config: ConvS5Config, in_channels: int, out_channels: int, *, key: PRNGKeyArray):
        encoder_key, action_key, conv_key, decoder_key, *layer_keys = jax.random.split(key, 4 + config.layers)
        groups, remat = config.norm_groups, config.remat
        self.encoder = ResNetEncoder(
            in_channels,
            config.encoder_depths,
            config.encoder_blocks,
            groups=groups,
            remat=remat,
            key=encoder_key,
        )
        self.action_embedding = Embedding(config.num_actions + 1, config.action_dim, key=action_key)
        self.input_conv = Conv(config.encoder_depths[-1] + config.action_dim, config.d_model, 1, key=conv_key)
        self.sequence = ConvSSMStack(
            tuple(ssm_layer(config, layer_key) for layer_key in layer_keys),
            skip_connections=config.skip_connections,
            scan_layers=config.scan_layers,
            remat=remat,
        )
        self.decoder = ResNetDecoder(
            config.d_model,
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
        return self.input_conv.weight.dtype

    def init_state(self) -> Float[Array, "layer latent_height latent_width planes"]:
        """The zero states of all layers."""
        reduction = self.config.reduction
        return self.sequence.init_state(self.config.height // reduction, self.config.width // reduction)

    def inputs(
        self,
        frames: Float[Array, "*time height width channel"],
        actions: Int[Array, "*time"],
        hide: Bool[Array, "*time"],
    ) -> Float[Array, "*time latent_height latent_width d_model"]:
        """Encoded frames (hidden ones as a constant) joined with the embedded actions."""
        return self._joined(self.encoder(frames.astype(self.dtype)), actions, hide)

    def _joined(self, features: Array, actions: Array, hide: Array) -> Array:
        hidden = jnp.full_like(features, self.config.hidden_value)
        features = jnp.where(hide[..., None, None, None], hidden, features)
        if not self.config.use_actions:
            actions = jnp.zeros_like(actions)
        embedded = self.action_embedding(actions).astype(features.dtype)[..., None, None, :]
        embedded = jnp.broadcast_to(embedded, (*features.shape[:-1], embedded.shape[-1]))
        return self.input_conv(jnp.concatenate([features, embedded], -1))

    def __call__(
        self,
        frames: Float[Array, "time height width channel"],
        actions: Int[Array, " time"] | None,
        state: Float[Array, "layer latent_height latent_width planes"] | None,
        draws: Draws | None,
        key: PRNGKeyArray | None,
    ) -> ConvS5Output:
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
        inputs = self.inputs(frames[:-1], actions, hide)
        features, last = self.sequence(inputs, state, key=key)
        # An index beyond the last prediction, which the seed could draw and `draw` cannot, reads the last one
        # and gets no gradient: that is what indexing means to JAX, and what the recorded numbers have.
        chosen = features if draws is None or self.config.causal_masking else features[draws.frames]
        return ConvS5Output(self.decoder(chosen), kept + 1, weights, features, last)

    def prepare(self) -> Prepared:
        """What `step` and `observe` take; fixed while the parameters are."""
        return Prepared(self.encoder.prepare(), self.sequence.prepare(), self.decoder.prepare())

    def step(
        self,
        frame: Float[Array, "height width channel"],
        action: Int[Array, ""],
        state: Float[Array, "layer latent_height latent_width planes"],
        hide: Bool[Array, ""],
        prepared: Prepared | None,
    ) -> StepOutput:
        """The prediction of the next frame."""
        prepared = self.prepare() if prepared is None else prepared
        out = self._advance(frame, action, state, hide, prepared)
        return StepOutput(frame_through(self.decoder, out.output, prepared.decoder), out.state)

    def _advance(
        self, frame: Array, action: Array, state: Array, hide: Array, prepared: Prepared
    ) -> StackOutput:
        features = frame_through(self.encoder, frame.astype(self.dtype), prepared.encoder)
        return self.sequence.step(self._joined(features, action, hide), state, prepared=prepared.sequence)

    def observe(
        self,
        frames: Float[Array, "time height width channel"],
        actions: Int[Array, " time"],
        state: Float[Array, "layer latent_height latent_width planes"],
        prepared: Prepared,
        *,
        implementation: Literal["auto", "parallel", "per_frame"] = "auto",
    ) -> Float[Array, "layer latent_height latent_width planes"]:
        """The state after `frames`, each with the action that follows it.

        "parallel" computes as a call does, "per_frame" in a loop, in which a frame's maps stay in a CPU's cache:
        "auto" takes it there for long clips. Gradients of kernels are slow in a loop on a CPU: take none of this.
        """
        if not len(frames):
            return state
        if implementation == "auto":
            numbers = len(frames) * self.config.height * self.config.width * self.config.encoder_depths[0]
            long = numbers >= LONG_CLIP and not compiling_for_gpu()
            implementation = "per_frame" if long else "parallel"
        if implementation == "parallel":
            return self.sequence(self.inputs(frames, actions, jnp.zeros(len(frames), bool)), state).state

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


def ssm_layer(config: ConvS5Config, key: PRNGKeyArray) -> ConvSSMLayer:
    """One layer of the stack that `config` describes."""
    ssm = ConvSSM(
        config.d_model,
        config.ssm_size,
        blocks=config.ssm_blocks,
        kernel_b=config.kernel_b,
        kernel_c=config.kernel_c,
        kernel_d=config.kernel_d,
        dt_min=config.dt_min,
        dt_max=config.dt_max,
        clip_eigenvalues=config.clip_eigenvalues,
        head=config.head,
        activation=config.activation,
        groups=config.ssm_groups,
        squeeze_excite=config.squeeze_excite,
        key=key,
    )
    return ConvSSMLayer(
        ssm, dropout=config.dropout, use_norm=config.use_norm, prenorm=config.prenorm, residual=config.residual
    )


def known_actions(actions: Array | None, length: int) -> Array:
    return jnp.full(length, UNKNOWN_ACTION) if actions is None else actions
