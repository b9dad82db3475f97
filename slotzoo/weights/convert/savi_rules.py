"""The authors' parameters of SAVi, SAVi++ and STATM (flax paths) and our leaves."""

from collections.abc import Mapping

import numpy as np

from slotzoo.models.savi import SAViConfig
from slotzoo.weights.convert.rules import Layout, Rule, same, under


# Heads, flax's leading axis of tables and the [1, 1, 1, C] norms of flax 0.3 are there or not: only shapes differ.
SHAPED = Layout(lambda x, shape: x.reshape(shape), lambda x: x)
GATES = ("r", "z", "n")

NORM = tuple(Rule(name, name, SHAPED) for name in ("scale", "bias"))
ANY_NORM = (*NORM, Rule("mean", "mean", SHAPED), Rule("var", "variance", SHAPED))
DENSE = (Rule("kernel", "weight", SHAPED), Rule("bias", "bias", SHAPED))
MLP = (*under(r"dense_mlp_(\d+)/", "layers.{}.", DENSE), *under("LayerNorm_0/", "norm.", NORM))
POSITION = (
    Rule("pos_embedding", "table", SHAPED),
    *under("dense_pe_0/", "dense.", DENSE),
    *under("MLP_0/", "transform.", MLP),
)
CNN = (
    *under(r"conv_(\d+)/", "layers.{}.", DENSE),
    *under(r"(?:instance|group|layer)_norm_(\d+)/", "norms.{}.", NORM),
    *under("output_layer/", "output.", DENSE),
)
GRU = same(
    ("i/kernel", "weight_input"),
    ("i/bias", "bias_input"),
    ("h/kernel", "weight_hidden"),
    ("hn/bias", "bias_hidden"),
)
SLOT_ATTENTION = (
    *under("LayerNorm_0/", "norm_slots.", NORM),
    *under("LayerNorm_1/", "norm_inputs.", NORM),
    *under("general_dense_q_0/", "query.", DENSE),
    *under("general_dense_k_0/", "key.", DENSE),
    *under("general_dense_v_0/", "value.", DENSE),
    *under("GRU_0/GRUCell_0/", "gru.", GRU),
    *under("MLP_0/LayerNorm_0/", "norm_mlp.", NORM),
    *under("MLP_0/", "mlp.", MLP),
    *under("InvertedDotProductAttention_0/DenseGeneral_0/", "joined.", DENSE),
)
ATTENTION = tuple(
    rule for name in ("query", "key", "value", "out") for rule in under(f"{name}/", f"{name}.", DENSE)
)
BLOCK = (
    *under("MultiHeadDotProductAttention_0/", "attention.", ATTENTION),
    *under("MultiHeadDotProductAttention_1/", "cross.", ATTENTION),
    *under(r"LayerNorm_(\d)/", "norms.{}.", NORM),
    *under("MLP_0/", "mlp.", MLP),
)
TRANSFORMER = under(r"TransformerBlock(\d+)/", "blocks.{}.", BLOCK)
READOUT = (
    *under(r"Readout_0/Dense_(\d)/Dense_0/", "readouts.{}.", DENSE),
    *under(r"Readout_0/MLP_(\d)/dense_mlp_0/", "readouts.{}.", DENSE),
)


def time_space(block: int) -> tuple[Rule, ...]:
    """STATM's block: the first attention is that of space, but in block 3."""
    space, time = (1, 0) if block == 3 else (0, 1)
    return (
        *under(f"MultiHeadDotProductAttention_{space}/", "space.", ATTENTION),
        *under(f"MultiHeadDotProductAttention_{time}/", "time.", ATTENTION),
        *under(r"LayerNorm_(\d)/", "norms.{}.", NORM),
        *under("MLP_0/", "mlp.", MLP),
    )


def decoder(targets: tuple[str, ...]) -> tuple[Rule, ...]:
    """The decoder with its readouts in the order of the targets."""
    named = [
        Rule(rule.seed.replace(r"(\d)", str(i)), rule.ours.format(name), rule.layout)
        for i, name in enumerate(targets)
        for rule in READOUT
    ]
    return (
        *under("CNN_0/", "convs.", CNN),
        *under("PositionEmbedding_0/", "position.", POSITION),
        *under("alpha_logits/", "alpha.", DENSE),
        *named,
    )


def unit(bottleneck: bool) -> tuple[Rule, ...]:
    """A residual unit, whose layers flax counts from 1."""
    rules = [*under("proj_conv/", "skip_conv.", DENSE), *under("proj_bn/", "skip_norm.", ANY_NORM)]
    for i in range(3 if bottleneck else 2):
        rules += under(f"conv{i + 1}/", f"convs.{i}.", DENSE)
        rules += under(f"bn{i + 1}/", f"norms.{i}.", ANY_NORM)
    return tuple(rules)


def resnet(blocks: tuple[int, ...], *, bottleneck: bool = False) -> tuple[Rule, ...]:
    """A ResNet of any depth, with or without its head, and the statistics of a BatchNorm."""
    rules = [
        *under("init_conv/", "conv.", DENSE),
        *under("init_bn/", "norm.", ANY_NORM),
        *under("head/", "head.", DENSE),
    ]
    for i, count in enumerate(blocks):
        for j in range(count):
            rules += under(f"stage{i + 1}/block{j + 1}/", f"units.{i}.{j}.", unit(bottleneck))
    return tuple(rules)


def whole(config: SAViConfig, block: int | None = None) -> tuple[Rule, ...]:
    """A whole model; `block` is STATM's."""
    if block is None:
        predictor = under("TransformerBlock_0/", "predictor.block.", BLOCK)
    else:
        predictor = under(r"TimeSpaceTransformerBlock\d?_0/", "predictor.", time_space(block))
    return (
        *under("FrameEncoder_0/CNN_0/", "encoder.backbone.", CNN),
        *under("FrameEncoder_0/ResNet_0/", "encoder.backbone.", resnet(config.resnet)),
        *under("FrameEncoder_0/PositionEmbedding_0/", "encoder.position.", POSITION),
        *under("FrameEncoder_0/Dense_0/", "encoder.project.", DENSE),
        *under("FrameEncoder_0/Transformer_0/", "encoder.transformer.", TRANSFORMER),
        *under("CoordinateEncoderStateInit_0/MLP_0/", "initializer.embed.", MLP),
        *under("SegmentationEncoderStateInit_0/", "initializer.", SEGMENTS),
        Rule("ParamStateInit_0/state_init", "initializer.table", SHAPED),
        *under("NoHintsEncoderStateInit_0/", "initializer.", NO_HINTS),
        *under("SlotAttention_0/", "corrector.", SLOT_ATTENTION),
        *predictor,
        *under("SpatialBroadcastDecoder_0/", "decoder.", decoder(config.targets)),
    )


SEGMENTS = (
    *under("FrameEncoder_0/CNN_0/", "convs.", CNN),
    *under("FrameEncoder_0/PositionEmbedding_0/", "position.", POSITION),
    *under("FrameEncoder_0/MLP_0/", "embed.", MLP),
)
NO_HINTS = (Rule("slots_mu", "mean", SHAPED), Rule("slots_log_sigma", "log_scale", SHAPED))


def joined(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The gates of every GRU as one array, `GRUCell_0/i/kernel` and so on, as ours has them."""
    found = {}
    for path, array in params.items():
        cell, mark, leaf = path.rpartition("GRUCell_0/")
        if not mark or leaf == "hn/bias":
            found[path] = array
            continue
        gate, kind = leaf.split("/")
        if gate[1] == GATES[0]:
            parts = [params[f"{cell}{mark}{gate[0]}{letter}/{kind}"] for letter in GATES]
            found[f"{cell}{mark}{gate[0]}/{kind}"] = np.concatenate(parts, axis=-1)
    return found


def parted(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`joined` undone."""
    found = {}
    for path, array in params.items():
        cell, mark, leaf = path.rpartition("GRUCell_0/")
        if not mark or leaf == "hn/bias":
            found[path] = array
            continue
        gate, kind = leaf.split("/")
        for letter, part in zip(GATES, np.split(np.asarray(array), 3, axis=-1), strict=True):
            found[f"{cell}{mark}{gate}{letter}/{kind}"] = part
    return found
