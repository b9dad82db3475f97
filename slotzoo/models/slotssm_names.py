"""The named SlotSSMs, and the models that the paper compares them with, which differ in the mixer of frames.

The code was released with one job, reconstruction of CLEVRER. Sizes of the others are the paper's where they are known
(width, heads, slots, state, expansion) and ours where they are not (encoder and decoder, number of blocks).
"""

import dataclasses

from slotzoo.models.registry import ModelCard, register
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig


_PAPER = "Jiang et al.: Slot State Space Models, NeurIPS 2024"
_SOURCE = "https://github.com/JindongJiang/SlotSSMs"
_OURS = "No weights are published; encoder, decoder and the number of blocks are ours."
# In the paper's sizes slots read the input by self-attention beside it in the first block, for Blinking Color Balls
# (BCB); what plain SlotSSM does elsewhere is not stated.
_INVERTED = (
    _OURS + " Slots read the input by inverted attention in every block, as in the released job for CLEVRER."
)

CLEVRER = SlotSSMConfig(normalise="imagenet")
# Blinking Color Balls: a picture comes in patch by patch, one a step; the answer is painted from the last slots.
BCB = SlotSSMConfig(
    resolution=16,
    patch_grid=4,
    encoder="patch",
    token_dim=64,
    num_slots=6,
    dim=64,
    cross="self",
    cross_heads=4,
    cross_blocks="first",
    ffn=True,
    mixer="mamba1",
    expand=1.25,
    ssm_state=16,
    max_frames=2560,
    decoder="vit",
    decode="last",
    out_resolution=64,
    decoder_dim=64,
    target="image",
)
BALLS = SlotSSMConfig(
    resolution=64,
    encoder_dim=64,
    encoder_layers=4,
    token_dim=64,
    num_slots=6,
    dim=64,
    ffn=True,
    mixer="mamba1",
    expand=1.25,
    ssm_state=16,
    max_frames=64,
    out_resolution=64,
    decoder_dim=64,
    target="next",
)
# OC-SlotSSM: inverted attention in every block, a slot painted as a picture and a mask.
OBJECTS = SlotSSMConfig(
    resolution=128,
    encoder="cnn",
    encoder_dim=192,
    encoder_layers=3,
    encoder_positions=True,
    token_dim=192,
    num_slots=11,
    dim=192,
    ffn=True,
    mixer="mamba1",
    expand=1.25,
    ssm_state=16,
    max_frames=64,
    decoder="broadcast",
    out_resolution=128,
    decoder_dim=192,
)
CATER = dataclasses.replace(
    CLEVRER,
    normalise="none",
    ffn=True,
    mixer="mamba1",
    expand=1.25,
    ssm_state=16,
    max_frames=300,
    decoder="classifier",
    decode="last",
    target="label",
)
# What it learns first: the same encoder and slots, and a decoder that paints the frames again.
CATER_PRETRAINING = dataclasses.replace(CATER, decoder="vit", decode="every", target="video")
DEPTH = dataclasses.replace(OBJECTS, out_channels=1, target="depth")

_TINY_BLOCKS = dict(dim=32, blocks=2, ssm_state=8, slot_heads=2, mixer_heads=2)
_TINY_VIT = dict(
    resolution=32,
    encoder_dim=48,
    encoder_layers=2,
    encoder_heads=2,
    encoder_patch=4,
    token_dim=32,
    out_resolution=32,
    decoder_dim=48,
    decoder_layers=2,
    decoder_heads=2,
    decoder_patch=4,
)
_TINY_CLEVRER = _TINY_BLOCKS | _TINY_VIT | dict(num_slots=4, ssm_head_dim=16)
_TINY_BCB = _TINY_BLOCKS | dict(
    token_dim=32,
    out_resolution=32,
    resolution=8,
    num_slots=5,
    cross_heads=2,
    decoder_dim=48,
    decoder_layers=2,
    decoder_heads=2,
    decoder_patch=4,
)
_TINY_OBJECTS = _TINY_BLOCKS | dict(
    resolution=32,
    encoder_dim=16,
    encoder_layers=1,
    encoder_blocks=1,
    token_dim=32,
    num_slots=5,
    out_resolution=32,
    decoder_dim=16,
)

_COMPARED = {
    "slot_transformer": dataclasses.replace(BCB, mixer="attention"),
    "slot_rnn": dataclasses.replace(BCB, mixer="gru", expand=1.0),
    "single_state_ssm": dataclasses.replace(BCB, num_slots=1, dim=384),
    "rim": dataclasses.replace(BCB, mixer="rim", blocks=1, expand=1.0),
}

for _name, _title, _config, _parameters, _section, _metrics, _note, _tiny in (
    (
        "slotssm_clevrer",
        "SlotSSM with Mamba-2, reconstruction of CLEVRER",
        CLEVRER,
        12_433_696,
        "3; the released training script",
        {},
        "The released job; its decoder keeps a table of fixed positions besides, which is computed here.",
        _TINY_CLEVRER,
    ),
    (
        "slotssm_bcb",
        "SlotSSM for Blinking Color Balls",
        BCB,
        586_048,
        "5.1",
        {"mse_earliest_80": 0.0095, "mse_earliest_320": 0.0089, "mse_earliest_1280": 0.0089},
        _OURS,
        _TINY_BCB,
    ),
    (
        "slotssm_video_prediction",
        "SlotSSM for the prediction of bouncing balls",
        BALLS,
        804_096,
        "5.2",
        {},
        _INVERTED,
        _TINY_BLOCKS | _TINY_VIT | dict(num_slots=4),
    ),
    (
        "oc_slotssm_movi_a",
        "OC-SlotSSM, unsupervised object discovery in MOVi-A",
        OBJECTS,
        17_049_604,
        "5.3",
        {"fg_ari": 0.685, "miou": 0.547},
        _OURS,
        _TINY_OBJECTS,
    ),
    (
        "slotssm_cater",
        "SlotSSM for the localisation of CATER's snitch",
        CATER,
        10_769_956,
        "5.4",
        {"top_1": 0.2564, "top_5": 0.4503},
        _INVERTED,
        _TINY_CLEVRER | dict(classes=36),
    ),
    (
        "slotssm_cater_pretraining",
        "SlotSSM for CATER's videos, reconstruction: what localisation is fine-tuned from",
        CATER_PRETRAINING,
        13_771_712,
        "5.4",
        {},
        _INVERTED,
        _TINY_CLEVRER,
    ),
    (
        "slotssm_depth",
        "OC-SlotSSM, prediction of depth",
        DEPTH,
        17_040_002,
        "5.5",
        {},
        _OURS,
        _TINY_OBJECTS,
    ),
    (
        "slot_transformer",
        "SlotTransformer: slots that attend to their own past",
        _COMPARED["slot_transformer"],
        571_008,
        "5.1",
        {"mse_earliest_80": 0.0098, "mse_earliest_320": 0.0095},
        _OURS,
        _TINY_BCB,
    ),
    (
        "slot_rnn",
        "SlotRNN: slots with gated recurrent units",
        _COMPARED["slot_rnn"],
        620_928,
        "5.1",
        {"mse_earliest_80": 0.0133, "mse_earliest_320": 0.0442},
        _OURS,
        _TINY_BCB,
    ),
    (
        "single_state_ssm",
        "Single State SSM: one state for all objects",
        _COMPARED["single_state_ssm"],
        10_431_808,
        "5.1",
        {"mse_earliest_80": 0.0154, "mse_earliest_320": 0.0439, "mse_earliest_1280": 0.0444},
        _OURS,
        _TINY_BCB | dict(num_slots=1, dim=96),
    ),
    (
        "rim",
        "Recurrent Independent Mechanisms",
        _COMPARED["rim"],
        557_440,
        "5.1",
        {"mse_earliest_80": 0.0437, "mse_earliest_320": 0.0449},
        _OURS + " Mechanisms read their slot, which has read the input.",
        _TINY_BCB | dict(blocks=1),
    ),
):
    register(
        _name,
        _config,
        SlotSSM,
        ModelCard(
            name=_name,
            title=_title,
            paper=_PAPER,
            section=_section,
            licence="Apache-2.0",
            parameters=_parameters,
            source=_SOURCE,
            metrics=_metrics,
            description=_note,
        ),
        tiny=_tiny,
    )
