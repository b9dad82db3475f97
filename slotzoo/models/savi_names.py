"""The published SAVi, SAVi++ and STATM models by name, and how each is made small."""

import dataclasses
from typing import Any

from slotzoo.models.registry import ModelCard, register
from slotzoo.models.savi import SAVi, SAViConfig
from slotzoo.models.statm import STATMConfig, statm


_SAVI = "Kipf et al.: Conditional Object-Centric Learning from Video, ICLR 2022"
_SAVI_PP = (
    "Elsayed et al.: SAVi++: Towards End-to-End Object-Centric Learning from Real-World Videos, NeurIPS 2022"
)
_STATM = "Li et al.: Reasoning-Enhanced Object-Centric Learning for Videos, 2024"
_SAVI_CODE = "https://github.com/google-research/slot-attention-video"
_STATM_CODE = "https://github.com/intell-sci-comput/STATM"

SMALL = SAViConfig()
MEDIUM = SAViConfig(
    height=128,
    width=128,
    encoder_widths=(64, 64, 64, 64),
    encoder_strides=(2, 1, 1, 1),
    decoder_strides=(2, 2, 2, 2),
)
LARGE = SAViConfig(height=128, width=128, resnet=(3, 4, 6, 3), decoder_strides=(2, 2, 2, 2))
PLUS_PLUS = dataclasses.replace(
    LARGE, encoder_layers=4, corrector_qkv=256, predictor_qkv=256, predictor_mlp=1024, targets=("flow", "depth")
)
_SIZES: dict[str, Any] = dataclasses.asdict(PLUS_PLUS) | dict(num_slots=11, iterations=2)
_STATM_PLUS_PLUS = STATMConfig(**_SIZES)

TINY = dict(
    height=32,
    width=32,
    num_slots=7,
    slot_dim=32,
    init_width=64,
    encoder_widths=(16, 24, 24),
    encoder_strides=(1, 2, 1),
    position_width=32,
    corrector_qkv=32,
    predictor_qkv=32,
    predictor_mlp=64,
    decoder_widths=(32, 24),
    decoder_strides=(2, 2),
)
TINY_RESNET = TINY | dict(resnet=(1, 1), resnet_width=32)
TINY_PLUS_PLUS = TINY_RESNET | dict(encoder_layers=1, encoder_dim=32, encoder_mlp=64)


def _movi(*scores: float) -> dict[str, float]:
    """Published FG-ARI on the validation splits of MOVi-A to E."""
    return {f"movi_{letter}_fg_ari": score for letter, score in zip("abcde", scores, strict=True)}


_OF_24 = "With the boxes of the first frame; the figures are means over five seeds and all 24 frames."
_NO_FIGURES = "With the boxes of the first frame. The authors' repository states no figures."

for _name, _title, _config, _build, _parameters, _paper, _source, _metrics, _note, _tiny in (
    (
        "savi_small",
        "SAVi-S, optical flow on 64 x 64 pixels",
        SMALL,
        SAVi,
        895_268,
        _SAVI,
        _SAVI_CODE,
        _movi(0.921, 0.722, 0.647, 0.338, 0.083),
        _OF_24,
        TINY,
    ),
    (
        "savi_medium",
        "SAVi-M, optical flow on 128 x 128 pixels",
        MEDIUM,
        SAVi,
        1_140_740,
        _SAVI,
        _SAVI_CODE,
        _movi(0.934, 0.751, 0.674, 0.208, 0.122),
        _OF_24,
        TINY,
    ),
    (
        "savi_large",
        "SAVi-L, a ResNet-34 on 128 x 128 pixels",
        LARGE,
        SAVi,
        22_273_412,
        _SAVI,
        _SAVI_CODE,
        _movi(0.951, 0.648, 0.713, 0.597, 0.341),
        _OF_24,
        TINY_RESNET,
    ),
    (
        "savi_pp",
        "SAVi++, flow and depth, a ResNet-34 and a transformer on 128 x 128 pixels",
        PLUS_PLUS,
        SAVi,
        23_132_165,
        _SAVI_PP,
        _SAVI_CODE,
        _movi(0.853, 0.725, 0.791, 0.848, 0.851),
        _OF_24,
        TINY_PLUS_PLUS,
    ),
    (
        "statm_savi_small",
        "STATM-SAVi, SAVi-S with a memory of the slots of earlier frames",
        STATMConfig(),
        statm,
        961_572,
        _STATM,
        _STATM_CODE,
        {},
        _NO_FIGURES,
        TINY,
    ),
    (
        "statm_savi_pp",
        "STATM-SAVi++, SAVi++ with a memory of the slots of earlier frames, for up to ten objects",
        _STATM_PLUS_PLUS,
        statm,
        23_264_389,
        _STATM,
        _STATM_CODE,
        {},
        _NO_FIGURES,
        TINY_PLUS_PLUS,
    ),
    (
        "statm_savi_pp_large",
        "STATM-SAVi++ for up to 23 objects, with one correction per frame",
        dataclasses.replace(_STATM_PLUS_PLUS, num_slots=24, iterations=1),
        statm,
        23_264_389,
        _STATM,
        _STATM_CODE,
        {},
        _NO_FIGURES,
        TINY_PLUS_PLUS,
    ),
):
    register(
        _name,
        _config,
        _build,
        ModelCard(
            name=_name,
            title=_title,
            paper=_paper,
            section="appendix",
            licence="Apache-2.0",
            parameters=_parameters,
            source=_source,
            metrics=_metrics,
            description=_note,
        ),
        tiny=_tiny,
    )
