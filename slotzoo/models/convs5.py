"""ConvS5: video prediction with convolutional state-space models (Smith et al., NeurIPS 2023).

`ConvS5Pixels` works on frames, `ConvS5Tokens` on the codes of a frozen image tokenizer. Both take one clip. The
pass over a clip runs parallel over time; `step` and `generate` carry one state per layer and cost the same for
every frame. The network itself is in `convs5_core.py`.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.models.checks import explained, rollout_sizes
from slotzoo.models.convs5_core import (
    ConvS5Config,
    ConvS5Core,
    ConvS5Output,
    Draws,
    Prepared,
    StepOutput,
    known_actions,
)
from slotzoo.models.registry import ModelCard, register


@dataclasses.dataclass(frozen=True)
class ConvS5PixelsConfig(ConvS5Config):
    """`ConvS5Pixels`: frames of `channels` in [-1, 1]; `loss_weight` is the share of the squared error."""

    channels: int = 1
    loss_weight: float = 0.5


@dataclasses.dataclass(frozen=True)
class ConvS5TokensConfig(ConvS5Config):
    """`ConvS5Tokens`: `height` x `width` codes below `num_codes`, embedded in `code_dim` by the tokenizer."""

    num_codes: int = 1024
    code_dim: int = 256
    label_smoothing: float = 0.01


class ConvS5Tokens(eqx.Module):
    """ConvS5 over the codes of an image tokenizer, whose codebook is an argument: it is not trained here."""

    core: ConvS5Core
    config: ConvS5TokensConfig = eqx.field(static=True)

    def __init__(self, config: ConvS5TokensConfig, *, key: PRNGKeyArray):
        self.core = ConvS5Core(config, config.code_dim, config.num_codes, key=key)
        self.config = config

    def init_state(self) -> Float[Array, "layer latent_height latent_width planes"]:
        """The state before the first frame: zeros."""
        return self.core.init_state()

    def draw(self, length: int, *, key: PRNGKeyArray) -> Draws:
        """The random choices of one training example of `length` frames; see `Draws`."""
        return self.core.draw(length, key=key)

    @explained(tokens="time {height} {width}", actions="time", codebook="{num_codes} {code_dim}")
    def __call__(
        self,
        tokens: Int[Array, "time height width"],
        actions: Int[Array, " time"] | None,
        codebook: Float[Array, "codes dim"],
        state: Float[Array, "layer latent_height latent_width planes"] | None = None,
        *,
        draws: Draws | None = None,
        key: PRNGKeyArray | None = None,
    ) -> ConvS5Output:
        """Logits of the codes of every frame after the first, given those before it.

        - `actions[t]` leads to frame t (the first is not used); -1 or None: unknown.
        - `draws`: the random choices of a training example; None predicts plainly, every frame visible.
        - `key`: turns dropout inside the layers on.

        **Raises** `ShapeError` if the clip does not fit the configuration.
        """
        return self.core(codebook[tokens], actions, state, draws, key)

    @explained(token="{height} {width}", codebook="{num_codes} {code_dim}")
    def step(
        self,
        token: Int[Array, "height width"],
        action: Int[Array, ""],
        codebook: Float[Array, "codes dim"],
        state: Float[Array, "layer latent_height latent_width planes"],
        *,
        hide: Bool[Array, ""] | bool = False,
        prepared: Prepared | None = None,
    ) -> StepOutput:
        """Logits of the frame that `action` leads to from the frame `token`, which `hide` keeps from the model.

        `prepared` (`model.core.prepare()`) saves a loop over steps what depends on the parameters alone.
        """
        return self.core.step(codebook[token], action, state, jnp.asarray(hide), prepared)

    @explained(context="context {height} {width}", actions="length", codebook="{num_codes} {code_dim}")
    def generate(
        self,
        context: Int[Array, "context height width"],
        actions: Int[Array, " length"] | None,
        codebook: Float[Array, "codes dim"],
        length: int,
        *,
        key: PRNGKeyArray,
        temperature: float | Float[Array, ""] = 1.0,
        open_loop: bool | None = None,
    ) -> Int[Array, "length height width"]:
        """Continue `context` to `length` frames in one scan; the context is returned in front.

        Codes are drawn with `softmax(logits / temperature)`; 0 takes the likeliest. With `open_loop` the model
        sees no frame after the context, generated ones included, and goes by the actions alone; None means:
        if it was trained so (`causal_masking`) and there are actions.

        **Raises** `ShapeError` if the context is empty or not shorter than `length`.
        """
        first, steps = rollout_sizes(context, actions, length)
        open_loop = actions is not None and self.config.causal_masking if open_loop is None else open_loop
        actions = known_actions(actions, length)
        prepared = self.core.prepare()
        state = self.core.observe(codebook[context[:-1]], actions[1:first], self.init_state(), prepared)

        def body(carry, inputs):
            token, state = carry
            action, hide, key = inputs
            logits, state = self.core.step(codebook[token], action, state, hide, prepared)
            noise = jax.random.gumbel(key, logits.shape)
            token = jnp.argmax(logits.astype(jnp.float32) + temperature * noise, -1).astype(context.dtype)
            return (token, state), token

        # The last context frame is visible, as in training; the seed already hides it.
        hide = (jnp.arange(steps) > 0) & open_loop
        inputs = (actions[first:], hide, jax.random.split(key, steps))
        _, generated = jax.lax.scan(body, (context[-1], state), inputs)
        return jnp.concatenate([context, generated])


class ConvS5Pixels(eqx.Module):
    """ConvS5 over frames with values in [-1, 1]."""

    core: ConvS5Core
    config: ConvS5PixelsConfig = eqx.field(static=True)

    def __init__(self, config: ConvS5PixelsConfig, *, key: PRNGKeyArray):
        self.core = ConvS5Core(config, config.channels, config.channels, key=key)
        self.config = config

    def init_state(self) -> Float[Array, "layer latent_height latent_width planes"]:
        """The state before the first frame: zeros."""
        return self.core.init_state()

    def draw(self, length: int, *, key: PRNGKeyArray) -> Draws:
        """The random choices of one training example of `length` frames; see `Draws`."""
        return self.core.draw(length, key=key)

    @explained(video="time {height} {width} {channels}", actions="time")
    def __call__(
        self,
        video: Float[Array, "time height width channel"],
        actions: Int[Array, " time"] | None = None,
        state: Float[Array, "layer latent_height latent_width planes"] | None = None,
        *,
        draws: Draws | None = None,
        key: PRNGKeyArray | None = None,
    ) -> ConvS5Output:
        """Every frame after the first, given those before it; arguments as in `ConvS5Tokens`."""
        out = self.core(video, actions, state, draws, key)
        return out._replace(prediction=jnp.tanh(out.prediction))

    @explained(frame="{height} {width} {channels}")
    def step(
        self,
        frame: Float[Array, "height width channel"],
        action: Int[Array, ""],
        state: Float[Array, "layer latent_height latent_width planes"],
        *,
        hide: Bool[Array, ""] | bool = False,
        prepared: Prepared | None = None,
    ) -> StepOutput:
        """The frame that `action` leads to from `frame`; arguments as in `ConvS5Tokens.step`."""
        out = self.core.step(frame, action, state, jnp.asarray(hide), prepared)
        return StepOutput(jnp.tanh(out.prediction), out.state)

    @explained(context="context {height} {width} {channels}", actions="length")
    def generate(
        self,
        context: Float[Array, "context height width channel"],
        actions: Int[Array, " length"] | None,
        length: int,
        *,
        open_loop: bool | None = None,
    ) -> Float[Array, "length height width channel"]:
        """Continue `context` to `length` frames in one scan, feeding back what was predicted."""
        first, steps = rollout_sizes(context, actions, length)
        open_loop = actions is not None and self.config.causal_masking if open_loop is None else open_loop
        actions = known_actions(actions, length)
        prepared = self.core.prepare()
        state = self.core.observe(context[:-1], actions[1:first], self.init_state(), prepared)

        def body(carry, inputs):
            frame, state = carry
            action, hide = inputs
            out = self.core.step(frame, action, state, hide, prepared)
            frame = jnp.tanh(out.prediction).astype(context.dtype)
            return (frame, out.state), frame

        hide = (jnp.arange(steps) > 0) & open_loop
        _, generated = jax.lax.scan(body, (context[-1], state), (actions[first:], hide))
        return jnp.concatenate([context, generated])


_PAPER = "Smith, De Mello, Kautz, Linderman, Byeon: Convolutional State Space Models, NeurIPS 2023"
_SOURCE = "https://github.com/NVlabs/ConvSSM"
_LICENCE = "NVIDIA Source Code License (non-commercial)"

# Eight by eight codes of a small tokenizer: half a million parameters, minutes on two CPU cores.
_TOKENS_TINY = dict(
    height=8,
    width=8,
    encoder_depths=(32,),
    decoder_depths=(64,),
    decoder_blocks=1,
    layers=2,
    d_model=64,
    ssm_size=64,
    num_codes=256,
    code_dim=8,
    remat=False,
    scan_layers=False,
)

register(
    "convs5_dmlab",
    ConvS5TokensConfig(
        height=16,
        width=16,
        encoder_depths=(256,),
        decoder_depths=(512,),
        decoder_blocks=4,
        use_actions=True,
        num_actions=6,
        action_dim=16,
        action_dropout=0.5,
        layers=8,
        d_model=512,
        ssm_size=512,
        causal_masking=True,
        open_loop_context=144,
        remat=True,
    ),
    ConvS5Tokens,
    ModelCard(
        name="convs5_dmlab",
        title="ConvS5 on DMLab tokens",
        paper=_PAPER,
        section="5.2, appendix D",
        licence=_LICENCE,
        parameters=99_220_336,
        source=_SOURCE,
        metrics={
            "fvd@36": 66.0,
            "psnr@action_144": 23.2,
            "ssim@action_144": 0.769,
            "lpips@action_144": 0.079,
        },
        description=(
            "300 frames of 16 x 16 codes of a VQ-GAN, six actions; trained to predict open-loop with actions "
            "and on prediction without. FVD after 36 frames without actions, the rest after 144 with actions."
        ),
    ),
    tiny={**_TOKENS_TINY, "open_loop_context": 12},
)

_WORLD = ConvS5TokensConfig(
    height=16,
    width=16,
    encoder_depths=(256,),
    decoder_depths=(512,),
    decoder_blocks=4,
    use_actions=True,
    num_actions=6,
    action_dim=16,
    layers=8,
    d_model=512,
    ssm_size=512,
    drop_loss=0.9,
    remat=True,
)

register(
    "convs5_habitat",
    dataclasses.replace(_WORLD, action_dropout=0.5),
    ConvS5Tokens,
    ModelCard(
        name="convs5_habitat",
        title="ConvS5 on Habitat tokens",
        paper=_PAPER,
        section="5.3, appendix D",
        licence=_LICENCE,
        parameters=99_220_336,
        source=_SOURCE,
        metrics={},
        description=(
            "300 frames of 16 x 16 codes of 128 x 128 pixels, six actions; half of the clips are predicted without "
            "their actions, a tenth of the frames counts in each step."
        ),
    ),
    tiny=_TOKENS_TINY,
)

register(
    "convs5_minecraft",
    dataclasses.replace(_WORLD, layers=12),
    ConvS5Tokens,
    ModelCard(
        name="convs5_minecraft",
        title="ConvS5 on Minecraft tokens",
        paper=_PAPER,
        section="5.3, appendix D",
        licence=_LICENCE,
        parameters=136_988_528,
        source=_SOURCE,
        metrics={},
        description=(
            "300 frames of 16 x 16 codes of 128 x 128 pixels, six actions, always known; a tenth of the frames counts "
            "in each step."
        ),
    ),
    tiny=_TOKENS_TINY,
)

_MNIST = ConvS5PixelsConfig(
    height=64,
    width=64,
    channels=1,
    encoder_depths=(64, 128, 256),
    decoder_depths=(64, 128, 256),
    layers=8,
    clip_eigenvalues=True,
    loss_weight=0.5,
    remat=True,
)
_MNIST_TINY = dict(
    height=32,
    width=32,
    encoder_depths=(16, 32),
    decoder_depths=(16, 32),
    norm_groups=16,
    layers=2,
    d_model=32,
    ssm_size=32,
    remat=False,
    scan_layers=False,
)

register(
    "convs5_mnist300",
    dataclasses.replace(_MNIST, d_model=256, ssm_size=256),
    ConvS5Pixels,
    ModelCard(
        name="convs5_mnist300",
        title="ConvS5 on Moving-MNIST, trained on 300 frames",
        paper=_PAPER,
        section="5.1, appendix D",
        licence=_LICENCE,
        parameters=21_681_411,
        source=_SOURCE,
        metrics={
            "fvd@100_to_900": 72.0,
            "psnr@100_to_900": 16.5,
            "ssim@100_to_900": 0.761,
            "lpips@100_to_900": 0.156,
            "fvd@100_to_1300": 187.0,
            "psnr@100_to_1300": 14.5,
            "ssim@100_to_1300": 0.678,
            "lpips@100_to_1300": 0.23,
        },
        description="64 x 64 frames with two digits; 100 context frames, up to 1200 generated.",
    ),
    tiny=_MNIST_TINY,
)

register(
    "convs5_mnist600",
    dataclasses.replace(_MNIST, d_model=128, ssm_size=128),
    ConvS5Pixels,
    ModelCard(
        name="convs5_mnist600",
        title="ConvS5 on Moving-MNIST, trained on 600 frames",
        paper=_PAPER,
        section="5.1, appendix D",
        licence=_LICENCE,
        parameters=7_409_155,
        source=_SOURCE,
        metrics={
            "fvd@100_to_900": 47.0,
            "psnr@100_to_900": 16.4,
            "ssim@100_to_900": 0.788,
            "lpips@100_to_900": 0.134,
            "fvd@100_to_1300": 71.0,
            "psnr@100_to_1300": 15.6,
            "ssim@100_to_1300": 0.763,
            "lpips@100_to_1300": 0.162,
        },
        description="64 x 64 frames with two digits; 100 context frames, up to 1200 generated. Half as wide.",
    ),
    tiny=_MNIST_TINY,
)
