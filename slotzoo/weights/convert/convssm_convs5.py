"""ConvS5 as NVlabs/ConvSSM names and lays out its parameters: one table, read in both directions.

A rule is a regular expression over the seed's path, the dotted name of our leaf with one `{}` per group, and a
layout that says how the array is turned. Everything but the state-space kernels is stored the same way.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import numpy as np

from slotzoo.errors import WeightsError, nearest
from slotzoo.models.convs5 import ConvS5PixelsConfig, ConvS5TokensConfig
from slotzoo.weights.leaves import fill, named_leaves


Module = TypeVar("Module", bound=eqx.Module)
Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How an array of the seed becomes ours (whose shape is given), and back."""

    ours: Callable[[np.ndarray, Shape], np.ndarray]
    seed: Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """One line of the table."""

    seed: str
    ours: str
    layout: Layout


def _b_to_ours(b: np.ndarray, shape: Shape) -> np.ndarray:
    size, _, channels, planes = shape
    b = b.reshape(planes // 2, channels, size, size, 2)
    return b.transpose(2, 3, 1, 4, 0).reshape(shape)


def _b_to_seed(b: np.ndarray) -> np.ndarray:
    size, _, channels, planes = b.shape
    b = b.reshape(size, size, channels, 2, planes // 2)
    return b.transpose(4, 2, 0, 1, 3).reshape(planes // 2, channels * size**2, 2)


def _c_to_seed(c: np.ndarray) -> np.ndarray:
    size, _, planes, channels = c.shape
    return c.reshape(size, size, 2, planes // 2, channels).transpose(0, 1, 3, 4, 2)


SAME = Layout(lambda x, shape: x, lambda x: x)
COLUMN = Layout(lambda x, shape: x.reshape(-1), lambda x: x.reshape(-1, 1))
# (state, channel * height * width, re/im) -> height, width, channel, [re | im] of state
B_PLANES = Layout(_b_to_ours, _b_to_seed)
# (height, width, state, channel, re/im) -> height, width, [re | im] of state, channel
C_PLANES = Layout(lambda c, shape: c.transpose(0, 1, 4, 2, 3).reshape(shape), _c_to_seed)


def under(seed: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of a part that stands under `seed` there and under `ours` here."""
    return tuple(Rule(seed + rule.seed, ours + rule.ours, rule.layout) for rule in rules)


def same(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    """Rules for arrays that are stored the same way, as pairs (seed, ours)."""
    return tuple(Rule(seed, ours, SAME) for seed, ours in pairs)


SSM = (
    Rule("Lambda_re", "lambda_re", SAME),
    Rule("Lambda_im", "lambda_im", SAME),
    Rule("log_step", "log_step", COLUMN),
    Rule("B", "b", B_PLANES),
    Rule("C", "c", C_PLANES),
    *under(
        "C_D_conv/",
        "head.",
        same(
            (r"Conv_(\d+)/kernel", "convs.{}.weight"),
            (r"Conv_(\d+)/bias", "convs.{}.bias"),
            (r"GroupNorm_(\d+)/(scale|bias)", "norms.{}.{}"),
            (r"norm/(scale|bias)", "norms.0.{}"),
            ("Dense_0/kernel", "gate.weight"),
            ("Dense_0/bias", "gate.bias"),
            (r"SEBlock_0/(reduce|expand)/kernel", "squeeze_excite.{}.weight"),
            (r"SEBlock_0/(reduce|expand)/bias", "squeeze_excite.{}.bias"),
        ),
    ),
)

STACK = (
    *same((r"layers_(\d+)/norm/(scale|bias)", "layers.{}.norm.{}")),
    *under(r"layers_(\d+)/seq/", "layers.{}.ssm.", SSM),
)

RESNET = same(
    ("Conv_0/kernel", "conv.weight"),
    ("Conv_0/bias", "conv.bias"),
    (r"ResNetBlock_(\d+)/skip/kernel", "blocks.{}.skip.weight"),
    (r"ResNetBlock_(\d+)/GroupNorm_0/(scale|bias)", "blocks.{}.norm_1.{}"),
    (r"ResNetBlock_(\d+)/Conv_0/kernel", "blocks.{}.conv_1.weight"),
    (r"ResNetBlock_(\d+)/Conv_0/bias", "blocks.{}.conv_1.bias"),
    (r"ResNetBlock_(\d+)/GroupNorm_1/(scale|bias)", "blocks.{}.norm_2.{}"),
    (r"ResNetBlock_(\d+)/Conv_1/kernel", "blocks.{}.conv_2.weight"),
    (r"ResNetBlock_(\d+)/AddBias_0/bias", "blocks.{}.conv_2.bias"),
    (r"LayerNorm_0/(scale|bias)", "norm.{}"),
    ("Dense_0/kernel", "head.weight"),
    ("Dense_0/bias", "head.bias"),
)

CONVS5 = (
    *under("encoder/", "core.encoder.", RESNET),
    *under("decoder/", "core.decoder.", RESNET),
    *under("sequence_model/", "core.temporal.sequence.", STACK),
    *same(
        ("action_embeds/embedding", "core.temporal.actions.embedding.table"),
        ("action_conv/Conv_0/kernel", "core.temporal.input_conv.weight"),
        ("action_conv/Conv_0/bias", "core.temporal.input_conv.bias"),
    ),
)

CODEBOOK = same(
    ("codebook", "table"), ("Dense_0/kernel", "project_in.weight"), ("Dense_1/kernel", "project_out.weight")
)


def pixels_config(config: Mapping[str, Any]) -> ConvS5PixelsConfig:
    """Our configuration of the seed's `convS5_noVQ`."""
    return ConvS5PixelsConfig(
        **_shared(config),
        channels=config["channels"],
        loss_weight=config["loss_weight"],
    )


def tokens_config(config: Mapping[str, Any], *, num_codes: int, code_dim: int) -> ConvS5TokensConfig:
    """Our configuration of the seed's `convS5`, with the size of the tokenizer's codebook."""
    return ConvS5TokensConfig(
        **_shared(config),
        num_codes=num_codes,
        code_dim=code_dim,
    )


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    reduction = 2 ** (len(config["encoder"]["depths"]) - 1)
    return dict(
        # The seed does not read its `image_size`; the size of the feature maps is what counts.
        height=config["latent_height"] * reduction,
        width=config["latent_width"] * reduction,
        **network_options(config),
        **stack_options(config),
        **state_options(config["ssm"]),
        **layer_options(config),
    )


def network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Encoder, decoder, actions and the tasks of training, which all video models of the seed have."""
    return dict(
        encoder_depths=tuple(config["encoder"]["depths"]),
        encoder_blocks=config["encoder"]["blocks"],
        decoder_depths=tuple(config["decoder"]["depths"]),
        decoder_blocks=config["decoder"]["blocks"],
        use_actions=config["use_actions"],
        num_actions=config["action_dim"],
        action_dim=config["action_embed_dim"],
        action_dropout=config["action_dropout_rate"] if config["dropout_actions"] else 0.0,
        causal_masking=config["causal_masking"],
        open_loop_context=config["open_loop_ctx_1"],
        # An unused value is the text 'None' in some of the published files.
        hidden_value=-2.0 if config["frame_mask_id"] in (None, "None") else float(config["frame_mask_id"]),
        drop_loss=config.get("drop_loss_rate", 0.0),
    )


def stack_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The stack of recurrent layers, of any kind."""
    stack = config["seq_model"]
    return dict(
        d_model=config["d_model"],
        layers=stack["n_layers"],
        use_norm=stack["use_norm"],
        prenorm=stack["prenorm"],
        residual=stack["per_layer_skip"],
        skip_connections=stack["skip_connections"],
        dropout=float(stack["dropout"]),
    )


def state_options(ssm: Mapping[str, Any]) -> dict[str, Any]:
    """The state-space model of ConvS5 and S5."""
    return dict(
        ssm_size=ssm["ssm_size"],
        ssm_blocks=ssm["blocks"],
        dt_min=ssm["dt_min"],
        dt_max=ssm["dt_max"],
        clip_eigenvalues=ssm["clip_eigs"],
    )


def layer_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Kernels and output block of a ConvS5 layer."""
    ssm, stack = config["ssm"], config["seq_model"]
    return dict(
        kernel_b=ssm["B_kernel_size"],
        kernel_c=ssm["C_kernel_size"],
        kernel_d=ssm["D_kernel_size"],
        head="none" if ssm["C_D_config"] == "diag_resnet" else ssm["C_D_config"],
        activation=stack["layer_activation"],
        ssm_groups=stack["num_groups"],
        squeeze_excite=stack["squeeze_excite"],
    )


def from_seed(
    params: Mapping[str, np.ndarray],
    model: Module,
    rules: Iterable[Rule],
    *,
    what: str = "checkpoint of ConvSSM",
) -> Module:
    """`model` (which may be abstract) with every parameter replaced by the seed's, which `params` holds by path.

    **Raises** `WeightsError` for a path that no rule knows, a leaf that is left over, or a shape that differs.
    """
    leaves = named_leaves(model)
    found = {}
    for path, array in params.items():
        name, layout = _find(path, rules)
        if name not in leaves:
            raise WeightsError(f"{path} belongs to '{name}', which the model lacks.{nearest(name, leaves)}")
        shape = tuple(leaves[name].shape)
        if array.size != math.prod(shape):
            raise WeightsError(f"{path} has shape {array.shape}; it does not fit '{name}' of shape {shape}.")
        found[name] = layout.ours(np.asarray(array), shape)
    return fill(model, found, what=what)


def to_seed(model: eqx.Module, paths: Iterable[str], rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """The arrays of `model` (parameters, or gradients) that the seed keeps under `paths`, in its layout."""
    leaves = named_leaves(model)
    result = {}
    for path in paths:
        name, layout = _find(path, rules)
        result[path] = layout.seed(np.asarray(leaves[name]))
    return result


def _find(path: str, rules: Iterable[Rule]) -> tuple[str, Layout]:
    for rule in rules:
        if match := re.fullmatch(rule.seed, path):
            return rule.ours.format(*match.groups()), rule.layout
    raise WeightsError(f"no rule for the parameter {path!r}.")
