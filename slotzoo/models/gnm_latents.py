"""The latent variables of GNM: the global ones, drawn in steps (StructDRAW), and those of every grid cell."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.celu_stacks import ConvLSTMCell, ConvLSTMState, ConvStack, MLPStack, Stage, conv
from slotzoo.nn.conv import Conv


# The largest relaxed presence: beyond, nothing is left to take the logarithm of.
MOST_PRESENT = 1 - jnp.finfo(jnp.float32).eps


class Normal(NamedTuple):
    """A diagonal normal distribution."""

    mean: Float[Array, "*shape"]
    std: Float[Array, "*shape"]

    def sample(self, noise: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """`mean + std * noise`."""
        return self.mean + self.std * noise

    def log_prob(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The log density of every entry."""
        return -0.5 * jnp.square((x - self.mean) / self.std) - jnp.log(self.std) - 0.5 * jnp.log(2 * jnp.pi)

    def kl(self, prior: "Normal") -> Float[Array, "*shape"]:
        """`KL(self || prior)` of every entry, in nats."""
        ratio = jnp.square(self.std / prior.std)
        distance = jnp.square((self.mean - prior.mean) / prior.std)
        return 0.5 * (ratio + distance - 1 - jnp.log(ratio))


def normal(parameters: Float[Array, "*batch two_dim"]) -> Normal:
    """The first half of the last axis is the mean, the softplus of the second half the standard deviation."""
    mean, raw = jnp.split(parameters.astype(jnp.float32), 2, -1)
    return Normal(mean, jax.nn.softplus(raw))


class GlobalLatents(NamedTuple):
    """One pass of `StructDraw`."""

    z: Float[Array, "draw dim"]
    prior: Normal  # of every draw, given those before
    posterior: Normal  # the same as `prior` in generation
    features: Float[Array, "cell cell feature"]  # the decoded scene structure


class StructDraw(eqx.Module):
    """Scene-level latents, drawn one after the other and decoded into a map of features (GNM, section 3.1).

    For k = 1 .. draws, with `r` the features so far:

        p_k = prior(d),  e = LSTM_enc([x, x - r, d], e),  z_k ~ q_k = posterior(e),
        d = LSTM_dec([decoder(z_k), r], d),  r = r + residual(d)

    where `x` are the features of the image.
    """

    prior: MLPStack
    posterior: MLPStack
    decoder: MLPStack
    encoder_cell: ConvLSTMCell
    decoder_cell: ConvLSTMCell
    residual: Conv
    draws: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)
    cells: int = eqx.field(static=True)
    features: int = eqx.field(static=True)

    def __init__(
        self,
        *,
        draws: int,
        dim: int,
        cells: int,
        features: int,
        hidden: tuple[int, int],
        widths: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
        cell_kernel: int,
        residual_kernel: int,
        key: PRNGKeyArray,
    ):
        """`hidden`: channels of the encoder's and the decoder's LSTM. `widths`: hidden widths of the networks
        that make the posterior, the prior, and the input of the decoder's LSTM.
        """
        keys = jax.random.split(key, 6)
        encoder, decoder = hidden
        self.posterior = MLPStack(cells**2 * encoder, (*widths[0], 2 * dim), bare_last=True, key=keys[0])
        self.prior = MLPStack(cells**2 * decoder, (*widths[1], 2 * dim), bare_last=True, key=keys[1])
        self.decoder = MLPStack(dim, (*widths[2], cells**2 * features), key=keys[2])
        self.encoder_cell = ConvLSTMCell(
            2 * features + decoder, encoder, size=cells, kernel=cell_kernel, key=keys[3]
        )
        self.decoder_cell = ConvLSTMCell(2 * features, decoder, size=cells, kernel=cell_kernel, key=keys[4])
        pad = (residual_kernel - 1) // 2
        self.residual = conv(decoder, features, residual_kernel, padding=((pad, pad), (pad, pad)), key=keys[5])
        self.draws, self.dim, self.cells, self.features = draws, dim, cells, features

    def infer(
        self, x: Float[Array, "{self.cells} {self.cells} {self.features}"], noise: Float[Array, "draw dim"]
    ) -> GlobalLatents:
        """Draw from the posterior of an image's features. The priors are computed for all steps at once."""

        def step(carry, noise):
            encoder, decoder, canvas = carry
            encoder = self.encoder_cell(
                jnp.concatenate([x, x - canvas, decoder.hidden.astype(x.dtype)], -1), encoder
            )
            posterior = normal(self.posterior(encoder.hidden.reshape(-1).astype(x.dtype)))
            z = posterior.sample(noise)
            before = decoder.hidden
            decoder, canvas = self._decode(z, decoder, canvas)
            return (encoder, decoder, canvas), (z, posterior, before)

        start = (self.encoder_cell.init_state(), self.decoder_cell.init_state(), jnp.zeros_like(x))
        (_, _, canvas), (z, posterior, before) = lax.scan(step, start, noise, unroll=True)
        prior = normal(self.prior(before.reshape(self.draws, -1).astype(x.dtype)))
        return GlobalLatents(z, prior, posterior, canvas)

    def generate(
        self, noise: Float[Array, "draw dim"], known: Float[Array, "some dim"] | None = None
    ) -> GlobalLatents:
        """Draw from the prior. The first draws are those `known`, as many as given; the rest follow them."""
        dtype = self.residual.weight.dtype
        given = 0 if known is None else known.shape[0]
        fixed = jnp.zeros((self.draws, self.dim))
        if known is not None:
            fixed = fixed.at[:given].set(known)

        def step(carry, inputs):
            decoder, canvas = carry
            noise, fixed, keep = inputs
            prior = normal(self.prior(decoder.hidden.reshape(-1).astype(dtype)))
            z = jnp.where(keep, fixed, prior.sample(noise))
            return self._decode(z, decoder, canvas), (z, prior)

        start = (self.decoder_cell.init_state(), jnp.zeros((self.cells, self.cells, self.features), dtype))
        inputs = (noise, fixed, jnp.arange(self.draws) < given)
        (_, canvas), (z, prior) = lax.scan(step, start, inputs)
        return GlobalLatents(z, prior, prior, canvas)

    def _decode(self, z: Array, state: ConvLSTMState, canvas: Array) -> tuple[ConvLSTMState, Array]:
        made = self.decoder(z.astype(canvas.dtype)).reshape(canvas.shape)
        state = self.decoder_cell(jnp.concatenate([made, canvas], -1), state)
        return state, canvas + self.residual(state.hidden.astype(canvas.dtype))


class LocalDistribution(NamedTuple):
    """The distributions of the latents of every cell."""

    presence: Float[Array, "*batch cell cell 1"]  # logits
    where: Normal  # of (log-odds of the scale, log of the ratio, x, y before tanh)
    depth: Normal
    what: Normal


class LocalHeads(eqx.Module):
    """Cell features -> distributions of presence, box, depth and appearance (GNM, section 3.2).

    One network serves the prior, from the decoded scene structure, and the posterior, from the image.
    `logits = presence_scale * tanh(.)`, standard deviations are softplus.
    """

    body: ConvStack
    presence: Conv
    where: Conv
    depth: Conv
    what: Conv
    presence_scale: float = eqx.field(static=True)

    def __init__(
        self, features: int, stages: tuple[Stage, ...], *, what: int, presence_scale: float, key: PRNGKeyArray
    ):
        keys = jax.random.split(key, 5)
        self.body = ConvStack(features, stages, key=keys[0])
        width = stages[-1].filters
        self.presence, self.depth = conv(width, 1, 1, key=keys[1]), conv(width, 2, 1, key=keys[2])
        self.what = conv(width, 2 * what, 1, key=keys[3])
        # Boxes begin small and alike: nearly no influence of the features, scales of sigmoid(-1).
        where = Conv(width, 8, 1, init=_narrow, key=keys[4])
        self.where = eqx.tree_at(lambda c: c.bias, where, jnp.zeros(8).at[0].set(-1.0))
        self.presence_scale = presence_scale

    def __call__(self, x: Float[Array, "*batch cell cell feature"]) -> LocalDistribution:
        h = self.body(x)
        presence, where, depth, what = (
            layer.biased(h @ layer.weight[0, 0].astype(h.dtype)).astype(jnp.float32)
            for layer in (self.presence, self.where, self.depth, self.what)
        )
        return LocalDistribution(
            self.presence_scale * jnp.tanh(presence), normal(where), normal(depth), normal(what)
        )


class LocalLatents(NamedTuple):
    """One sample of the latents of every cell."""

    presence: Float[Array, "cell cell 1"]  # in (0, 1); 0 or 1 where it was decided instead of drawn
    where: Float[Array, "cell cell 4"]  # as drawn
    box: Float[Array, "cell cell 4"]  # (scale_x, scale_y, shift_x, shift_y), see `nn/spatial_transform.py`
    depth: Float[Array, "cell cell 1"]  # smaller is nearer
    what: Float[Array, "cell cell dim"]


class LocalNoise(NamedTuple):
    """The random numbers behind one `LocalLatents`."""

    presence: Float[Array, "cell cell 1"]  # uniform in (0, 1)
    where: Float[Array, "cell cell 4"]  # standard normal, as are the others
    depth: Float[Array, "cell cell 1"]
    what: Float[Array, "cell cell dim"]


def sample_local(q: LocalDistribution, noise: LocalNoise, temperature: Float[Array, ""]) -> LocalLatents:
    """A differentiable sample. Presence is a relaxed Bernoulli, `sigmoid((logit(u) + logits) / temperature)`.

    Source: Maddison et al., The Concrete Distribution, ICLR 2017.
    """
    limits = jnp.finfo(jnp.float32)
    u = jnp.clip(noise.presence, limits.eps, 1 - limits.eps)
    presence = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + q.presence) / temperature)
    presence = jnp.clip(presence, limits.tiny, MOST_PRESENT)
    where = q.where.sample(noise.where)
    return LocalLatents(presence, where, boxes(where), q.depth.sample(noise.depth), q.what.sample(noise.what))


def decide_local(q: LocalDistribution) -> LocalLatents:
    """The likeliest latents: present where the logits are positive, means of everything else."""
    presence = (q.presence > 0).astype(jnp.float32)
    return LocalLatents(presence, q.where.mean, boxes(q.where.mean), q.depth.mean, q.what.mean)


def boxes(where: Float[Array, "cell cell 4"]) -> Float[Array, "cell cell 4"]:
    """`scale = sigmoid(w_0)` by `ratio = exp(w_1)`; `shift = 2 (index + 1/2 + tanh(w_{2, 3})) / cells - 1`.

    A box has its centre in its own cell or in half of a neighbour.
    """
    cells = where.shape[0]
    scale = jax.nn.sigmoid(where[..., :1])
    root = jnp.exp(0.5 * where[..., 1:2])
    index = jnp.arange(cells, dtype=jnp.float32)
    rows, columns = jnp.meshgrid(index, index, indexing="ij")
    place = jnp.stack([columns, rows], -1)
    shift = 2 / cells * (place + 0.5 + jnp.tanh(where[..., 2:])) - 1
    return jnp.concatenate([scale / root, scale * root, shift], -1)


def bernoulli_kl(
    q: Float[Array, "*shape"], p: Float[Array, "*shape"], *, probabilities: bool = False
) -> Float[Array, "*shape"]:
    """`KL(Bernoulli(q) || Bernoulli(p))` in nats, both given as logits: exact wherever these are finite.

    `probabilities` computes it from probabilities with 1e-15 added inside of the logarithms, as the authors do:
    in float32 that guards 0 but not 1.
    """
    if probabilities:
        return _bernoulli_kl_probabilities(jax.nn.sigmoid(q), jax.nn.sigmoid(p))
    present = jax.nn.sigmoid(q) * (jax.nn.log_sigmoid(q) - jax.nn.log_sigmoid(p))
    return present + jax.nn.sigmoid(-q) * (jax.nn.log_sigmoid(-q) - jax.nn.log_sigmoid(-p))


def _bernoulli_kl_probabilities(q: Array, p: Array) -> Array:
    eps = 1e-15
    present = q * (jnp.log(q + eps) - jnp.log(p + eps))
    return present + (1 - q) * (jnp.log(1 - q + eps) - jnp.log(1 - p + eps))


def relaxed_log_prob(
    x: Float[Array, "*shape"], logits: Float[Array, "*shape"], temperature: Float[Array, ""]
) -> Float[Array, "*shape"]:
    """The log density of a relaxed Bernoulli variable, with respect to the logit of `x`.

    Ratios of two such densities are those of the densities of `x` itself. At the largest `x` that `sample_local` gives
    it is the log probability of all that is clipped to it: of a sure presence, most of what is drawn.
    """
    difference = logits - temperature * (jnp.log(x) - jnp.log1p(-x))
    density = jnp.log(temperature) + difference - 2 * jax.nn.softplus(difference)
    return jnp.where(x >= MOST_PRESENT, jax.nn.log_sigmoid(difference), density)


def _narrow(key: PRNGKeyArray, shape, dtype=jnp.float32, out_sharding=None) -> Array:
    return jax.random.uniform(key, shape, dtype, minval=-0.01, maxval=0.01)
