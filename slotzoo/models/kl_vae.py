"""KL-VAE image tokenizer: a Gaussian latent at every place (the `autoencoder` of TECO; Rombach et al., CVPR 2022).

mean, logvar = quant_conv(encoder(image));   z = mean + exp(logvar / 2) noise;   decoder(post_quant_conv(z))
"""

import dataclasses
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.models.registry import ModelCard, register
from slotzoo.models.vqgan import CoderConfig
from slotzoo.nn.conv import Conv
from slotzoo.nn.taming import Decoder, Encoder


@dataclasses.dataclass(frozen=True)
class KLVAEConfig(CoderConfig):
    """Sizes of a `KLVAE`; latents have `embed_dim` channels."""

    z_channels: int = 3
    embed_dim: int = 3


class Gaussian(NamedTuple):
    """A diagonal Gaussian at every place; the logarithm of the variance lies within [-30, 20]."""

    mean: Float[Array, "height width embed"]
    logvar: Float[Array, "height width embed"]

    @property
    def std(self) -> Float[Array, "height width embed"]:
        """The standard deviation."""
        return jnp.exp(0.5 * self.logvar)

    def kl(self) -> Float[Array, ""]:
        """`KL(q | N(0, 1))` in nats, summed over the latents of the image."""
        mean, logvar = self.mean.astype(jnp.float32), self.logvar.astype(jnp.float32)
        return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)


class KLVAEOutput(NamedTuple):
    """An encoded and decoded image."""

    reconstruction: Float[Array, "height width channel"]  # about [-1, 1], not clipped
    features: Float[Array, "height2 width2 feature"]  # what the decoder's last convolution sees
    posterior: Gaussian


class KLVAE(eqx.Module):
    """An image of `resolution` pixels as a square map of continuous latents, and back.

    Takes one image with values in [-1, 1]; batch it with `jax.vmap`.
    """

    encoder: Encoder
    quant_conv: Conv
    post_quant_conv: Conv
    decoder: Decoder
    config: KLVAEConfig = eqx.field(static=True)

    def __init__(self, config: KLVAEConfig, *, key: PRNGKeyArray):
        key_encoder, key_in, key_out, key_decoder = jax.random.split(key, 4)
        c = config
        self.encoder = Encoder(c.in_channels, 2 * c.z_channels, c.layout, key=key_encoder)
        self.quant_conv = Conv(2 * c.z_channels, 2 * c.embed_dim, 1, key=key_in)
        self.post_quant_conv = Conv(c.embed_dim, c.z_channels, 1, key=key_out)
        self.decoder = Decoder(c.z_channels, c.in_channels, c.layout, key=key_decoder)
        self.config = config

    def posterior(self, image: Float[Array, "height width channel"]) -> Gaussian:
        """What is known of the latents of an image. **Raises** `ShapeError` for an image of another size."""
        self.config.check_image(image.shape)
        mean, logvar = jnp.split(self.quant_conv(self.encoder(image)), 2, -1)
        return Gaussian(mean, jnp.clip(logvar, -30.0, 20.0))

    def encode(
        self,
        image: Float[Array, "height width channel"],
        mode: Literal["sample", "stats", "mean"] = "sample",
        *,
        noise: Float[Array, "height2 width2 embed"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "height2 width2 latent"]:
        """Latents of an image: "mean"; "stats", mean and standard deviation joined; or a "sample".

        A sample is `mean + std noise`, with `noise` as given or drawn with `key`.
        """
        posterior = self.posterior(image)
        if mode == "sample":
            return _sample(posterior, noise, key)
        return posterior.mean if mode == "mean" else jnp.concatenate([posterior.mean, posterior.std], -1)

    def decode(self, latents: Float[Array, "height width embed"]) -> Float[Array, "height2 width2 channel"]:
        """The image of given latents: about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(latents))

    def __call__(
        self,
        image: Float[Array, "height width channel"],
        *,
        noise: Float[Array, "height2 width2 embed"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> KLVAEOutput:
        """Encode and decode one image: by a sample of its latents, or by their mean if neither `noise` nor `key`."""
        posterior = self.posterior(image)
        plain = noise is None and key is None
        latents = posterior.mean if plain else _sample(posterior, noise, key)
        features = self.decoder.features(self.post_quant_conv(latents))
        return KLVAEOutput(self.decoder.head(features), features, posterior)


def _sample(posterior: Gaussian, noise: Array | None, key: PRNGKeyArray | None) -> Array:
    if noise is None:
        if key is None:
            raise ValueError("a sample of the latents needs `noise` or a `key`; mode='mean' needs neither.")
        noise = jax.random.normal(key, posterior.mean.shape, posterior.mean.dtype)
    return posterior.mean + posterior.std * noise


register(
    "kl_vae",
    KLVAEConfig(ch_mult=(1, 2, 4), attn_resolutions=()),
    KLVAE,
    ModelCard(
        name="kl_vae",
        title="KL-VAE tokenizer for 64 x 64 video frames",
        paper="Rombach et al.: High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022",
        section="3.1; the model `autoencoder` of TECO (Yan et al., ICML 2023)",
        licence="MIT (TECO)",
        parameters=55_312_063,
        source="https://github.com/wilson1yan/teco",
        metrics={},
        description=(
            "16 x 16 latents of 3 channels per frame. TECO ships the code and no sizes: these are those that Rombach "
            "et al. have for a factor of 4; a converted checkpoint brings its own."
        ),
    ),
    tiny=dict(
        ch=32,
        ch_mult=(1, 2),
        num_res_blocks=1,
        z_channels=8,
        embed_dim=8,
        groups=8,
        patch=4,
    ),
)
