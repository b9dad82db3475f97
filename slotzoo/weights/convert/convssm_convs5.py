"""ConvS5 as NVlabs/ConvSSM names and lays out its parameters: one table (`rules`).

Everything but the state-space kernels is stored the same way.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slotzoo.models.convs5 import ConvS5PixelsConfig, ConvS5TokensConfig
from slotzoo.weights.convert.rules import SAME, Layout, Rule, Shape, same, under


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


COLUMN = Layout(lambda x, shape: x.reshape(-1), lambda x: x.reshape(-1, 1))
# (state, channel * height * width, re/im) -> height, width, channel, [re | im] of state
B_PLANES = Layout(_b_to_ours, _b_to_seed)
# (height, width, state, channel, re/im) -> height, width, [re | im] of state, channel
C_PLANES = Layout(lambda c, shape: c.transpose(0, 1, 4, 2, 3).reshape(shape), _c_to_seed)


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
        # Where nothing is hidden, the published files have the text 'None', those of Moving-MNIST no such value at all.
        hidden_value=-2.0 if config.get("frame_mask_id") in (None, "None") else float(config["frame_mask_id"]),
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
