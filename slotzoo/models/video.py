"""Video prediction by a network around an exchangeable temporal core (Smith et al., NeurIPS 2023, section 5).

`VideoPixels` works on frames, `VideoTokens` on the codes of a frozen image tokenizer. Both take one clip. The core is
a stack of ConvS5, S5 or ConvLSTM layers, a Transformer or a Performer, as the configuration says. A call takes all
frames of a clip; `step` and `generate` carry a state, which has one size but for the Transformer's keys and values.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.models.checks import explained, rollout_sizes
from slotzoo.models.video_config import PixelsConfig, TokensConfig
from slotzoo.models.video_core import Draws, Prepared, StepOutput, VideoCore, VideoOutput, known_actions


class VideoTokens(eqx.Module):
    """A temporal core over the codes of an image tokenizer, whose codebook is an argument: it is not trained here."""

    core: VideoCore
    config: TokensConfig = eqx.field(static=True)

    def __init__(self, config: TokensConfig, *, key: PRNGKeyArray):
        self.core = VideoCore(config, config.code_dim, config.num_codes, key=key)
        self.config = config

    def init_state(self, length: int | None = None) -> Any:
        """The state before the first frame; a Transformer must be told for how many frames it has room."""
        return self.core.init_state(length)

    def draw(self, length: int, *, key: PRNGKeyArray) -> Draws:
        """The random choices of one training example of `length` frames; see `Draws`."""
        return self.core.draw(length, key=key)

    @explained(tokens="time {height} {width}", actions="time", codebook="{num_codes} {code_dim}")
    def __call__(
        self,
        tokens: Int[Array, "time height width"],
        actions: Int[Array, " time"] | None,
        codebook: Float[Array, "codes dim"],
        state: Any = None,
        *,
        draws: Draws | None = None,
        key: PRNGKeyArray | None = None,
    ) -> VideoOutput:
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
        state: Any,
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
        state = self.core.observe(codebook[context[:-1]], actions[1:first], self.init_state(length), prepared)

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


class VideoPixels(eqx.Module):
    """A temporal core over frames with values in [-1, 1]."""

    core: VideoCore
    config: PixelsConfig = eqx.field(static=True)

    def __init__(self, config: PixelsConfig, *, key: PRNGKeyArray):
        self.core = VideoCore(config, config.channels, config.channels, key=key)
        self.config = config

    def init_state(self, length: int | None = None) -> Any:
        """The state before the first frame; a Transformer must be told for how many frames it has room."""
        return self.core.init_state(length)

    def draw(self, length: int, *, key: PRNGKeyArray) -> Draws:
        """The random choices of one training example of `length` frames; see `Draws`."""
        return self.core.draw(length, key=key)

    @explained(video="time {height} {width} {channels}", actions="time")
    def __call__(
        self,
        video: Float[Array, "time height width channel"],
        actions: Int[Array, " time"] | None = None,
        state: Any = None,
        *,
        draws: Draws | None = None,
        key: PRNGKeyArray | None = None,
    ) -> VideoOutput:
        """Every frame after the first, given those before it; arguments as in `VideoTokens`."""
        out = self.core(video, actions, state, draws, key)
        return out._replace(prediction=jnp.tanh(out.prediction))

    @explained(frame="{height} {width} {channels}")
    def step(
        self,
        frame: Float[Array, "height width channel"],
        action: Int[Array, ""],
        state: Any,
        *,
        hide: Bool[Array, ""] | bool = False,
        prepared: Prepared | None = None,
    ) -> StepOutput:
        """The frame that `action` leads to from `frame`; arguments as in `VideoTokens.step`."""
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
        state = self.core.observe(context[:-1], actions[1:first], self.init_state(length), prepared)

        def body(carry, inputs):
            frame, state = carry
            action, hide = inputs
            out = self.core.step(frame, action, state, hide, prepared)
            frame = jnp.tanh(out.prediction).astype(context.dtype)
            return (frame, out.state), frame

        hide = (jnp.arange(steps) > 0) & open_loop
        _, generated = jax.lax.scan(body, (context[-1], state), (actions[first:], hide))
        return jnp.concatenate([context, generated])
