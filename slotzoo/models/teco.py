"""TECO: video prediction through quantised latents that change over time (Yan et al., ICML 2023).

    z_t = quantise(encode(x_{t-1}, x_t))      h_t = temporal(z_{<t}, actions)      p(z_t | h_t): MaskGIT
    p(x_t | z_t, h_t): decoder, over the codes x_t of a frozen image tokenizer

`temporal` is a ConvS5, an S5 or a Transformer (Smith et al., NeurIPS 2023, section 5.2). It takes one clip. The pass
over a clip runs parallel over time, `step` and `generate` frame by frame; see `slotzoo/models/temporal.py` for what
is remembered.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import ShapeError
from slotzoo.losses import token_cross_entropy
from slotzoo.models.checks import explained, rollout_sizes
from slotzoo.models.maskgit import MaskGIT, Sampling
from slotzoo.models.teco_config import TECOConfig
from slotzoo.models.teco_outputs import (
    Prepared,
    TECODraws,
    TECOOutput,
    TECOState,
    TECOStep,
    TECOTraining,
)
from slotzoo.models.temporal import Temporal, make_temporal
from slotzoo.models.video_core import UNKNOWN_ACTION, frame_through, known_actions
from slotzoo.nn.codebook import Codebook
from slotzoo.nn.linear import Linear
from slotzoo.nn.resnet import ResNetDecoder, ResNetEncoder


class TECO(eqx.Module):
    """TECO over the codes of an image tokenizer, whose codebook is an argument: it is not trained here."""

    first: Float[Array, "height width dim"]  # stands before the first frame
    encoder: ResNetEncoder
    to_latent: Linear
    codebook: Codebook
    temporal: Temporal
    prior: MaskGIT
    decoder: ResNetDecoder
    # The authors' TECO with S5 declares this and never uses it; kept so that checkpoints go both ways.
    unused: Float[Array, "1 1 d_model"] | None
    config: TECOConfig = eqx.field(static=True)

    def __init__(self, config: TECOConfig, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 7)
        c = config
        groups, remat = c.norm_groups, c.remat
        latent = (c.height // c.reduction, c.width // c.reduction)
        self.first = 0.02 * jax.random.normal(keys[0], (c.height, c.width, c.code_dim))
        self.encoder = ResNetEncoder(
            2 * c.code_dim, c.encoder_depths, c.encoder_blocks, groups=groups, remat=remat, key=keys[1]
        )
        self.to_latent = Linear(c.encoder_depths[-1], c.embedding_dim, key=keys[2])
        self.codebook = Codebook(c.latent_codes, c.latent_code_dim, c.embedding_dim, key=keys[3])
        self.temporal = make_temporal(c, c.embedding_dim, key=keys[4])
        self.prior = MaskGIT(
            c.latent_codes,
            self.temporal.out_channels,
            latent,
            vocab_dim=c.prior_vocab_dim,
            dim=c.prior_dim,
            mlp_dim=c.prior_mlp_dim,
            heads=c.prior_heads,
            layers=c.prior_layers,
            schedule=c.prior_schedule,
            dropout=c.dropout,
            remat=remat,
            key=keys[5],
        )
        self.decoder = ResNetDecoder(
            self.temporal.out_channels + c.embedding_dim,
            c.decoder_depths,
            c.decoder_blocks,
            c.num_codes,
            groups=groups,
            remat=remat,
            key=keys[6],
        )
        self.unused = jnp.zeros((1, 1, c.d_model)) if c.temporal == "s5" else None
        self.config = config

    @property
    def dtype(self) -> jnp.dtype:
        """What the model computes in: the dtype that its weights were cast to."""
        return self.to_latent.weight.dtype

    def init_state(self, length: int | None = None) -> TECOState:
        """The state before the first frame. With a Transformer inside it has room for `length` frames."""
        return TECOState(self.temporal.init_state(length), self.first.astype(self.dtype), jnp.zeros((), bool))

    def draw(self, length: int, *, key: PRNGKeyArray) -> TECODraws:
        """The random choices of one training example of `length` frames; see `TECODraws`."""
        action_key, frame_key, hidden_key = jax.random.split(key, 3)
        c, steps = self.config, length - 1
        kept = max(1, int((1 - c.drop_loss) * steps))
        if c.drop_loss == 0:
            frames = jnp.arange(steps)
        elif c.authors_frames:
            frames = jax.random.randint(frame_key, (kept,), 0, length)
        else:
            frames = jnp.sort(jax.random.permutation(frame_key, steps)[:kept])
        hidden = jax.vmap(lambda key: self.prior.draw_hidden(key=key))(jax.random.split(hidden_key, kept))
        return TECODraws(jax.random.bernoulli(action_key, c.action_dropout), frames, hidden)

    @explained(tokens="time {height} {width}", actions="time", codebook="{num_codes} {code_dim}")
    def __call__(
        self,
        tokens: Int[Array, "time height width"],
        actions: Int[Array, " time"] | None,
        codebook: Float[Array, "codes dim"],
        state: TECOState | None = None,
        *,
        draws: TECODraws | None = None,
        key: PRNGKeyArray | None = None,
    ) -> TECOOutput:
        """Logits of the codes of every frame after the first, given those before it.

        The latents are the likeliest ones of the prior, all places at once; samples are the business of
        `generate`, training that of `loss`.

        - `actions[t]` leads to frame t (the first is not used); -1 or None: unknown.
        - `draws`: the task of a training example (only `drop_actions` counts); None: every frame is visible.
        - `key`: turns dropout on.

        **Raises** `ShapeError` if the clip does not fit the configuration.
        """
        steps = len(tokens) - 1
        actions, hide = self._task(actions, steps, draws)
        weights = jnp.full(steps, 1 / steps)
        if draws is not None and self.config.causal_masking:
            context = self.config.open_loop_context
            late = (jnp.arange(steps) >= context - 1).astype(weights.dtype) / (steps - context + 1)
            weights = jnp.where(draws.drop_actions, weights, late)
        embeddings = codebook[tokens[:-1]].astype(self.dtype)
        latents, previous, started = self._latents(embeddings, state)
        memory = None if state is None else state.temporal
        features, memory = self.temporal(latents, actions, hide, memory, key=key)
        likely = jax.vmap(self._likeliest)(features)
        prediction = self._decoded(features, likely)
        after = TECOState(memory, previous, started)
        return TECOOutput(prediction, jnp.arange(steps) + 1, weights, features, after)

    def loss(
        self,
        tokens: Int[Array, "time height width"],
        actions: Int[Array, " time"] | None,
        codebook: Float[Array, "codes dim"],
        *,
        draws: TECODraws,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Reconstruction, prior, commitment and codebook loss of one clip, summed, and its terms.

        Reconstruction: cross-entropy with smoothed labels, summed over a frame. Prior: mean cross-entropy of the
        codes that it had to guess, times the number of codes of a frame. Terms are nats per code.
        """
        out = self.training(tokens, actions, codebook, draws=draws, key=key)
        target = tokens[out.frames]
        smoothed = token_cross_entropy(out.reconstruction, target, smoothing=self.config.label_smoothing)
        guesses = token_cross_entropy(out.prior, out.codes)
        scored = out.scored.astype(guesses.dtype)
        prior = jnp.sum(scored * guesses) / jnp.maximum(scored.sum(), 1)
        places = out.codes.shape[1] * out.codes.shape[2]
        q = out.quantised
        total = smoothed.sum((1, 2)).mean() + places * prior + q.commitment + q.codebook
        return total, {
            "reconstruction": token_cross_entropy(out.reconstruction, target).mean(),
            "prior": prior,
            "commitment": q.commitment,
            "codebook": q.codebook,
            "perplexity": q.perplexity,
        }

    @explained(tokens="time {height} {width}", actions="time", codebook="{num_codes} {code_dim}")
    def training(
        self,
        tokens: Int[Array, "time height width"],
        actions: Int[Array, " time"] | None,
        codebook: Float[Array, "codes dim"],
        *,
        draws: TECODraws,
        key: PRNGKeyArray | None = None,
    ) -> TECOTraining:
        """What `loss` is made of. With `causal_masking` and known actions, late frames are hidden from the core."""
        steps = len(tokens) - 1
        core_key, prior_key = (None, None) if key is None else jax.random.split(key)
        actions, hide = self._task(actions, steps, draws)
        encoded = self._encode(codebook[tokens].astype(self.dtype), self.first)
        # The first frame is not predicted and its latents stay as they are; in the losses of the codebook it counts.
        quantised = self.codebook(encoded)
        embeddings = quantised.embeddings.astype(self.dtype)
        latents = jnp.concatenate([encoded[:1], embeddings[1:-1]])
        features = self.temporal(latents, actions, hide, key=core_key).features

        # An index beyond the last prediction, which the authors draw and `draw` does only with `authors_frames`, reads
        # the last one and gets no gradient: that is what indexing means to JAX, and what the recorded numbers have.
        kept = jnp.minimum(draws.frames, steps - 1)
        features, codes = features[draws.frames], quantised.codes[kept + 1]
        scored = self.scored(draws, steps)
        guess = lambda codes, features, hidden, key: self.prior(codes, features, hidden, key=key)
        keys = None if prior_key is None else jax.random.split(prior_key, len(kept))
        prior = jax.vmap(guess, (0, 0, 0, None if keys is None else 0))(codes, features, draws.hidden, keys)
        reconstruction = self._decoded(features, embeddings[1:][draws.frames])
        return TECOTraining(reconstruction, kept + 1, prior, codes, scored, latents, quantised)

    def scored(self, draws: TECODraws, steps: int) -> Bool[Array, "kept latent_height latent_width"]:
        """Which of the hidden codes count in the prior's loss; see `TECOConfig.prior_frames`."""
        c = self.config
        if not c.causal_masking or c.prior_frames == "all":
            return draws.hidden
        asked = jnp.minimum(draws.frames, steps - 1) >= c.open_loop_context - 1
        asked = asked | draws.drop_actions if c.prior_frames == "task" else asked
        return draws.hidden & asked[:, None, None]

    def prepare(self) -> Prepared:
        """What `step` takes; fixed while the parameters are."""
        return Prepared(self.encoder.prepare(), self.temporal.prepare(), self.decoder.prepare())

    @explained(token="{height} {width}", codebook="{num_codes} {code_dim}")
    def step(
        self,
        token: Int[Array, "height width"],
        action: Int[Array, ""],
        codebook: Float[Array, "codes dim"],
        state: TECOState,
        *,
        hide: Bool[Array, ""] | bool = False,
        prepared: Prepared | None = None,
    ) -> TECOStep:
        """Logits of the frame that `action` leads to from the frame `token`, as in a call."""
        prepared = self.prepare() if prepared is None else prepared
        embeddings = codebook[token].astype(self.dtype)
        pair = jnp.concatenate([state.previous, embeddings], -1)
        encoded = self.to_latent(frame_through(self.encoder, pair, prepared.encoder))
        latents = jnp.where(state.started, self.codebook(encoded).embeddings.astype(encoded.dtype), encoded)
        features, memory = self.temporal.step(
            latents, action, jnp.asarray(hide), state.temporal, prepared.temporal
        )
        x = jnp.concatenate([features, self._likeliest(features).astype(features.dtype)], -1)
        logits = frame_through(self.decoder, x, prepared.decoder)
        return TECOStep(logits, TECOState(memory, embeddings, jnp.ones((), bool)))

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
        sampling: Sampling | None = None,
    ) -> Int[Array, "length height width"]:
        """Continue `context` to `length` frames in one scan; the context is returned in front.

        Latents are drawn from the prior at `temperature` (0: the likeliest), as `sampling` says (the
        configuration's if None); the codes of a frame are the likeliest ones for them, as in the authors' code.
        With `open_loop` the core sees no latents after the context; None means: if it was trained so.

        **Raises** `ShapeError` if the context is empty or not shorter than `length`.
        """
        first, steps = rollout_sizes(context, actions, length)
        open_loop = actions is not None and self.config.causal_masking if open_loop is None else open_loop
        actions = known_actions(actions, length)
        sampling = self.config.sampling if sampling is None else sampling
        prepared = self.prepare()
        latents = self._latents(codebook[context].astype(self.dtype), None)[0]
        memory = self.temporal.init_state(length)
        if first > 1:
            visible = jnp.zeros(first - 1, bool)
            memory = self.temporal(latents[:-1], actions[1:first], visible, memory).state

        def body(carry, inputs):
            latents, memory = carry
            action, hide, key = inputs
            features, memory = self.temporal.step(latents, action, hide, memory, prepared.temporal)
            codes = self.prior.sample(features, sampling, key=key, temperature=temperature)
            latents = self.codebook.lookup(codes).astype(latents.dtype)
            logits = frame_through(self.decoder, jnp.concatenate([features, latents], -1), prepared.decoder)
            return (latents, memory), jnp.argmax(logits, -1).astype(context.dtype)

        # The last context frame is visible, as in training; the authors already hide it.
        hide = (jnp.arange(steps) > 0) & open_loop
        inputs = (actions[first:], hide, jax.random.split(key, steps))
        _, generated = jax.lax.scan(body, (latents[-1], memory), inputs)
        return jnp.concatenate([context, generated])

    def _task(self, actions: Array | None, steps: int, draws: TECODraws | None) -> tuple[Array, Array]:
        """The action that leads to each prediction, and which latents the core must not see."""
        actions, hide = known_actions(actions, steps + 1)[1:], jnp.zeros(steps, bool)
        if draws is None:
            return actions, hide
        actions = jnp.where(draws.drop_actions, UNKNOWN_ACTION, actions)
        if self.config.causal_masking:
            context = self.config.open_loop_context
            if steps < context:
                raise ShapeError(
                    f"with causal_masking a clip must be longer than open_loop_context = {context} frames, "
                    f"so that there is something to predict after them; got {steps + 1} frames."
                )
            hide = (jnp.arange(steps) >= context) & ~draws.drop_actions
        return actions, hide

    def _encode(self, embeddings: Array, previous: Array) -> Array:
        """Every frame together with the one before it."""
        before = jnp.concatenate([previous.astype(embeddings.dtype)[None], embeddings[:-1]])
        return self.to_latent(self.encoder(jnp.concatenate([before, embeddings], -1)))

    def _latents(self, embeddings: Array, state: TECOState | None) -> tuple[Array, Array, Array]:
        """What the core sees of each frame (the first of all is not quantised), and what the state keeps."""
        previous = self.first if state is None else state.previous
        started = jnp.zeros((), bool) if state is None else state.started
        encoded = self._encode(embeddings, previous)
        quantised = self.codebook(encoded).embeddings.astype(encoded.dtype)
        plain = (jnp.arange(len(encoded)) == 0) & ~started
        latents = jnp.where(plain[:, None, None, None], encoded, quantised)
        return latents, embeddings[-1], jnp.ones((), bool)

    def _likeliest(self, features: Array) -> Array:
        """The embeddings of the latents that the prior holds for likeliest, seeing none of them."""
        nothing = jnp.full(self.prior.grid, -1, jnp.int32)
        logits = self.prior(nothing, features, jnp.ones(self.prior.grid, bool))
        return self.codebook.lookup(jnp.argmax(logits, -1))

    def _decoded(self, features: Array, latents: Array) -> Array:
        return self.decoder(jnp.concatenate([features, latents.astype(features.dtype)], -1))
