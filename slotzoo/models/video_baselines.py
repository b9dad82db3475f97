"""The baselines of the ConvS5 paper: S5, ConvLSTM, Transformer and Performer (Smith et al., NeurIPS 2023, section 5).

All are `VideoPixels` or `VideoTokens` (`video.py`); only the temporal core differs, by the configuration.
"""

import dataclasses
from typing import Any

from slotzoo.models.registry import FROM_MEMORY, ModelCard, register
from slotzoo.models.video import VideoPixels, VideoTokens
from slotzoo.models.video_config import (
    ConvLSTMConfig,
    PerformerConfig,
    PixelsConfig,
    S5Config,
    TokensConfig,
    TransformerConfig,
    VideoConfig,
)


@dataclasses.dataclass(frozen=True)
class S5PixelsConfig(S5Config, PixelsConfig):
    """S5 over frames."""


@dataclasses.dataclass(frozen=True)
class S5TokensConfig(S5Config, TokensConfig):
    """S5 over codes."""


@dataclasses.dataclass(frozen=True)
class ConvLSTMPixelsConfig(ConvLSTMConfig, PixelsConfig):
    """ConvLSTM over frames."""


@dataclasses.dataclass(frozen=True)
class ConvLSTMTokensConfig(ConvLSTMConfig, TokensConfig):
    """ConvLSTM over codes."""


@dataclasses.dataclass(frozen=True)
class TransformerPixelsConfig(TransformerConfig, PixelsConfig):
    """Transformer over frames."""


@dataclasses.dataclass(frozen=True)
class TransformerTokensConfig(TransformerConfig, TokensConfig):
    """Transformer over codes."""


@dataclasses.dataclass(frozen=True)
class PerformerPixelsConfig(PerformerConfig, PixelsConfig):
    """Performer over frames."""


@dataclasses.dataclass(frozen=True)
class PerformerTokensConfig(PerformerConfig, TokensConfig):
    """Performer over codes."""


_PAPER = "Smith, De Mello, Kautz, Linderman, Byeon: Convolutional State Space Models, NeurIPS 2023"
_SOURCE = "https://github.com/NVlabs/ConvSSM"
_LICENCE = "NVIDIA Source Code License (non-commercial)"

# What the configurations of ConvS5 for the same data have, too.
_MNIST: dict[str, Any] = dict(
    height=64,
    width=64,
    channels=1,
    encoder_depths=(64, 128, 256),
    decoder_depths=(64, 128, 256),
    layers=8,
    loss_weight=0.5,
    remat=True,
)
_DMLAB: dict[str, Any] = dict(
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
    causal_masking=True,
    open_loop_context=144,
    remat=True,
)
_PIXELS_TINY: dict[str, Any] = dict(
    height=32,
    width=32,
    encoder_depths=(16, 32),
    decoder_depths=(16, 32),
    norm_groups=16,
    layers=2,
    d_model=32,
    remat=False,
    scan_layers=False,
)
_TOKENS_TINY: dict[str, Any] = dict(
    height=8,
    width=8,
    encoder_depths=(32,),
    decoder_depths=(64,),
    decoder_blocks=1,
    layers=2,
    num_codes=256,
    code_dim=8,
    open_loop_context=12,
    remat=False,
    scan_layers=False,
)
# A token per frame, as at the published size; small enough that the projections do not hold all the parameters.
_ATTENTION_TINY: dict[str, Any] = dict(patch=16, feature_dim=8, d_model=32, heads=4, mlp_dim=64)


def _register(
    name: str,
    config: VideoConfig,
    title: str,
    parameters: int,
    tiny: dict[str, Any],
    metrics: dict[str, float],
    description: str,
) -> None:
    tokens = isinstance(config, TokensConfig)
    card = ModelCard(
        name=name,
        title=title,
        paper=_PAPER,
        section="5.2, appendix D" if tokens else "5.1, appendix D",
        licence=_LICENCE,
        parameters=parameters,
        source=_SOURCE,
        metrics=metrics,
        description=description + FROM_MEMORY,
    )
    register(name, config, VideoTokens if tokens else VideoPixels, card, tiny=tiny)


def _mnist_rows(short: tuple[float, ...], long: tuple[float, ...]) -> dict[str, float]:
    """FVD, PSNR, SSIM and LPIPS of 800 and of 1200 frames after 100."""
    names = ("fvd", "psnr", "ssim", "lpips")
    return {f"{name}@100_to_900": value for name, value in zip(names, short, strict=True)} | {
        f"{name}@100_to_1300": value for name, value in zip(names, long, strict=True)
    }


def _dmlab_row(fvd: float, psnr: float, ssim: float, lpips: float) -> dict[str, float]:
    return {
        "fvd@36": fvd,
        "psnr@action_144": psnr,
        "ssim@action_144": ssim,
        "lpips@action_144": lpips,
    }


_MNIST_TEXT = "64 x 64 frames with two digits; 100 context frames, up to 1200 generated."

_register(
    "convlstm_mnist300",
    ConvLSTMPixelsConfig(**_MNIST, d_model=256),
    "ConvLSTM on Moving-MNIST, trained on 300 frames",
    40_540_419,
    _PIXELS_TINY,
    _mnist_rows((128.0, 15.0, 0.737, 0.169), (187.0, 14.1, 0.706, 0.203)),
    _MNIST_TEXT,
)
_register(
    "convlstm_mnist600",
    ConvLSTMPixelsConfig(**_MNIST, d_model=128),
    "ConvLSTM on Moving-MNIST, trained on 600 frames",
    12_120_067,
    _PIXELS_TINY,
    _mnist_rows((91.0, 15.5, 0.757, 0.149), (137.0, 14.6, 0.727, 0.180)),
    _MNIST_TEXT + " Half as wide.",
)

_TRANSFORMER_300: dict[str, Any] = dict(patch=16, feature_dim=256, d_model=1024, heads=16, mlp_dim=4096)
_register(
    "transformer_mnist300",
    TransformerPixelsConfig(**_MNIST, **_TRANSFORMER_300),
    "Transformer on Moving-MNIST, trained on 300 frames",
    240_073_475,
    {**_PIXELS_TINY, **_ATTENTION_TINY},
    _mnist_rows((159.0, 12.6, 0.609, 0.287), (265.0, 12.4, 0.591, 0.321)),
    _MNIST_TEXT + " One token per frame; a rollout looks back at all frames, as the published evaluation does.",
)
_register(
    "transformer_mnist600",
    TransformerPixelsConfig(
        **{**_MNIST, "encoder_depths": (64, 128, 256, 512), "decoder_depths": (64, 128, 256, 512)},
        **{**_TRANSFORMER_300, "patch": 8},
    ),
    "Transformer on Moving-MNIST, trained on 600 frames",
    163_500_291,
    {
        **_PIXELS_TINY,
        **_ATTENTION_TINY,
        "encoder_depths": (16, 32, 32),
        "decoder_depths": (16, 32, 32),
        "patch": 8,
    },
    _mnist_rows((42.0, 13.7, 0.672, 0.207), (91.0, 13.1, 0.631, 0.252)),
    _MNIST_TEXT + " One token per frame; a rollout looks back at all frames, as the published evaluation does.",
)
_register(
    "performer_mnist300",
    PerformerPixelsConfig(**_MNIST, **_TRANSFORMER_300),
    "Performer on Moving-MNIST, trained on 300 frames",
    240_073_475,
    {**_PIXELS_TINY, **_ATTENTION_TINY, "favor_features": 32},
    _mnist_rows((234.0, 13.4, 0.652, 0.379), (275.0, 13.2, 0.592, 0.393)),
    (
        "The Transformer with FAVOR+ attention. The authors published its numbers, not its configuration: the sizes "
        "are those of their Transformer, the 256 random features those of their attention's defaults."
    ),
)
_register(
    "s5_dmlab",
    S5TokensConfig(**_DMLAB, patch=16, feature_dim=512, d_model=1024, ssm_size=1024),
    "S5 on DMLab tokens",
    254_275_952,
    {**_TOKENS_TINY, "patch": 8, "feature_dim": 16, "d_model": 64, "ssm_size": 64},
    _dmlab_row(221.0, 19.3, 0.641, 0.162),
    "One vector per frame: 205 of 254 million parameters are in the maps to it and back.",
)
_register(
    "transformer_dmlab",
    TransformerTokensConfig(**_DMLAB, patch=16, feature_dim=512, d_model=512, heads=16, mlp_dim=2048),
    "Transformer on DMLab tokens",
    152_050_544,
    {**_TOKENS_TINY, **_ATTENTION_TINY, "patch": 8, "feature_dim": 16},
    _dmlab_row(97.0, 19.9, 0.619, 0.123),
    (
        "One token per frame. Without the 65,536 numbers of `sos_post`, which the authors' code makes and never uses."
    ),
)
