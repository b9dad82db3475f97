"""The released SlotSSM, its Mamba mixers and its image sides: their parameters' names and layouts, and ours.

Projections that are packed into one matrix there (queries, keys, values) are taken apart first, by `unpacked`, and put
together again by `packed`; the tables below know the parts as `Wqkv.q` and so on.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from slotzoo.errors import WeightsError
from slotzoo.weights.convert.object_discovery_slots import TRANSPOSED
from slotzoo.weights.convert.rules import SAME, Layout, Rule, same, under
from slotzoo.weights.convert.torch_rules import BATCHED_TABLE, BATCHED_VECTOR, KERNEL, VECTOR, layer, norm


# `Wqkv.weight` and `Wkv.bias` of FlashAttention, `in_proj_weight` of PyTorch: equal parts along the first axis.
_PACKED = re.compile(r"(?P<name>.*\b(?P<kind>Wqkv|Wkv|in_proj))(?P<dot>[._])(?P<what>weight|bias)")
# Arrays that are no parameters: fixed grids and tables, which are computed here.
BUFFERS = ("pos.grid_x", "pos.grid_y")

# A causal convolution (channel, 1, tap) as (tap, channel), and D, one number per head or per channel.
TAPS = Layout(lambda x, shape: x[:, 0].T, lambda x: x.T[:, None])
FLAT = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
SLOTS = Layout(lambda x, shape: x.reshape(shape), lambda x: x[None, None])

MAMBA = (
    *same(("A_log", "a_log"), ("dt_bias", "dt_bias")),
    Rule("D", "d", FLAT),
    *layer("in_proj", "in_proj"),
    Rule(r"conv1d\.weight", "conv.weight", TAPS),
    Rule(r"conv1d\.bias", "conv.bias", VECTOR),
    *layer("x_proj", "x_proj"),
    *layer("dt_proj", "dt_proj"),
    Rule(r"norm\.weight", "norm.scale", VECTOR),
    *layer("out_proj", "out_proj"),
)


def _parts(seed: str, ours: str, parts: str) -> tuple[Rule, ...]:
    names = {"q": "query", "k": "key", "v": "value"}
    return tuple(rule for part in parts for rule in layer(rf"{seed}\.{part}", f"{ours}{names[part]}"))


# FlashAttention's module for attention to itself and to others, and the repository's own.
SELF_ATTENTION = (*_parts("Wqkv", "", "qkv"), *layer("out_proj", "out"))
CROSS_ATTENTION = (*layer("Wq", "query"), *_parts("Wkv", "", "kv"), *layer("out_proj", "out"))
ATTENTION = (
    *layer("proj_q", "query"),
    *layer("proj_k", "key"),
    *layer("proj_v", "value"),
    *layer("proj_o", "out"),
)
BLOCK = (
    *norm("cross_attn_input_norm", "reader.slot_norm"),
    *norm("cross_attn_ref_norm", "reader.token_norm"),
    *layer("input_proj", "reader.token_proj"),
    *under(r"cross_attn\.", "reader.attention.project.", ATTENTION),
    *under(r"cross_attn\.", "reader.attention.", CROSS_ATTENTION),
    *norm("time_mixer_norm", "mixer_norm"),
    *under(r"time_mixer\.", "mixer.", MAMBA),
    *norm("space_attn_norm", "slot_norm"),
    *under(r"space_attn\.", "slot_attention.", SELF_ATTENTION),
    *norm("ffn_norm", "ffn_norm"),
    *layer(r"ffn\.0", "ffn.first"),
    *layer(r"ffn\.2", "ffn.second"),
)
STACK = (Rule("init_slots", "start", SLOTS), *under(r"blocks\.(\d+)\.", "blocks.{}.", BLOCK))

_LAYERS = under(
    r"encoder\.layers\.(\d+)\.",
    "layers.{}.",
    (
        *under(r"self_attn\.", "attention.", (*_parts("in_proj", "", "qkv"), *layer("out_proj", "out"))),
        *layer("linear1", "ffn.first"),
        *layer("linear2", "ffn.second"),
        *norm("norm1", "attention_norm"),
        *norm("norm2", "ffn_norm"),
    ),
)
VIT_ENCODER = (
    *layer("patch_embedding", "patches"),
    Rule("position_embeddings", "positions", BATCHED_TABLE),
    Rule("cls_tokens", "class_tokens", BATCHED_TABLE),
    Rule("cls_tokens_log_sigma", "class_log_scale", BATCHED_TABLE),
    *_LAYERS,
    *layer("output_proj", "out"),
)
VIT_DECODER = (
    *layer("input_proj", "project"),
    Rule("mask_token", "mask_token", BATCHED_VECTOR),
    *_LAYERS,
    *norm(r"pred\.0", "norm"),
    *layer(r"pred\.1", "out"),
)
CNN_ENCODER = (
    *layer("conv1", "first"),
    *norm("norm1", "first_norm"),
    *under(
        r"layers\.(\d+)\.(\d+)\.",
        "blocks.{}.{}.",
        (
            *norm("norm1", "norm_1"),
            *layer("conv1", "conv_1"),
            *norm("norm2", "norm_2"),
            *layer("conv2", "conv_2"),
        ),
    ),
    *norm("final_norm", "last_norm"),
    *layer("final_conv", "last"),
)


def broadcast_decoder(*, doubling: bool) -> tuple[Rule, ...]:
    """The table of the spatial broadcast decoder, whose last layer doubles the size or does not."""
    return (
        *norm("norm", "norm"),
        Rule(r"cnn_transpose\.(\d+)\.conv\.weight", "blocks.{}.conv.weight", TRANSPOSED),
        Rule(r"cnn_transpose\.(\d+)\.conv\.bias", "blocks.{}.conv.bias", VECTOR),
        *norm(r"cnn_transpose\.(\d+)\.norm", "blocks.{}.norm"),
        Rule(r"cnn_transpose\.\d+\.weight", "last.weight", TRANSPOSED if doubling else KERNEL),
        Rule(r"cnn_transpose\.\d+\.bias", "last.bias", SAME),
    )


def unpacked(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a state dict, packed ones taken apart, without buffers."""
    result = {}
    for name, array in state.items():
        if name.endswith(BUFFERS):
            continue
        names = pieces(name)
        result.update(zip(names, np.split(array, len(names)), strict=True))
    return result


def packed(parts: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays under their own `names`, from the parts that `unpacked` makes of them."""
    return {name: np.concatenate([parts[piece] for piece in pieces(name)]) for name in names}


def pieces(name: str) -> list[str]:
    """The names of the parts that are packed under `name`; itself if nothing is."""
    match = _PACKED.fullmatch(name)
    if match is None or (match["kind"] == "in_proj") != (match["dot"] == "_"):
        return [name]
    return [f"{match['name']}.{part}.{match['what']}" for part in ("kv" if match["kind"] == "Wkv" else "qkv")]


def whole(piece: str) -> str:
    """The name that a part is packed under; itself if it is not packed."""
    match = re.fullmatch(r"(.*\b(Wqkv|Wkv|in_proj))\.[qkv]\.(weight|bias)", piece)
    if match is None:
        return piece
    return f"{match[1]}{'_' if match[2] == 'in_proj' else '.'}{match[3]}"


def seed_name(leaf: str, rules: Iterable[Rule], *, number: str = "") -> str:
    """The seed's name of our leaf; `number` stands for a layer's number that our name does not tell.

    **Raises** `WeightsError` for a leaf that the seed does not have.
    """
    for rule in rules:
        match = re.fullmatch(re.escape(rule.ours).replace(r"\{\}", r"(\d+)"), leaf)
        if match is not None:
            name = rule.seed
            for group in match.groups():
                name = name.replace(r"(\d+)", group, 1)
            return name.replace(r"\d+", number).replace("\\", "")
    raise WeightsError(f"the released SlotSSM has no parameter for '{leaf}'.")
