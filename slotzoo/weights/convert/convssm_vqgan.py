"""Leaves of the VQ-GAN and the KL-VAE of ConvSSM and TECO (flax) under our names.

Flax numbers submodules per kind in the order in which they are made, which is the order of the forward pass.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from slotzoo.errors import WeightsError
from slotzoo.models.kl_vae import KLVAE, KLVAEConfig
from slotzoo.models.vqgan import VQGAN, VQGANConfig
from slotzoo.nn.taming import AttentionBlock, Decoder, Downsample, Encoder, Level, Middle, ResidualBlock


TABLE = "stats/quantize/embeddings"  # a variable that the seed does not train, beside its parameters


def config(args: Mapping[str, Any]) -> VQGANConfig:
    """The sizes of a VQ-GAN from the `args` of its run; what they hold beside sizes is left alone."""
    try:
        codes, double = int(args["n_embed"]), bool(args.get("double_z", False))
        return VQGANConfig(**_sizes(args), n_embed=codes, double_z=double)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"the run's args do not describe a VQ-GAN: {error!r} is missing or no number."
        ) from error


def kl_config(args: Mapping[str, Any]) -> KLVAEConfig:
    """The sizes of a KL-VAE from the `args` of its run."""
    try:
        if not args.get("double_z", True):
            raise WeightsError(
                "the run's args do not describe a KL-VAE, whose double_z is true: mean and variance."
            )
        return KLVAEConfig(**_sizes(args))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"the run's args do not describe a KL-VAE: {error!r} is missing or no number."
        ) from error


def _sizes(args: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        resolution=int(args["resolution"]),
        ch=int(args["ch"]),
        ch_mult=tuple(int(m) for m in args["ch_mult"]),
        num_res_blocks=int(args["num_res_blocks"]),
        attn_resolutions=tuple(int(r) for r in args["attn_resolutions"]),
        z_channels=int(args["z_channels"]),
        embed_dim=int(args["embed_dim"]),
    )


def leaves(model: VQGAN | KLVAE) -> dict[str, str]:
    """Our dotted leaf name -> the seed's path, for every leaf of `model` (which may be abstract)."""
    found = {"quantizer.codebook": TABLE} if isinstance(model, VQGAN) else {}
    for name in ("quant_conv", "post_quant_conv"):
        found |= _conv(name, f"param/{name}")
    for name, part in (("encoder", model.encoder), ("decoder", model.decoder)):
        for ours, theirs in _coder(part):
            found |= {f"{name}.{k}": f"param/{name}/{v}" for k, v in _leaf_pair(ours, theirs)}
    return found


def _leaf_pair(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    norm = "GroupNorm" in theirs.split("/")[-1]
    yield f"{ours}.{'scale' if norm else 'weight'}", f"{theirs}/{'scale' if norm else 'kernel'}"
    yield f"{ours}.bias", f"{theirs}/bias"


def _conv(ours: str, theirs: str) -> dict[str, str]:
    return dict(_leaf_pair(ours, theirs))


def _coder(coder: Encoder | Decoder) -> Iterator[tuple[str, str]]:
    """Layers of an encoder or decoder, (our name, flax's name), in the order of the forward pass."""
    count: Counter[str] = Counter()

    def named(kind: str) -> str:
        count[kind] += 1
        return f"{kind}_{count[kind] - 1}"

    def residual(ours: str, block: ResidualBlock) -> Iterator[tuple[str, str]]:
        theirs = named("ResnetBlock")
        parts = ["norm_in/GroupNorm_0", "conv_in/Conv_0", "norm_out/GroupNorm_1", "conv_out/Conv_1"]
        parts += [] if block.shortcut is None else ["shortcut/Conv_2"]
        for part in parts:
            a, b = part.split("/")
            yield f"{ours}.{a}", f"{theirs}/{b}"

    def attention(ours: str, block: AttentionBlock | None) -> Iterator[tuple[str, str]]:
        if block is None:
            return
        theirs = named("AttnBlock")
        for part in ("norm/GroupNorm_0", "query/Conv_0", "key/Conv_1", "value/Conv_2", "out/Conv_3"):
            a, b = part.split("/")
            yield f"{ours}.{a}", f"{theirs}/{b}"

    def middle(part: Middle) -> Iterator[tuple[str, str]]:
        yield from residual("middle.block_in", part.block_in)
        yield from attention("middle.attention", part.attention)
        yield from residual("middle.block_out", part.block_out)

    def levels(parts: tuple[Level, ...]) -> Iterator[tuple[str, str]]:
        for i, level in enumerate(parts):
            for j, block in enumerate(level.blocks):
                yield from residual(f"levels.{i}.blocks.{j}", block)
                if level.attentions:
                    yield from attention(f"levels.{i}.attentions.{j}", level.attentions[j])
            if level.resample is not None:
                kind = "Downsample" if isinstance(level.resample, Downsample) else "Upsample"
                yield f"levels.{i}.resample.conv", f"{named(kind)}/Conv_0"

    yield "conv_in", named("Conv")
    if isinstance(coder, Encoder):
        yield from levels(coder.levels)
        yield from middle(coder.middle)
    else:
        yield from middle(coder.middle)
        yield from levels(coder.levels)
    yield "norm", named("GroupNorm")
    yield "conv_out", named("Conv")
