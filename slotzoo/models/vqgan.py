"""VQ-GAN image tokenizer (Esser et al., CVPR 2021), the frozen first stage of TECO and of ConvS5."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models.registry import ModelCard, register
from slotzoo.nn.conv import Conv
from slotzoo.nn.patchgan import PatchDiscriminator
from slotzoo.nn.quantize import Quantized, VectorQuantizer
from slotzoo.nn.taming import Decoder, Encoder, Layout


@dataclasses.dataclass(frozen=True)
class CoderConfig:
    """Sizes of an image encoder and decoder, named as in the published configuration files; what those do not have
    stands below the line."""

    resolution: int = 64  # side of an image in pixels
    ch: int = 128  # base width
    ch_mult: tuple[int, ...] = (1, 2, 2)  # width of each level over `ch`; every further level halves the size
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)  # sizes at which every block is followed by attention
    z_channels: int = 256
    embed_dim: int = 256
    # ----
    in_channels: int = 3
    groups: int = 32  # of every GroupNorm
    patch: int = 1  # side of the pixel square folded into channels before the first level
    mid_attention: bool = True

    def __post_init__(self):
        """Check that the sizes fit together."""
        if not self.ch_mult or any(
            isinstance(value, int) and not isinstance(value, bool) and value < 1
            for value in dataclasses.asdict(self).values()
        ):
            raise ConfigError(
                f"image tokenizer: every size must be at least 1 and ch_mult must name a level, got {self}."
            )
        if self.resolution % self.factor:
            raise ConfigError(
                f"image tokenizer: resolution={self.resolution} is not a multiple of {self.factor} "
                f"(patch={self.patch} times 2 for every level of ch_mult={self.ch_mult} but one)."
            )
        for width in (self.ch, *(self.ch * m for m in self.ch_mult)):
            if width % self.groups:
                raise ConfigError(
                    f"image tokenizer: a level of {width} channels cannot be split into groups={self.groups}."
                )

    @property
    def factor(self) -> int:
        """Pixels of an image along one side of a latent."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)

    @property
    def latent(self) -> int:
        """Latents (tokens) along one side of an image."""
        return self.resolution // self.factor

    @property
    def layout(self) -> Layout:
        """What encoder and decoder are built from."""
        sizes = tuple(self.resolution // self.patch // 2**i for i in range(len(self.ch_mult)))
        return Layout(
            base=self.ch,
            widths=tuple(self.ch * m for m in self.ch_mult),
            attention=tuple(size in self.attn_resolutions for size in sizes),
            middle_attention=self.mid_attention,
            blocks=self.num_res_blocks,
            groups=self.groups,
            patch=self.patch,
        )

    def check_image(self, shape: tuple[int, ...]) -> None:
        """**Raises** `ShapeError` if an image of `shape` is not what the coder was built for."""
        wanted = (self.resolution, self.resolution, self.in_channels)
        if shape != wanted:
            raise ShapeError(
                f"this tokenizer was built for one image of shape {wanted} (height, width, channel), "
                f"got {shape}; use jax.vmap for a batch, and resize the images or build the model "
                "with another `resolution`."
            )


@dataclasses.dataclass(frozen=True)
class VQGANConfig(CoderConfig):
    """Sizes of a `VQGAN`."""

    n_embed: int = 1024  # codes
    double_z: bool = False  # twice as many channels out of the encoder
    # ----
    normalize: bool = False  # quantise vectors of unit length
    code_scale: float | None = None  # standard deviation of the initial codes; null: uniform within 1 / n_embed


class VQOutput(NamedTuple):
    """An encoded image."""

    codes: Int[Array, "height width"]  # in [0, n_embed)
    embeddings: Float[Array, "height width embed"]  # the chosen rows; the gradient goes straight to `latents`
    rows: Float[Array, "height width embed"]  # the same values; the gradient goes to the table
    latents: Float[Array, "height width embed"]  # what was quantised
    distances: Float[Array, "height width codes"]  # squared, to every row


class VQGANOutput(NamedTuple):
    """An encoded and decoded image."""

    reconstruction: Float[Array, "height width channel"]  # about [-1, 1], not clipped
    features: Float[Array, "height2 width2 feature"]  # what the decoder's last convolution sees
    quantized: VQOutput


class VQGAN(eqx.Module):
    """`decode(nearest_codes(encode(image)))`: an image of `resolution` pixels as a square of discrete tokens.

    Takes one image with values in [-1, 1]; batch it with `jax.vmap`. The codebook is a trained leaf
    (`quantizer.codebook`); a loss that should leave it alone goes through `jax.lax.stop_gradient`.
    """

    encoder: Encoder
    quant_conv: Conv
    quantizer: VectorQuantizer
    post_quant_conv: Conv
    decoder: Decoder
    config: VQGANConfig = eqx.field(static=True)

    def __init__(self, config: VQGANConfig, *, key: PRNGKeyArray):
        key_encoder, key_in, key_table, key_out, key_decoder = jax.random.split(key, 5)
        c = config
        d_encoded = c.z_channels * (2 if c.double_z else 1)
        self.encoder = Encoder(c.in_channels, d_encoded, c.layout, key=key_encoder)
        self.quant_conv = Conv(d_encoded, c.embed_dim, 1, key=key_in)
        self.quantizer = VectorQuantizer(
            c.n_embed, c.embed_dim, normalize=c.normalize, scale=c.code_scale, key=key_table
        )
        self.post_quant_conv = Conv(c.embed_dim, c.z_channels, 1, key=key_out)
        self.decoder = Decoder(c.z_channels, c.in_channels, c.layout, key=key_decoder)
        self.config = config

    @property
    def codebook(self) -> Float[Array, "codes embed"]:
        """The table of embeddings, as it is used (`n_embed` rows of `embed_dim`)."""
        return self.quantizer.table

    def latents(self, image: Float[Array, "height width channel"]) -> Float[Array, "height2 width2 embed"]:
        """The continuous latents of an image, before quantisation."""
        self.config.check_image(image.shape)
        return self.quant_conv(self.encoder(image))

    def encode(self, image: Float[Array, "height width channel"]) -> VQOutput:
        """Tokens of an image with values in [-1, 1]."""
        quantized: Quantized = self.quantizer(self.latents(image))
        return VQOutput(*quantized)

    def lookup(self, codes: Int[Array, "height width"]) -> Float[Array, "height width embed"]:
        """The embeddings of given tokens."""
        return self.quantizer.lookup(codes)

    def decode(self, embeddings: Float[Array, "height width embed"]) -> Float[Array, "height2 width2 channel"]:
        """The image of given embeddings: about [-1, 1], not clipped."""
        return self.decoder(self.post_quant_conv(embeddings))

    def decode_tokens(self, codes: Int[Array, "height width"]) -> Float[Array, "height2 width2 channel"]:
        """The image of given tokens: about [-1, 1], not clipped."""
        return self.decode(self.lookup(codes))

    def __call__(self, image: Float[Array, "height width channel"]) -> VQGANOutput:
        """Encode, quantise and decode one image with values in [-1, 1]."""
        quantized = self.encode(image)
        features = self.decoder.features(self.post_quant_conv(quantized.embeddings))
        return VQGANOutput(self.decoder.head(features), features, quantized)


class Discriminator(eqx.Module):
    """The adversary of the VQ-GAN: one score for every patch of an image (see `slotzoo.nn.patchgan`)."""

    patches: PatchDiscriminator

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, *, key: PRNGKeyArray):
        self.patches = PatchDiscriminator(in_channels, width, layers, key=key)

    def __call__(self, image: Float[Array, "height width channel"]) -> Float[Array, "height2 width2"]:
        """Scores of an image's patches: positive for what looks real."""
        return self.patches(image)


_TINY = dict(
    ch=32,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    z_channels=64,
    n_embed=128,
    embed_dim=8,
    groups=8,
    patch=4,
    normalize=True,
    code_scale=1.0,
)

register(
    "vqgan_dmlab",
    VQGANConfig(),
    VQGAN,
    ModelCard(
        name="vqgan_dmlab",
        title="VQ-GAN tokenizer for 64 x 64 video frames",
        paper="Esser, Rombach, Ommer: Taming Transformers for High-Resolution Image Synthesis, CVPR 2021",
        section="3.1; as the tokenizer of ConvS5: Smith et al., NeurIPS 2023, section 5.2",
        licence="MIT (taming-transformers, TECO)",
        parameters=23_278_723,
        source="https://github.com/wilson1yan/teco",
        metrics={},
        description=(
            "16 x 16 tokens of 1024 codes per frame. TECO and ConvS5 publish the frozen weights but not the "
            "training; widths are those of taming-transformers; a converted checkpoint brings its own."
        ),
    ),
    tiny=_TINY,
)

# TECO's tokenizers of larger frames: one more level gives as many tokens.
for _name, _title in (("vqgan_habitat", "Habitat"), ("vqgan_minecraft", "Minecraft")):
    register(
        _name,
        VQGANConfig(resolution=128, ch_mult=(1, 1, 2, 2)),
        VQGAN,
        ModelCard(
            name=_name,
            title=f"VQ-GAN tokenizer for the 128 x 128 frames of {_title}",
            paper="Esser, Rombach, Ommer: Taming Transformers for High-Resolution Image Synthesis, CVPR 2021",
            section="3.1; as the tokenizer of TECO: Yan et al., ICML 2023, appendix",
            licence="MIT (taming-transformers, TECO)",
            parameters=25_052_291,
            source="https://github.com/wilson1yan/teco",
            metrics={},
            description=(
                "16 x 16 tokens of 1024 codes per frame. TECO publishes the frozen weights but not the training; "
                "widths are those of taming-transformers; a converted checkpoint brings its own."
            ),
        ),
        tiny=dict(_TINY, resolution=64),
    )
