"""TECO with any temporal core as NVlabs/ConvSSM names and lays out its parameters: rules read in both directions."""

from collections.abc import Mapping
from typing import Any

from slotzoo.models.teco_config import TECOConfig
from slotzoo.weights.convert.convssm_convs5 import (
    CODEBOOK,
    RESNET,
    STACK,
    layer_options,
    network_options,
    stack_options,
    state_options,
)
from slotzoo.weights.convert.convssm_s5 import S5_STACK
from slotzoo.weights.convert.convssm_transformer import maskgit, transformer
from slotzoo.weights.convert.rules import Layout, Rule, same, under


# The seed's transposed convolution turns its kernel round in both axes of space; ours is stored as it is used.
TURNED = Layout(lambda x, shape: x[::-1, ::-1], lambda x: x[::-1, ::-1])


def teco(config: TECOConfig) -> tuple[Rule, ...]:
    """The rules of a `slotzoo.models.teco.TECO` of this configuration."""
    core = {"convs5": STACK, "s5": S5_STACK, "transformer": ()}[config.temporal]
    return (
        *under("encoder/layers_0/", "encoder.", RESNET),
        *under("decoder/", "decoder.", RESNET),
        *under("codebook/", "codebook.", CODEBOOK),
        *under("z_git/", "prior.", maskgit(config.prior_heads)),
        *under("sequence_model/", "temporal.sequence.", core),
        *under("z_tfm/", "temporal.net.", transformer(config.heads)),
        *same(
            ("encoder/layers_1/kernel", "to_latent.weight"),
            ("encoder/layers_1/bias", "to_latent.bias"),
            ("sos_post", "first"),
            ("action_embeds/embedding", "temporal.actions.embedding.table"),
            ("action_conv/Conv_0/kernel", "temporal.input_conv.weight"),
            ("action_conv/Conv_0/bias", "temporal.input_conv.bias"),
            ("z_proj/kernel", "temporal.project.weight"),
            ("sos", "unused" if config.temporal == "s5" else "temporal.start"),
        ),
        Rule("z_unproj/kernel", "temporal.expand.weight", TURNED),
    )


def teco_config(
    config: Mapping[str, Any], *, num_codes: int, code_dim: int, height: int, width: int
) -> TECOConfig:
    """Our configuration of the seed's `teco_convS5`, `teco_S5` and `teco_transformer`.

    The sizes are those of the tokenizer: its codebook, and the map of codes of a frame.
    """
    prior, layout = config["z_git"], config["z_git"]["tfm_kwargs"]
    core = _transformer_core if "z_tfm_kwargs" in config else _state_space_core
    return TECOConfig(
        **core(config),
        num_codes=num_codes,
        code_dim=code_dim,
        height=height,
        width=width,
        **network_options(config),
        embedding_dim=config["embedding_dim"],
        latent_codes=config["codebook"]["n_codes"],
        latent_code_dim=config["codebook"]["proj_dim"],
        prior_vocab_dim=prior["vocab_dim"],
        prior_dim=layout["embed_dim"],
        prior_mlp_dim=layout["mlp_dim"],
        prior_heads=layout["num_heads"],
        prior_layers=layout["num_layers"],
        prior_schedule=prior["mask_schedule"],
        draft=config["T_draft"],
        revise=config["T_revise"],
        rounds=config["M"],
    )


def _state_space_core(config: Mapping[str, Any]) -> dict[str, Any]:
    core = {**stack_options(config), **state_options(config["ssm"])}
    if "z_ds" in config:
        return core | dict(temporal="s5", patch=config["z_ds"], ssm_groups=1)
    return core | dict(temporal="convs5", **layer_options(config))


def _transformer_core(config: Mapping[str, Any]) -> dict[str, Any]:
    layout = config["z_tfm_kwargs"]
    return dict(
        temporal="transformer",
        patch=config["z_ds"],
        layers=layout["num_layers"],
        d_model=layout["embed_dim"],
        mlp_dim=layout["mlp_dim"],
        heads=layout["num_heads"],
        dropout=float(layout["dropout"]),
        ssm_groups=1,
    )
