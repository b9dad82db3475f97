"""GNM, Generative Neurosymbolic Machines (Jiang and Ahn, NeurIPS 2020): a scene as latents of objects in grid cells
(presence, box, depth, appearance), whose prior is a global latent that says how objects are arranged.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.models.checks import explained
from slotzoo.models.gnm_config import GNMConfig, annealed, check
from slotzoo.models.gnm_latents import (
    GlobalLatents,
    LocalDistribution,
    LocalHeads,
    LocalLatents,
    LocalNoise,
    Normal,
    StructDraw,
    bernoulli_kl,
    decide_local,
    normal,
    relaxed_log_prob,
    sample_local,
)
from slotzoo.models.gnm_render import Curriculum, Glimpses, Rendering, add, box_frames, compose, corners
from slotzoo.models.objects import ObjectsOutput
from slotzoo.nn.celu_stacks import ConvStack, MLPStack


LAST_STEP = 2**30  # after the end of every schedule


class GNMDraws(NamedTuple):
    """The random numbers of one example; all but `local.presence` (uniform) are standard normal."""

    background: Float[Array, " background_dim"]  # empty without a modelled background
    scene: Float[Array, "draw global_dim"]
    local: LocalNoise


class Inferred(NamedTuple):
    """What GNM makes of one image: distributions and a sample of each."""

    features: Float[Array, "cell cell feature"]
    scene: GlobalLatents
    background: tuple[Normal, Normal, Float[Array, " dim"]] | None  # posterior, prior, sample
    posterior: LocalDistribution
    prior: LocalDistribution
    local: LocalLatents


class GNMOutput(NamedTuple):
    """An image taken apart and composed again."""

    rendering: Rendering
    background: Float[Array, "height width channel"]
    inferred: Inferred


class Generated(NamedTuple):
    """A scene from the prior."""

    rendering: Rendering
    background: Float[Array, "height width channel"]
    scene: GlobalLatents
    background_latent: Float[Array, " dim"] | None
    local: LocalLatents


class BackgroundNets(eqx.Module):
    """Posterior from the image's features, prior from the scene's latents, and the decoder of a background."""

    posterior: MLPStack
    prior: MLPStack
    decoder: ConvStack

    def __init__(self, config: GNMConfig, *, key: PRNGKeyArray):
        c = config
        keys = jax.random.split(key, 3)
        out = 2 * c.background_dim
        self.posterior = MLPStack(
            c.cells**2 * c.features, (*c.background_widths, out), bare_last=True, key=keys[0]
        )
        self.prior = MLPStack(
            c.draws * c.global_dim, (*c.background_prior_widths, out), bare_last=True, key=keys[1]
        )
        self.decoder = ConvStack(c.background_dim, c.background_stages(), bare_last=True, key=keys[2])

    def decode(self, z: Float[Array, " dim"]) -> Float[Array, "height width channel"]:
        """A background with values in [0, 1]."""
        return jax.nn.sigmoid(self.decoder(z[None, None]).astype(jnp.float32))


class GNM(eqx.Module):
    """`p(x | cells, background) p(cells | g) p(background | g) p(g)` with an amortised posterior.

    Takes one image with values in [0, 1]; batch it with `jax.vmap` or `slotzoo.ops.batch_map`. Everything that
    is annealed is a function of `step`, an argument, so that one compiled program serves the whole training.
    """

    encoder: ConvStack
    scene: StructDraw
    heads: LocalHeads
    what_decoder: ConvStack
    background: BackgroundNets | None
    config: GNMConfig = eqx.field(static=True)

    def __init__(self, config: GNMConfig, *, key: PRNGKeyArray):
        check(config)
        c = config
        keys = jax.random.split(key, 5)
        self.encoder = ConvStack(c.in_channels, c.encoder_stages(), key=keys[0])
        self.scene = StructDraw(
            draws=c.draws,
            dim=c.global_dim,
            cells=c.cells,
            features=c.features,
            hidden=(c.encoder_hidden, c.decoder_hidden),
            widths=(c.posterior_widths, c.prior_widths, c.global_decoder_widths),
            cell_kernel=c.cell_kernel,
            residual_kernel=c.residual_kernel,
            key=keys[1],
        )
        self.heads = LocalHeads(
            c.features, c.head_stages(), what=c.what_dim, presence_scale=c.presence_scale, key=keys[2]
        )
        self.what_decoder = ConvStack(c.what_dim, c.what_stages(), bare_last=True, key=keys[3])
        self.background = BackgroundNets(c, key=keys[4]) if c.background else None
        self.config = config

    def draw(self, key: PRNGKeyArray) -> GNMDraws:
        """The random numbers of one example."""
        c = self.config
        keys = jax.random.split(key, 6)
        grid = (c.cells, c.cells)
        background = jax.random.normal(keys[0], (c.background_dim if c.background else 0,))
        local = LocalNoise(
            jax.random.uniform(keys[2], (*grid, 1)),
            jax.random.normal(keys[3], (*grid, 4)),
            jax.random.normal(keys[4], (*grid, 1)),
            jax.random.normal(keys[5], (*grid, c.what_dim)),
        )
        return GNMDraws(background, jax.random.normal(keys[1], (c.draws, c.global_dim)), local)

    def encode(self, image: Float[Array, "height width channel"]) -> Float[Array, "cell cell feature"]:
        """The features of every cell, in the dtype of the parameters: pixels come as float32 under bfloat16 as well."""
        return self.encoder(image.astype(self.encoder.convs[0].weight.dtype))

    def infer(
        self,
        features: Float[Array, "cell cell feature"],
        *,
        draws: GNMDraws | None = None,
        step: int | Int[Array, ""] = LAST_STEP,
    ) -> Inferred:
        """Distributions of all latents and a sample of each; the likeliest values where `draws` is None."""
        c = self.config
        noise = jnp.zeros((c.draws, c.global_dim)) if draws is None else draws.scene
        scene = self.scene.infer(features, noise)
        background = None
        if self.background is not None:
            posterior = normal(self.background.posterior(features.reshape(-1)))
            prior = normal(self.background.prior(scene.z.reshape(-1).astype(features.dtype)))
            z = posterior.mean if draws is None else posterior.sample(draws.background)
            background = (posterior, prior, z)
        # One network serves both: once over both maps.
        both = self.heads(jnp.stack([features, scene.features]))
        posterior, prior = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
        return Inferred(features, scene, background, posterior, prior, self._local(posterior, draws, step))

    def render(
        self,
        local: LocalLatents,
        background_latent: Float[Array, " dim"] | None,
        *,
        step: int | Int[Array, ""] = LAST_STEP,
    ) -> tuple[Rendering, Float[Array, "height width channel"]]:
        """The image of given latents, and its background. `step` matters to the curriculum only."""
        c = self.config
        size = c.resolution
        if self.background is None or background_latent is None:
            background = jnp.zeros((size, size, c.in_channels))
        else:
            dtype = self.background.decoder.convs[0].weight.dtype
            background = self.background.decode(background_latent.astype(dtype))
        glimpses = self.glimpses(local.what)
        presence, box = local.presence.reshape(-1), local.box.reshape(-1, 4)
        if not c.overlap:
            return add(glimpses, presence, box, height=size, width=size), background
        curriculum = None
        if c.curriculum_steps:
            first, last = c.curriculum_steps
            at = jnp.asarray(step)
            curriculum = Curriculum((at > first) & (at < last), c.curriculum_alpha)
        depth = local.depth.reshape(-1)
        return compose(glimpses, presence, box, depth, background, curriculum=curriculum), background

    def glimpses(self, what: Float[Array, "cell cell dim"]) -> Glimpses:
        """What the cells show, [0, 1], row by row of the grid."""
        c = self.config
        dtype = self.what_decoder.convs[0].weight.dtype
        decoded = self.what_decoder(what.reshape(-1, 1, 1, c.what_dim).astype(dtype))
        decoded = jax.nn.sigmoid(decoded.astype(jnp.float32)).transpose(0, 3, 1, 2)
        alpha = decoded[:, c.in_channels :] if c.opacity else jnp.ones_like(decoded[:, :1])
        return Glimpses(decoded[:, : c.in_channels], alpha)

    @explained(image="{resolution} {resolution} {in_channels}")
    def __call__(
        self,
        image: Float[Array, "height width channel"],
        *,
        draws: GNMDraws | None = None,
        step: int | Int[Array, ""] = LAST_STEP,
    ) -> GNMOutput:
        """Infer and compose. Without `draws` every latent takes its likeliest value."""
        inferred = self.infer(self.encode(image), draws=draws, step=step)
        latent = None if inferred.background is None else inferred.background[2]
        rendering, background = self.render(inferred.local, latent, step=step)
        return GNMOutput(rendering, background, inferred)

    def loss(
        self,
        image: Float[Array, "height width channel"],
        *,
        draws: GNMDraws | None = None,
        key: PRNGKeyArray | None = None,
        step: int | Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """`-elbo = kl - log p(x | z)` in nats, with annealed weights and divergences to fixed priors in `kl`.

        Terms carry their weights. **Raises** `ConfigError` without `draws` and `key`.
        """
        if draws is None:
            if key is None:
                raise ConfigError("GNM.loss samples latents: give it a key, or draws.")
            draws = self.draw(key)
        at = jnp.asarray(step)
        out: GNMOutput = self(image, draws=draws, step=at)
        likelihood = self._log_likelihood(image, out.rendering.image)
        divergences = {
            name: annealed(getattr(self.config, f"beta_{name}"), at) * value
            for name, value in self.divergences(out.inferred, at).items()
        }
        kl = sum(divergences.values(), jnp.zeros(()))
        terms = {f"kl_{name}": value for name, value in divergences.items()}
        terms |= {
            "elbo": likelihood - kl,
            "kl": kl,
            "log_likelihood": likelihood,
            "count": jnp.round(out.inferred.local.presence).sum(),
        }
        return kl - likelihood, terms

    def divergences(self, inferred: Inferred, step: int | Int[Array, ""]) -> dict[str, Float[Array, ""]]:
        """Every divergence of the loss without its weight, summed over cells, draws and dimensions, in nats."""
        c = self.config
        q, p, local = inferred.posterior, inferred.prior, inferred.local
        by_probability = c.presence_kl == "probabilities"
        rate = annealed(c.presence_prior, jnp.asarray(step))
        fixed = jnp.log(rate) - jnp.log1p(-rate)
        where = Normal(
            jnp.array([c.scale_mean, c.ratio_mean, 0.0, 0.0])[None, None],
            jnp.array([c.scale_std, c.ratio_std, c.shift_std, c.shift_std])[None, None],
        )
        unit = Normal(jnp.zeros(()), jnp.ones(()))
        # What an absent object looks like costs nothing.
        present = jnp.maximum(local.presence, 1e-5)
        found = {
            "presence": bernoulli_kl(q.presence, p.presence, probabilities=by_probability),
            "where": q.where.kl(p.where),
            "what": q.what.kl(p.what),
            "depth": q.depth.kl(p.depth),
            "global": inferred.scene.posterior.kl(inferred.scene.prior),
            "aux_presence": bernoulli_kl(
                q.presence, jnp.broadcast_to(fixed, q.presence.shape), probabilities=by_probability
            ),
            "aux_where": q.where.kl(where) * present,
            "aux_what": q.what.kl(unit) * present,
            "aux_depth": q.depth.kl(unit) * present,
        }
        if inferred.background is not None:
            posterior, prior, _ = inferred.background
            found |= {"background": posterior.kl(prior), "aux_background": posterior.kl(unit)}
        return {name: value.sum() for name, value in found.items()}

    def log_weights(
        self, inferred: Inferred, *, step: int | Int[Array, ""] = LAST_STEP, relaxed: bool = True
    ) -> dict[str, Float[Array, ""]]:
        """`log p(z) - log q(z)` of the sampled latents, by group.

        `relaxed` takes presence for the relaxed variable that it is, which makes the importance weights right;
        the authors evaluate a Bernoulli mass function at its fractional value.
        """
        q, p, local, scene = inferred.posterior, inferred.prior, inferred.local, inferred.scene
        if relaxed:
            temperature = annealed(self.config.temperature, jnp.asarray(step))
            density = lambda logits: relaxed_log_prob(local.presence, logits, temperature)
        else:
            x = local.presence
            density = lambda logits: x * jax.nn.log_sigmoid(logits) + (1 - x) * jax.nn.log_sigmoid(-logits)
        found = {
            "presence": density(p.presence) - density(q.presence),
            "where": p.where.log_prob(local.where) - q.where.log_prob(local.where),
            "depth": p.depth.log_prob(local.depth) - q.depth.log_prob(local.depth),
            "what": p.what.log_prob(local.what) - q.what.log_prob(local.what),
            "global": scene.prior.log_prob(scene.z) - scene.posterior.log_prob(scene.z),
        }
        if inferred.background is not None:
            posterior, prior, z = inferred.background
            found["background"] = prior.log_prob(z) - posterior.log_prob(z)
        return {name: value.sum() for name, value in found.items()}

    def log_likelihood(
        self,
        image: Float[Array, "height width channel"],
        *,
        key: PRNGKeyArray,
        samples: int = 100,
        step: int | Int[Array, ""] = LAST_STEP,
    ) -> Float[Array, ""]:
        """`log mean_k p(x | z_k) p(z_k) / q(z_k)` in nats: a lower bound of `log p(x)`, tighter with more samples.

        One sample at a time, so memory does not grow. Source: Burda et al., Importance Weighted Autoencoders.
        """
        features = self.encode(image)

        def weight(key: PRNGKeyArray) -> Array:
            inferred = self.infer(features, draws=self.draw(key), step=step)
            latent = None if inferred.background is None else inferred.background[2]
            made, _ = self.render(inferred.local, latent, step=step)
            log_weights = self.log_weights(inferred, step=step)
            return self._log_likelihood(image, made.image) + sum(log_weights.values(), jnp.zeros(()))

        weights = jax.lax.map(weight, jax.random.split(key, samples))
        return jax.nn.logsumexp(weights) - jnp.log(samples)

    def generate(
        self,
        *,
        draws: GNMDraws | None = None,
        key: PRNGKeyArray | None = None,
        known: Float[Array, "some global_dim"] | None = None,
        sample: bool = False,
    ) -> Generated:
        """A scene from the prior: the global latents are drawn, all others take their likeliest value.

        `known` fixes the first draws of the global latent, for variations of a scene (`inferred.scene.z[:2]`);
        `sample` draws the other latents as well. **Raises** `ConfigError` without `draws` and `key`.
        """
        c = self.config
        if draws is None:
            if key is None:
                raise ConfigError("GNM.generate draws a scene at random: give it a key, or draws.")
            draws = self.draw(key)
        if known is not None and (known.shape[0] > c.draws or known.shape[1] != c.global_dim):
            raise ConfigError(
                f"GNM.generate: known has shape {known.shape}; this model makes {c.draws} draws of "
                f"{c.global_dim} numbers, of which the first few can be given."
            )
        scene = self.scene.generate(draws.scene, known)
        latent = None
        if self.background is not None:
            prior = normal(self.background.prior(scene.z.reshape(-1).astype(scene.features.dtype)))
            latent = prior.sample(draws.background) if sample else prior.mean
        local = self._local(self.heads(scene.features), draws if sample else None, LAST_STEP)
        rendering, background = self.render(local, latent)
        return Generated(rendering, background, scene, latent, local)

    def explain(
        self,
        image: Float[Array, "height width channel"],
        *,
        key: PRNGKeyArray | None = None,
        draws: GNMDraws | None = None,
        slots: int | None = None,
        iterations: int | None = None,
    ) -> ObjectsOutput:
        """The image from its likeliest latents, or from those of `draws`. Slot 0 is the background, then the cells.

        Masks are the shares of the composed pixels and sum to 1. In `extra`: `presence`, `boxes` (top, left, bottom,
        right in pixels) and `opacity` (masks regardless of what hides them) by cell, `count`, `background`,
        `frames` (drawn boxes) and `structure`, what the global latents alone make of the image.
        """
        del key  # the likeliest latents are not random
        if slots is not None or iterations is not None:
            raise ConfigError(
                f"GNM has {self.config.cells**2} cells and no iterations, both fixed by its weights: "
                "leave out slots and iterations."
            )
        out: GNMOutput = self(image, draws=draws)
        rendering, local = out.rendering, out.inferred.local
        size = self.config.resolution
        presence, box = local.presence.reshape(-1), local.box.reshape(-1, 4)
        latent = None if out.inferred.background is None else out.inferred.background[2]
        structure, _ = self.render(self._local(out.inferred.prior, None, LAST_STEP), latent)
        cells = jnp.concatenate([local.presence, local.where, local.depth, local.what], -1)
        cells = cells.reshape(len(presence), -1)
        first = jnp.zeros(0) if latent is None else latent[: cells.shape[1]]
        first = jnp.pad(first, (0, cells.shape[1] - len(first)))
        return ObjectsOutput(
            reconstruction=rendering.image,
            masks=jnp.concatenate([1 - rendering.shares.sum(0, keepdims=True), rendering.shares]),
            pictures=jnp.concatenate([out.background[None], rendering.pictures]),
            slots=jnp.concatenate([first[None], cells]),
            extra={
                "presence": presence,
                "boxes": corners(box, height=size, width=size),
                "opacity": rendering.masks,
                "count": jnp.round(presence).sum(),
                "background": out.background,
                "frames": box_frames(presence, box, height=size, width=size),
                "structure": structure.image,
            },
        )

    def _local(
        self, distribution: LocalDistribution, draws: GNMDraws | None, step: int | Int[Array, ""]
    ) -> LocalLatents:
        if draws is None:
            return decide_local(distribution)
        return sample_local(distribution, draws.local, annealed(self.config.temperature, jnp.asarray(step)))

    def _log_likelihood(self, image: Array, made: Array) -> Float[Array, ""]:
        """`log N(image; made, sigma)` summed over pixels and channels."""
        sigma = jnp.full((), self.config.sigma)
        return Normal(made.astype(jnp.float32), sigma).log_prob(image.astype(jnp.float32)).sum()
