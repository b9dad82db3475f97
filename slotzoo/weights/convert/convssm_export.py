"""Writes models as runs of ConvSSM and TECO (`args`, `checkpoints/checkpoint_<step>`) by the rules they are read with.

The training state has moments of zero, as a new run has. `args` holds what their code reads to build the model, and for
the training itself what all of their configurations say.
"""

import argparse
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from slotzoo.errors import WeightsError
from slotzoo.files import write_bytes
from slotzoo.models.convs5 import ConvS5PixelsConfig, ConvS5TokensConfig
from slotzoo.models.kl_vae import KLVAE, KLVAEConfig
from slotzoo.models.teco_config import TECOConfig
from slotzoo.models.video_baselines import (
    ConvLSTMPixelsConfig,
    S5TokensConfig,
    TransformerPixelsConfig,
    TransformerTokensConfig,
)
from slotzoo.models.video_config import (
    ConvS5Config,
    PatchConfig,
    PixelsConfig,
    SSMConfig,
    StackConfig,
    TokensConfig,
)
from slotzoo.models.vqgan import VQGAN, VQGANConfig
from slotzoo.weights.convert.convssm_baselines import UNUSED, baseline
from slotzoo.weights.convert.convssm_convs5 import CONVS5
from slotzoo.weights.convert.convssm_teco import teco
from slotzoo.weights.convert.convssm_vqgan import leaves
from slotzoo.weights.convert.rules import Rule, to_seed
from slotzoo.weights.flax_msgpack import nested, write_flax
from slotzoo.weights.leaves import named_leaves


_KINDS = {
    VQGANConfig: "vqgan",
    KLVAEConfig: "autoencoder",
    ConvS5PixelsConfig: "convS5_noVQ",
    ConvS5TokensConfig: "convS5",
    ConvLSTMPixelsConfig: "convLSTM_noVQ",
    S5TokensConfig: "S5",
    TransformerTokensConfig: "transformer",
    TransformerPixelsConfig: "transformer_noVQ",
}
_TECO = {"convs5": "teco_convS5", "s5": "teco_S5", "transformer": "teco_transformer"}
# What their modules have built in, by our names.
_BUILT_IN = {"norm_groups": 32, "label_smoothing": 0.01, "discretisation": "zoh", "normalize": False}
# What all of their configurations say of training and sampling; none of it is in a model of ours.
_TRAINING: dict[str, Any] = dict(
    **dict(seed=1, cache=False, multinode=False, batch_size=8, eval_size=512, num_workers=4, num_shards=None),
    **dict(lr=5e-4, lr_schedule="cosine", weight_decay=1e-5, total_steps=300_000, warmup_steps=5000),
    **dict(save_interval=2000, viz_interval=2000, log_interval=100, seq_len=300, eval_seq_len=300),
    **dict(rng_keys=["dropout", "sample"], batch_keys=["video", "actions"], n_cond=1, action_mask_id=-1),
    **dict(open_loop_ctx=36, action_conditioned_1=True, open_loop_ctx_2=36, action_conditioned_2=False),
    **dict(run_id="slotzoo", data_path="data"),
)


def can_export(model: eqx.Module) -> bool:
    """Whether ConvSSM or TECO have a model of this kind."""
    return _kind(getattr(model, "config", None)) is not None


def export_run(model: Any, folder: str | Path, *, step: int = 0, tokenizer: str = "vqgan") -> Path:
    """Write a model as the folder of a run of its authors. Returns the folder.

    `tokenizer` is the name of the VQ-GAN's run, which a model over tokens is told to find beside its own.
    **Raises** `WeightsError` for a model that their code cannot build.
    """
    folder, config = Path(folder), getattr(model, "config", None)
    kind = _kind(config)
    if kind is None or config is None:
        raise WeightsError(f"ConvSSM and TECO have no model like this {type(model).__name__}.")
    beyond = [name for name, value in _BUILT_IN.items() if getattr(config, name, value) != value]
    if beyond:
        said = ", ".join(f"{name}={getattr(config, name)}" for name in beyond)
        raise WeightsError(f"the authors' {kind} cannot be built with {said}, as this model is.")
    if isinstance(model, (VQGAN, KLVAE)):
        arrays = {theirs: np.asarray(named_leaves(model)[ours]) for ours, theirs in leaves(model).items()}
        args, optimiser = _tokenizer_args(config), {}
    else:
        arrays = {f"param/{path}": array for path, array in _parameters(model, config).items()}
        args = _video_args(config) | {"vqvae_ckpt": tokenizer if _over_tokens(config) else None}
        zeros = lambda: nested({path.removeprefix("param/"): np.zeros_like(a) for path, a in arrays.items()})
        count = np.asarray(step, np.int32)
        optimiser = {"0": {"count": count, "mu": zeros(), "nu": zeros()}, "1": {}, "2": {"count": count}}
    tree = nested(arrays)
    state = {"step": np.asarray(step, np.int32), "params": tree.pop("param"), "opt_state": optimiser}
    write_flax(folder / "checkpoints" / f"checkpoint_{step}", state | {"model_state": tree})
    args |= {"model": kind, "output_dir": folder.name}
    write_bytes(folder / "args", pickle.dumps(argparse.Namespace(**args)))
    return folder


def _kind(config: Any) -> str | None:
    return _TECO[config.temporal] if type(config) is TECOConfig else _KINDS.get(type(config))


def _over_tokens(config: Any) -> bool:
    return isinstance(config, (TokensConfig, TECOConfig))


def _parameters(model: Any, config: Any) -> dict[str, np.ndarray]:
    """The parameters by the authors' paths."""
    if isinstance(config, TECOConfig):
        rules = teco(config)
    else:
        rules = CONVS5 if isinstance(config, ConvS5Config) else baseline(config)
    if getattr(config, "head", None) == "half_glu":  # its norm is of another kind, and has another name
        rules = tuple(rule for rule in rules if "C_D_conv/GroupNorm" not in rule.seed)
    arrays = to_seed(model, [_path(leaf, rules) for leaf in named_leaves(model)], rules)
    if isinstance(config, TransformerTokensConfig):
        arrays[UNUSED] = np.zeros((config.height, config.width, config.code_dim), np.float32)
    return arrays


def _path(leaf: str, rules: Iterable[Rule]) -> str:
    """The authors' path of a leaf: the first rule that leads to it, read backwards."""
    for rule in rules:
        groups = re.findall(r"\([^)]*\)", rule.seed)
        match = re.fullmatch(re.escape(rule.ours).replace(r"\{\}", "{}").format(*groups), leaf)
        if match:
            path = rule.seed
            for group, found in zip(groups, match.groups(), strict=True):
                path = path.replace(group, found, 1)
            return path
    raise WeightsError(f"the authors' code has no parameter for '{leaf}'.")


def _tokenizer_args(c: VQGANConfig | KLVAEConfig) -> dict[str, Any]:
    codes = {"n_embed": c.n_embed, "double_z": c.double_z} if isinstance(c, VQGANConfig) else {"double_z": True}
    return dict(
        resolution=c.resolution,
        ch=c.ch,
        ch_mult=list(c.ch_mult),
        num_res_blocks=c.num_res_blocks,
        attn_resolutions=list(c.attn_resolutions),
        z_channels=c.z_channels,
        embed_dim=c.embed_dim,
        dropout=0.0,
        data_path="data",
        **codes,
    )


def _video_args(c: Any) -> dict[str, Any]:
    """What `pixels_config`, `tokens_config`, `baseline_config` and `teco_config` read, the other way round."""
    a = lambda kind: isinstance(c, kind)
    core = c.temporal if a(TECOConfig) else c.core
    args = _TRAINING | dict(
        encoder={"depths": list(c.encoder_depths), "blocks": c.encoder_blocks},
        decoder={"depths": list(c.decoder_depths), "blocks": c.decoder_blocks},
        use_actions=c.use_actions,
        action_dim=c.num_actions,
        action_embed_dim=c.action_dim,
        dropout_actions=c.action_dropout > 0,
        action_dropout_rate=c.action_dropout,
        causal_masking=c.causal_masking,
        open_loop_ctx_1=c.open_loop_context,
        frame_mask_id=c.hidden_value,
        drop_loss_rate=c.drop_loss,
        image_size=c.height,
        channels=getattr(c, "channels", 3),
        loss_weight=getattr(c, "loss_weight", 0.5),
        latent_height=c.latent_size[0],
        latent_width=c.latent_size[1],
        d_model=c.d_model,
    )
    stack: dict[str, Any] = {}
    if a(StackConfig) and core != "transformer":
        stack = dict(
            n_layers=c.layers,
            dropout=c.dropout,
            use_norm=c.use_norm,
            prenorm=c.prenorm,
            per_layer_skip=c.residual,
            skip_connections=c.skip_connections,
        )
        args["seq_model"] = stack
    if a(SSMConfig) and core in ("convs5", "s5"):
        args["ssm"] = dict(
            ssm_size=c.ssm_size,
            blocks=c.ssm_blocks,
            dt_min=c.dt_min,
            dt_max=c.dt_max,
            clip_eigs=c.clip_eigenvalues,
        )
    if a(ConvS5Config) and core == "convs5":
        stack |= dict(layer_activation=c.activation, num_groups=c.ssm_groups, squeeze_excite=c.squeeze_excite)
        args["ssm"] |= dict(B_kernel_size=c.kernel_b, C_kernel_size=c.kernel_c, D_kernel_size=c.kernel_d)
        args["ssm"]["C_D_config"] = "diag_resnet" if c.head == "none" else c.head
    if a(ConvLSTMPixelsConfig):
        args["ssm"] = dict(ssm_size=c.d_model, kernel_size=c.kernel_size)
    if a(PatchConfig) or core in ("s5", "transformer"):
        args["z_ds"] = c.patch
        args["latent_shape"] = list(c.latent_size)
    if a(PatchConfig):
        args["embedding_dim"] = c.feature_dim
    if core == "transformer":
        dropout = {"dropout": c.dropout, "attention_dropout": getattr(c, "attention_dropout", 0.0)}
        args["z_tfm_kwargs"] = _transformer_args(c.d_model, c.mlp_dim, c.heads, c.layers) | dropout
    if a(TECOConfig):
        args |= _teco_args(c)
    if a(PixelsConfig):
        args |= dict(eval_seq_len_1=500, eval_seq_len_2=900, eval_seq_len_3=1300, open_loop_ctx=100)
    return args


def _transformer_args(dim: int, mlp_dim: int, heads: int, layers: int) -> dict[str, Any]:
    return dict(
        embed_dim=dim, mlp_dim=mlp_dim, num_heads=heads, num_layers=layers, dropout=0.0, attention_dropout=0.0
    )


def _teco_args(c: TECOConfig) -> dict[str, Any]:
    return dict(
        embedding_dim=c.embedding_dim,
        codebook={"n_codes": c.latent_codes, "proj_dim": c.latent_code_dim},
        z_git=dict(
            vocab_dim=c.prior_vocab_dim,
            mask_schedule=c.prior_schedule,
            tfm_kwargs=_transformer_args(c.prior_dim, c.prior_mlp_dim, c.prior_heads, c.prior_layers),
        ),
        T_draft=c.draft,
        T_revise=c.revise,
        M=c.rounds,
    )
