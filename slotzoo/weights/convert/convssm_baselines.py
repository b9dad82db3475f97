"""S5, ConvLSTM and Transformer as NVlabs/ConvSSM names and lays out their parameters: rules read in both directions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slotzoo.errors import ConfigError
from slotzoo.models.video_baselines import (
    ConvLSTMPixelsConfig,
    S5TokensConfig,
    TransformerPixelsConfig,
    TransformerTokensConfig,
)
from slotzoo.weights.convert.convssm_convs5 import RESNET, network_options, stack_options, state_options
from slotzoo.weights.convert.convssm_s5 import S5_STACK
from slotzoo.weights.convert.convssm_teco import TURNED
from slotzoo.weights.convert.convssm_transformer import transformer
from slotzoo.weights.convert.rules import Rule, same, under


BaselineConfig = ConvLSTMPixelsConfig | S5TokensConfig | TransformerPixelsConfig | TransformerTokensConfig
# The names of their models, by the registry's name of ours.
NAMES = {
    "S5": "s5_dmlab",
    "transformer": "transformer_dmlab",
    "transformer_noVQ": "transformer_mnist300",
    "convLSTM_noVQ": "convlstm_mnist300",
}
# A parameter that their token Transformer makes and never uses.
UNUSED = "sos_post"

_LSTM_STACK = same(
    (r"layers_(\d+)/norm/(scale|bias)", "layers.{}.norm.{}"),
    (r"layers_(\d+)/seq/A", "layers.{}.ssm.kernel"),
)


def baseline(config: BaselineConfig) -> tuple[Rule, ...]:
    """The rules of a `VideoPixels` or `VideoTokens` of this configuration."""
    heads = getattr(config, "heads", 1)
    stack = _LSTM_STACK if config.core == "convlstm" else S5_STACK
    return (
        *under("encoder/", "core.encoder.", RESNET),
        *under("decoder/", "core.decoder.", RESNET),
        *under("sequence_model/", "core.temporal.sequence.", stack),
        *under("z_tfm/", "core.temporal.net.", transformer(heads)),
        *same(
            ("action_embeds/embedding", "core.temporal.actions.embedding.table"),
            ("action_conv/Conv_0/kernel", "core.temporal.input_conv.weight"),
            ("action_conv/Conv_0/bias", "core.temporal.input_conv.bias"),
            ("z_proj/kernel", "core.temporal.project.weight"),
            ("sos", "core.temporal.start"),
        ),
        Rule("z_unproj/kernel", "core.temporal.expand.weight", TURNED),
    )


def used(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters without the one that nothing uses."""
    return {path: array for path, array in params.items() if path.removeprefix("param/") != UNUSED}


def baseline_config(
    model: str, config: Mapping[str, Any], *, tokens: tuple[int, int, int, int] | None = None
) -> BaselineConfig:
    """Our configuration of a run of their `model` (a key of `NAMES`).

    `tokens`: codes, channels, height and width of the tokenizer's latents, for the models over tokens.
    """
    seen: dict[str, Any]
    if model in ("S5", "transformer"):
        if tokens is None:
            raise ConfigError(f"{model} works on tokens: say which.")
        seen = dict(zip(("num_codes", "code_dim", "height", "width"), tokens, strict=True))
    else:
        reduction = 2 ** (len(config["encoder"]["depths"]) - 1)
        shape = config.get("latent_shape") or (config["latent_height"], config["latent_width"])
        seen = dict(
            height=shape[0] * reduction,
            width=shape[1] * reduction,
            channels=config["channels"],
            loss_weight=config["loss_weight"],
        )
    shared = network_options(config) | seen
    match model:
        case "convLSTM_noVQ":
            return ConvLSTMPixelsConfig(
                **shared, **stack_options(config), kernel_size=config["ssm"]["kernel_size"]
            )
        case "S5":
            return S5TokensConfig(
                **shared, **stack_options(config), **_squares(config), **state_options(config["ssm"])
            )
        case "transformer":
            return TransformerTokensConfig(**shared, **_squares(config), **_layers(config["z_tfm_kwargs"]))
        case "transformer_noVQ":
            return TransformerPixelsConfig(**shared, **_squares(config), **_layers(config["z_tfm_kwargs"]))
        case _:
            raise ConfigError(f"{model!r} is none of the baselines {', '.join(NAMES)}.")


def _squares(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(patch=config["z_ds"], feature_dim=config["embedding_dim"])


def _layers(layout: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        d_model=layout["embed_dim"],
        layers=layout["num_layers"],
        heads=layout["num_heads"],
        mlp_dim=layout["mlp_dim"],
        dropout=float(layout["dropout"]),
        attention_dropout=float(layout["attention_dropout"]),
    )
