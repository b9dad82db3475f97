"""The published configurations of TECO."""

import dataclasses

from slotzoo.models.registry import FROM_MEMORY, ModelCard, register
from slotzoo.models.teco import TECO
from slotzoo.models.teco_config import TECOConfig


_DMLAB = TECOConfig(
    height=16,
    width=16,
    encoder_depths=(256, 512),
    encoder_blocks=2,
    decoder_depths=(256, 512),
    decoder_blocks=4,
    use_actions=True,
    num_actions=6,
    action_dim=16,
    action_dropout=0.5,
    causal_masking=True,
    open_loop_context=144,
    drop_loss=0.9,
    layers=8,
    d_model=512,
    ssm_size=1024,
    ssm_blocks=32,
    remat=True,
)
_LARGER = dataclasses.replace(_DMLAB, causal_masking=False, ssm_size=512, ssm_blocks=1)
# Four by four latents of 8 x 8 codes of a small tokenizer: half a million parameters, minutes on two CPU cores.
_TINY = dict(
    height=8,
    width=8,
    encoder_depths=(32, 64),
    encoder_blocks=1,
    decoder_depths=(32, 64),
    decoder_blocks=1,
    num_codes=256,
    code_dim=8,
    embedding_dim=16,
    latent_codes=64,
    latent_code_dim=8,
    layers=2,
    d_model=64,
    ssm_size=64,
    ssm_blocks=1,
    patch=4,
    heads=4,
    mlp_dim=128,
    prior_vocab_dim=32,
    prior_dim=64,
    prior_mlp_dim=128,
    prior_heads=4,
    prior_layers=2,
    draft=4,
    revise=4,
    rounds=1,
    open_loop_context=12,
    drop_loss=0.5,
    remat=False,
    scan_layers=False,
)


def _register(
    name: str, config: TECOConfig, title: str, *, section: str, parameters: int, metrics: dict[str, float]
) -> None:
    register(
        name,
        config,
        TECO,
        ModelCard(
            name=name,
            title=title,
            paper="Smith, De Mello, Kautz, Linderman, Byeon: Convolutional State Space Models, NeurIPS 2023; "
            "Yan, Hafner, James, Abbeel: Temporally Consistent Transformers for Video Generation, ICML 2023",
            section=section,
            licence="NVIDIA Source Code License (non-commercial)",
            parameters=parameters,
            source="https://github.com/NVlabs/ConvSSM",
            metrics=metrics,
            description=(
                "300 frames of 16 x 16 codes of a VQ-GAN, six actions; 8 x 8 latents with a MaskGIT prior, a tenth of "
                "the frames counts in each step." + FROM_MEMORY
            ),
        ),
        tiny=_TINY,
    )


def _dmlab(fvd: float, psnr: float, ssim: float, lpips: float) -> dict[str, float]:
    return {"fvd@36": fvd, "psnr@action_144": psnr, "ssim@action_144": ssim, "lpips@action_144": lpips}


_register(
    "teco_convs5_dmlab",
    _DMLAB,
    "TECO with ConvS5 on DMLab tokens",
    section="5.2, appendix D",
    parameters=175_374_000,
    metrics=_dmlab(31.0, 23.8, 0.803, 0.085),
)
_register(
    "teco_s5_dmlab",
    dataclasses.replace(_DMLAB, temporal="s5", d_model=2048, ssm_size=2048, ssm_blocks=1),
    "TECO with S5 on DMLab tokens",
    section="5.2, appendix D",
    parameters=180_409_520,
    metrics=_dmlab(35.0, 20.1, 0.687, 0.143),
)
_register(
    "teco_transformer_dmlab",
    dataclasses.replace(_DMLAB, temporal="transformer", d_model=1024, heads=16, mlp_dim=4096),
    "TECO with a Transformer on DMLab tokens",
    section="5.2, appendix D",
    parameters=173_088_944,
    metrics=_dmlab(28.0, 21.6, 0.696, 0.082),
)
_register(
    "teco_convs5_habitat",
    dataclasses.replace(
        _LARGER,
        encoder_blocks=4,
        decoder_blocks=8,
        embedding_dim=256,
        latent_codes=2048,
        prior_dim=1024,
        prior_mlp_dim=4096,
        prior_heads=16,
        prior_layers=16,
    ),
    "TECO with ConvS5 on Habitat tokens",
    section="5.3, appendix D",
    parameters=349_258_608,
    metrics={
        "fvd@36": 95.0,
        "psnr@action_144": 12.9,
        "ssim@action_144": 0.390,
        "lpips@action_144": 0.632,
    },
)
_register(
    "teco_convs5_minecraft",
    dataclasses.replace(
        _LARGER,
        action_dropout=0.0,
        encoder_blocks=4,
        decoder_blocks=6,
        embedding_dim=128,
        layers=12,
        prior_dim=768,
        prior_mlp_dim=3072,
        prior_heads=12,
        prior_layers=6,
    ),
    "TECO with ConvS5 on Minecraft tokens",
    section="5.3, appendix D",
    parameters=214_754_544,
    metrics={
        "fvd@action_36": 71.0,
        "psnr@action_144": 14.8,
        "ssim@action_144": 0.374,
        "lpips@action_144": 0.355,
    },
)
