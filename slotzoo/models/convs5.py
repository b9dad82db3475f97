"""ConvS5: video prediction with convolutional state-space models (Smith et al., NeurIPS 2023).

The module is `VideoPixels` or `VideoTokens` (`video.py`) around a stack of `slotzoo.nn.conv_ssm` layers, which runs
parallel over time; `step` and `generate` carry one state per layer and cost the same for every frame.
"""

import dataclasses

from slotzoo.models.registry import FROM_MEMORY, ModelCard, register
from slotzoo.models.video import VideoPixels, VideoTokens
from slotzoo.models.video_config import ConvS5Config, PixelsConfig, TokensConfig


@dataclasses.dataclass(frozen=True)
class ConvS5PixelsConfig(ConvS5Config, PixelsConfig):
    """ConvS5 over frames."""


@dataclasses.dataclass(frozen=True)
class ConvS5TokensConfig(ConvS5Config, TokensConfig):
    """ConvS5 over codes."""


ConvS5Pixels = VideoPixels
ConvS5Tokens = VideoTokens

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
            + FROM_MEMORY
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
        description="64 x 64 frames with two digits; 100 context frames, up to 1200 generated." + FROM_MEMORY,
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
        description="64 x 64 frames with two digits; 100 context frames, up to 1200 generated. Half as wide."
        + FROM_MEMORY,
    ),
    tiny=_MNIST_TINY,
)
