"""SLATE: slots from image tokens, decoded by a transformer (Singh, Deng, Ahn, ICLR 2022).

log_p = dvae.encode(image)                         soft ~ Gumbel-softmax(log_p, tau), codes ~ Categorical(log_p)
slots = slot_attention(embed(codes))               mse = |image - dvae.decode(soft)|^2
loss = mse - sum_i log p(code_i | code_<i, slots)  two halves: tokens are integers, no gradient passes them
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.models.checks import explained
from slotzoo.models.objects import ObjectsOutput
from slotzoo.models.registry import ModelCard, register
from slotzoo.nn.discrete_vae import PATCH, DiscreteVAE, gumbel_softmax, straight_through
from slotzoo.nn.dropout import dropout
from slotzoo.nn.linear import Linear
from slotzoo.nn.slate_transformer import TransformerDecoder
from slotzoo.nn.slot_attention import SlotAttention, SlotAttentionOutput
from slotzoo.ops.random_words import gumbel_noise


@dataclasses.dataclass(frozen=True)
class SLATEConfig:
    """Sizes, named as in the published configuration; what that does not have stands below the line."""

    resolution: int = 128  # side of an image in pixels, a multiple of 4
    num_slots: int = 7
    num_iterations: int = 3
    slot_size: int = 192
    mlp_hidden_size: int = 192
    vocab_size: int = 4096
    d_model: int = 192
    num_dec_blocks: int = 8
    num_heads: int = 8
    dropout: float = 0.1
    tau_start: float = 1.0  # temperature of the relaxation: half a cosine from tau_start to tau_final
    tau_final: float = 0.1
    tau_steps: int = 30_000
    hard: bool = False  # decode straight-through one-hot codes in training, not relaxed ones
    # ----
    in_channels: int = 3
    num_slot_heads: int = 1
    gradient: Literal["explicit", "implicit", "neumann"] = "implicit"  # of slot attention; implicit adds a step
    dvae_width: int = 64

    @property
    def low(self) -> float:
        """The least value of an image."""
        return 0.0

    @property
    def high(self) -> float:
        """The largest value of an image."""
        return 1.0

    @property
    def side(self) -> int:
        """Tokens along one side of an image."""
        return self.resolution // PATCH


class SLATEDraws(NamedTuple):
    """The random numbers of one training example: Gumbel noise for the relaxed and for the integer codes."""

    soft: Float[Array, "side side code"]
    codes: Float[Array, "side side code"]
    slots: Float[Array, "slot dim"]  # standard normal


class SLATEOutput(NamedTuple):
    """One image as the training sees it."""

    reconstruction: Float[Array, "height width channel"]  # of the dVAE from relaxed codes; not clipped
    codes: Int[Array, " token"]
    logits: Float[Array, "token code"]  # of every code given those before it and the slots
    slots: Float[Array, "slot dim"]
    attention: Float[Array, "token slot"]


class SLATE(eqx.Module):
    """A dVAE, slot attention over its tokens, and a transformer that generates them again from the slots.

    Takes one image with values in [0, 1]; batch it with `jax.vmap`.
    """

    dvae: DiscreteVAE
    dictionary: Float[Array, "row d_model"]  # row 0 begins a sequence, row k + 1 is code k
    position: Float[Array, "place d_model"]
    slot_attention: SlotAttention
    slot_proj: Linear
    decoder: TransformerDecoder
    out: Linear
    config: SLATEConfig = eqx.field(static=True)

    def __init__(self, config: SLATEConfig, *, key: PRNGKeyArray):
        _check(config)
        c = config
        dvae_key, table_key, place_key, slots_key, proj_key, decoder_key, out_key = jax.random.split(key, 7)
        self.dvae = DiscreteVAE(c.in_channels, c.vocab_size, width=c.dvae_width, key=dvae_key)
        self.dictionary = jax.random.normal(table_key, (c.vocab_size + 1, c.d_model))
        self.position = jax.random.truncated_normal(place_key, -2.0, 2.0, (1 + c.side**2, c.d_model))
        self.slot_attention = SlotAttention(
            c.d_model,
            c.slot_size,
            mlp_dim=c.mlp_hidden_size,
            heads=c.num_slot_heads,
            input_mlp=True,
            gradient=c.gradient,
            key=slots_key,
        )
        self.slot_proj = Linear(c.slot_size, c.d_model, bias=False, init=glorot_uniform(), key=proj_key)
        self.decoder = TransformerDecoder(
            c.d_model, c.num_dec_blocks, heads=c.num_heads, dropout=c.dropout, key=decoder_key
        )
        self.out = Linear(c.d_model, c.vocab_size, bias=False, init=glorot_uniform(), key=out_key)
        self.config = config

    def draw(self, key: PRNGKeyArray, *, slots: int | None = None) -> SLATEDraws:
        """The random numbers of one example, for `slots` slots in place of the configured number."""
        c = self.config
        soft_key, codes_key, slots_key = jax.random.split(key, 3)
        grid = (c.side, c.side, c.vocab_size)
        return SLATEDraws(
            gumbel_noise(soft_key, grid),
            gumbel_noise(codes_key, grid),
            jax.random.normal(slots_key, (c.num_slots if slots is None else slots, c.slot_size)),
        )

    def temperature(self, step: int | Int[Array, ""]) -> Float[Array, ""]:
        """`final + (start - final) (1 + cos(pi s)) / 2` with `s = step / tau_steps`, at most 1."""
        c = self.config
        s = jnp.clip(jnp.asarray(step).astype(jnp.float32) / max(c.tau_steps, 1), 0.0, 1.0)
        return c.tau_final + (c.tau_start - c.tau_final) * 0.5 * (1 + jnp.cos(jnp.pi * s))

    @explained(image="{resolution} {resolution} {in_channels}")
    def __call__(
        self,
        image: Float[Array, "height width channel"],
        *,
        draws: SLATEDraws,
        step: int | Int[Array, ""] = 0,
        temperature: float | Float[Array, ""] | None = None,
        iterations: int | None = None,
        key: PRNGKeyArray | None = None,
    ) -> SLATEOutput:
        """The training's forward pass at `temperature`, that of `step` unless given. A `key` turns dropout on."""
        c = self.config
        tau = self.temperature(step) if temperature is None else temperature
        code_logits = self._encode(image)
        z = gumbel_softmax(code_logits, draws.soft, tau)
        z = straight_through(z) if c.hard else z
        reconstruction = self.dvae.decode(z.astype(self.out.weight.dtype))
        # The largest of log_p + Gumbel noise is a sample of the codes, whatever the temperature.
        codes = _largest(jax.lax.stop_gradient(code_logits) + draws.codes).reshape(-1)

        embed_key, decoder_key = (None, None) if key is None else jax.random.split(key)
        embedded = dropout(self.embed(codes), c.dropout, embed_key)
        found = self.attend(embedded[1:], draws.slots, iterations=iterations)
        decoded = self.decoder(embedded[:-1], self.slot_proj(found.slots), key=decoder_key)
        return SLATEOutput(reconstruction, codes, self.out(decoded), found.slots, found.attention)

    def loss(
        self,
        image: Float[Array, "height width channel"],
        *,
        draws: SLATEDraws | None = None,
        key: PRNGKeyArray | None = None,
        step: int | Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """`cross_entropy + mse`: nats summed over tokens, squared errors summed over pixels and channels.

        A `key` draws what `draws` leaves out and turns dropout on. **Raises** ConfigError without both.
        """
        draw_key, dropout_key = (None, None) if key is None else jax.random.split(key)
        if draws is None:
            if draw_key is None:
                raise ConfigError("SLATE.loss draws codes and slots at random: give it a key, or draws.")
            draws = self.draw(draw_key)
        out: SLATEOutput = self(image, draws=draws, step=step, key=dropout_key)
        logits = out.logits.astype(jnp.float32)
        # Chosen by comparison and not by index: the gradient is then a subtraction, and no scatter.
        chosen = jnp.arange(logits.shape[-1])[None, :] == out.codes[:, None]
        cross_entropy = (jax.nn.logsumexp(logits, axis=-1) - jnp.where(chosen, logits, 0.0).sum(-1)).sum()
        error = image.astype(jnp.float32) - out.reconstruction.astype(jnp.float32)
        mse = jnp.square(error).sum()
        terms = {"cross_entropy": cross_entropy, "mse": mse, "temperature": self.temperature(step)}
        return cross_entropy + mse, terms

    @explained(image="{resolution} {resolution} {in_channels}")
    def explain(
        self,
        image: Float[Array, "height width channel"],
        *,
        key: PRNGKeyArray | None = None,
        draws: Float[Array, "slot dim"] | SLATEDraws | None = None,
        slots: int | None = None,
        iterations: int | None = None,
    ) -> ObjectsOutput:
        """The image from its most likely codes: attention maps as masks, and what the slots alone generate.

        `reconstruction` is the greedy generation from the slots, `extra["dvae"]` what the dVAE makes of the
        codes without them; both in [0, 1]. A picture shows the image where the slot looks, white elsewhere.
        The initial slots come from `draws` or from `key`. **Raises** ConfigError without both.
        """
        noise = self._slot_noise(key, draws, slots)
        codes = self.codes(image)
        found = self.attend(self.embed(codes)[1:], noise, iterations=iterations)
        generated = self.generate(found.slots)
        masks = self.maps(found.attention).astype(image.dtype)
        pictures = image[None] * masks[..., None] + (1 - masks[..., None])
        extra = {"dvae": self.picture(codes), "codes": codes, "generated": generated}
        return ObjectsOutput(self.picture(generated), masks, pictures, found.slots, extra)

    def codes(self, image: Float[Array, "height width channel"]) -> Int[Array, " token"]:
        """The most likely code of each place, row by row."""
        return jnp.argmax(self._encode(image), axis=-1).reshape(-1)

    def embed(self, codes: Int[Array, " token"]) -> Float[Array, "place d_model"]:
        """Rows of the dictionary with positions added: the begin of the sequence, then every code."""
        rows = jnp.concatenate([jnp.zeros(1, codes.dtype), codes + 1])
        return self.dictionary[rows] + self.position

    def attend(
        self,
        embedded: Float[Array, "token d_model"],
        noise: Float[Array, "slot dim"],
        *,
        iterations: int | None = None,
    ) -> SlotAttentionOutput:
        """Slots of embedded codes; `noise` is standard normal, its length the number of slots."""
        start = self.slot_attention.sample_slots(len(noise), noise=noise).astype(embedded.dtype)
        count = self.config.num_iterations if iterations is None else iterations
        return self.slot_attention(embedded, start, iterations=count)

    def generate(
        self,
        slots: Float[Array, "slot dim"],
        *,
        key: PRNGKeyArray | None = None,
        temperature: float | Float[Array, ""] = 1.0,
        top_k: int | None = None,
    ) -> Int[Array, " token"]:
        """Codes of an image with the given slots, which may come from several images, one after the other.

        Greedy without a `key`. With one, codes are drawn from `softmax(logits / temperature)`, where `top_k` is
        given among the `top_k` likeliest. One `lax.scan`: keys and values of earlier codes are kept.
        """
        c = self.config
        if top_k is not None and not 1 <= top_k <= c.vocab_size:
            raise ConfigError(f"SLATE: top_k is {top_k}; it must lie between 1 and vocab_size={c.vocab_size}.")
        context = self.slot_proj(slots.astype(self.out.weight.dtype))
        state = self.decoder.init_state(context, c.side**2)

        def choose(logits, place):
            logits = logits.astype(jnp.float32)
            if key is None:
                return jnp.argmax(logits)
            if top_k is None:
                return jax.random.categorical(jax.random.fold_in(key, place), logits / temperature)
            values, indices = jax.lax.top_k(logits, top_k)
            return indices[jax.random.categorical(jax.random.fold_in(key, place), values / temperature)]

        def body(carry, place):
            row, state = carry
            x = (self.dictionary[row] + self.position[place])[None]
            y, state = self.decoder.extend(x, state)
            code = choose(self.out(y)[0], place).astype(jnp.int32)
            return (code + 1, state), code

        places = jnp.arange(c.side**2, dtype=jnp.int32)
        _, codes = jax.lax.scan(body, (jnp.zeros((), jnp.int32), state), places)
        return codes

    def picture(self, codes: Int[Array, " token"]) -> Float[Array, "height width channel"]:
        """The image of whole codes, in [0, 1]."""
        side = self.config.side
        return jnp.clip(self.dvae.decode_tokens(codes.reshape(side, side)), 0.0, 1.0)

    def maps(self, attention: Float[Array, "token slot"]) -> Float[Array, "slot height width"]:
        """Attention at the size of the image: every token's weights for its 4 x 4 pixels."""
        side, size = self.config.side, self.config.resolution
        cells = attention.T.reshape(-1, side, 1, side, 1)
        return jnp.broadcast_to(cells, (len(cells), side, PATCH, side, PATCH)).reshape(-1, size, size)

    def _encode(self, image: Array) -> Array:
        """Logits of the codes: not normalised, which neither a softmax nor a maximum minds."""
        # The dtype of the parameters is the one to compute in, under bfloat16 as well; targets stay float32.
        return self.dvae.encoder.logits(image.astype(self.out.weight.dtype))

    def _slot_noise(self, key: Any, draws: Any, slots: int | None) -> Array:
        if draws is not None:
            noise = draws.slots if isinstance(draws, SLATEDraws) else draws
            if slots is not None and slots != len(noise):
                raise ConfigError(f"SLATE.explain was asked for {slots} slots, its draws are for {len(noise)}.")
            return noise
        if key is None:
            raise ConfigError("SLATE.explain draws the initial slots at random: give it a key, or draws.")
        count = self.config.num_slots if slots is None else slots
        return jax.random.normal(key, (count, self.config.slot_size))


def _largest(x: Float[Array, "*grid code"]) -> Int[Array, "*grid"]:
    """`jnp.argmax(x, -1)` in a form that a CPU does several entries of at a time."""
    # What makes x is done before: inside of a sum over codes the logarithms of Gumbel noise go one by one.
    x = jax.lax.optimization_barrier(x)
    places = jnp.arange(x.shape[-1], dtype=jnp.int32).reshape((1,) * (x.ndim - 1) + (-1,))
    at = jnp.where(x == x.max(-1, keepdims=True), places, x.shape[-1] - 1)
    return at.min(-1)


def _check(c: SLATEConfig) -> None:
    sizes = (
        *(c.resolution, c.num_slots, c.num_iterations, c.slot_size, c.mlp_hidden_size, c.vocab_size, c.d_model),
        *(c.num_dec_blocks, c.num_heads, c.in_channels, c.num_slot_heads, c.dvae_width),
    )
    if min(sizes) < 1:
        raise ConfigError(f"SLATE: every size must be at least 1, got {c}.")
    if c.resolution % PATCH:
        raise ConfigError(
            f"SLATE: resolution={c.resolution} is not a multiple of {PATCH}, the side of a token."
        )
    if c.d_model % c.num_heads:
        raise ConfigError(f"SLATE: d_model={c.d_model} cannot be split into num_heads={c.num_heads}.")
    if c.slot_size % c.num_slot_heads:
        raise ConfigError(
            f"SLATE: slot_size={c.slot_size} cannot be split into num_slot_heads={c.num_slot_heads}."
        )
    if min(c.tau_start, c.tau_final) <= 0 or c.tau_steps < 0:
        raise ConfigError("SLATE: tau_start and tau_final must be positive, tau_steps must not be negative.")
    if not 0 <= c.dropout < 1:
        raise ConfigError(f"SLATE: dropout={c.dropout} must lie in [0, 1).")


_PAPER = "Singh, Deng, Ahn: Illiterate DALL-E Learns to Compose, ICLR 2022"
_TINY = dict(
    resolution=32,
    slot_size=64,
    mlp_hidden_size=64,
    vocab_size=64,
    d_model=64,
    num_dec_blocks=2,
    num_heads=4,
    dropout=0.0,
    tau_final=0.3,
    tau_steps=2000,
    dvae_width=32,
)

register(
    "slate_clevr6",
    SLATEConfig(),
    SLATE,
    ModelCard(
        name="slate_clevr6",
        title="SLATE for CLEVR scenes of at most 6 objects, 128 x 128",
        paper=f"{_PAPER}; with implicit slots: Chang, Griffiths, Levine, NeurIPS 2022",
        section="4; sizes of object-discovery-pytorch",
        licence="Apache-2.0 (object-discovery-pytorch)",
        parameters=7_707_587,
        source="https://github.com/HHousen/object-discovery-pytorch",
        metrics={},
        description=(
            "32 x 32 tokens of 4096 codes, 8 decoder blocks, slots by one differentiated step after three. The "
            "authors publish a checkpoint but no numbers. 7 slots: 6 objects and the background."
        ),
    ),
    tiny=_TINY,
)
register(
    "slate_shapes3d",
    SLATEConfig(
        resolution=64,
        num_slots=3,
        vocab_size=1024,
        num_dec_blocks=4,
        num_heads=4,
        gradient="explicit",
    ),
    SLATE,
    ModelCard(
        name="slate_shapes3d",
        title="SLATE for 3D Shapes, 64 x 64",
        paper=_PAPER,
        section="5; sizes of the authors' train.py",
        licence="MIT (singhgautam/slate)",
        parameters=3_616_451,
        source="https://github.com/singhgautam/slate",
        metrics={},
        description="16 x 16 tokens of 1024 codes, 4 decoder blocks, 3 slots; all iterations are differentiated.",
    ),
    tiny=_TINY,
)
