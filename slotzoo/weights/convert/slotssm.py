"""Checkpoint folders of the released SlotSSM, read and written: three models of transformers' kind, each a folder.

    checkpoint_step_1000/{vitencoder,slotssm,vitdecoder}/{config.json, model.safetensors}

Weights may be `pytorch_model.bin` too. A `config.json` is data: sizes are read from it, nothing that it names is used.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import safetensors.numpy

from slotzoo.errors import ConfigError, WeightsError
from slotzoo.models import model_config
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig
from slotzoo.nn.slot_cnn import NormedBroadcastDecoder
from slotzoo.nn.vit import grid_positions
from slotzoo.weights.convert.convssm import Converted
from slotzoo.weights.convert.rules import Rule, from_seed, to_seed, under
from slotzoo.weights.convert.slotssm_rules import (
    CNN_ENCODER,
    STACK,
    VIT_DECODER,
    VIT_ENCODER,
    broadcast_decoder,
    packed,
    seed_name,
    unpacked,
    whole,
)
from slotzoo.weights.files import read_arrays
from slotzoo.weights.leaves import named_leaves
from slotzoo.weights.torch_file import read_torch


ENCODERS = ("vitencoder", "cnnencoder")
DECODERS = ("vitdecoder", "sbdecoder")
MOST_CONFIG_BYTES = 1 << 20
# What the released code leaves to its loader and its job stands under our names in the slots' config.json, where
# transformers keeps names that it does not know; a checkpoint of theirs is silent about it.
OWN: dict[str, Any] = dict(normalise="imagenet", target="video", decode="every")
# What transformers fills in where a config.json is silent.
STACK_DEFAULTS: dict[str, Any] = dict(
    num_slots=32,
    num_blocks=4,
    d_model=256,
    use_cross_attn=True,
    space_attn_num_heads=None,
    input_d_model=None,
    use_inverted_attention=False,
    encoder_attn_num_heads=None,
    use_ffn=False,
    mamba_version="mamba2",
    mamba_d_state=128,
    mamba_d_conv=4,
    mamba_expand=2,
    mamba_headdim=64,
)
ENCODER_DEFAULTS: dict[str, Any] = dict(
    hidden_size=192,
    output_size=None,
    num_hidden_layers=6,
    num_attention_heads=8,
    intermediate_size=None,
    hidden_act="gelu",
    image_size=224,
    patch_size=16,
    num_channels=3,
    num_cls_tokens=1,
    learn_initial_cls_tokens=True,
)
DECODER_DEFAULTS: dict[str, Any] = dict(
    input_size=None,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=None,
    hidden_act="relu",
    image_size=224,
    patch_size=16,
    num_channels=3,
    num_cls_tokens=1,
)
CNN_DEFAULTS: dict[str, Any] = dict(
    input_channels=3,
    input_resolution=128,
    kernel_size=5,
    hidden_size=192,
    out_channels=192,
    downsampling_ratio=2,
    num_hidden_layers=3,
    blocks_per_layer=2,
)
SB_DEFAULTS: dict[str, Any] = dict(
    in_channels=192, out_channels=3, initial_size=8, output_resolution=128, hidden_size=192
)


class Part(NamedTuple):
    """One folder: its configuration with the defaults put in, and its arrays."""

    kind: str
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder looks like a checkpoint of SlotSSM."""
    return (Path(folder) / "slotssm" / "config.json").is_file()


def convert_folder(folder: str | Path) -> Converted:
    """The model of a checkpoint folder, with its weights; nothing but the three models in it is read.

    **Raises** `WeightsError` for what is missing, unknown, or does not fit.
    """
    folder = Path(folder)
    parts = {name: _part(folder, kinds) for name, kinds in _PARTS.items()}
    try:
        config = slotssm_config(*(part.config for part in parts.values()))
        abstract = eqx.filter_eval_shape(lambda: SlotSSM(config, key=jax.random.key(0)))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"the configurations in '{folder}' do not describe a SlotSSM: {error}") from error
    state = {f"{name}.{path}": array for name, part in parts.items() for path, array in part.arrays.items()}
    model = from_seed(parameters(state, config), abstract, rules(config), what=f"'{folder}'")
    step = re.search(r"(\d+)$", folder.name)
    name = "slotssm_clevrer" if config.decoder == "vit" else "oc_slotssm_movi_a"
    return Converted(model, name, config, int(step.group(1)) if step else 0, "SlotSSM of its authors")


def export_folder(model: eqx.Module, folder: str | Path) -> Path:
    """Write a model as the released code writes it: `config.json` and `model.safetensors` per part. Returns the folder.

    **Raises** `WeightsError` for a model that the released code has no modules for.
    """
    if not isinstance(model, SlotSSM):
        raise WeightsError(
            f"only a SlotSSM and models of ConvSSM and TECO can be written as their authors do, this is a "
            f"{type(model).__name__}."
        )
    folder, c = Path(folder), model.config
    configs, table = _released(c), rules(c)
    blocks = len(model.decoder.blocks) if isinstance(model.decoder, NormedBroadcastDecoder) else 0
    names = [seed_name(leaf, table, number=str(blocks)) for leaf in named_leaves(model)]
    arrays = packed(to_seed(model, names, table), dict.fromkeys(whole(name) for name in names))
    arrays |= _buffers(c)
    for part, (kind, config) in configs.items():
        own = {
            name.removeprefix(f"{part}."): np.asarray(array, np.float32, order="C")
            for name, array in arrays.items()
            if name.startswith(f"{part}.")
        }
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        safetensors.numpy.save_file(own, folder / kind / "model.safetensors", metadata={"format": "pt"})
    return folder


def rules(config: SlotSSMConfig) -> tuple[Rule, ...]:
    """The table of a whole model, whose parts stand under `encoder`, `slotssm` and `decoder`."""
    encoder = VIT_ENCODER if config.encoder == "vit" else CNN_ENCODER
    doubling = config.decoder == "broadcast" and config.out_resolution > 8 * config.decoder_grid
    decoder = VIT_DECODER if config.decoder == "vit" else broadcast_decoder(doubling=doubling)
    return (
        *under(r"encoder\.", "encoder.", encoder),
        *under(r"slotssm\.", "stack.", STACK),
        *under(r"decoder\.", "decoder.", decoder),
    )


def parameters(state: Mapping[str, np.ndarray], config: SlotSSMConfig) -> dict[str, np.ndarray]:
    """What the rules take of the arrays of a whole model, by path with the part in front.

    The fixed positions of the decoder are left out: they are computed here. **Raises** `WeightsError` where those of
    the checkpoint are others.
    """
    state, name = dict(state), "decoder.position_embeddings"
    if config.decoder == "vit" and name in state:
        expected = _table(config)
        found = state.pop(name)
        if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-5):
            raise WeightsError(
                "the decoder's fixed positions are not the sines and cosines that the code makes."
            )
    return unpacked(state)


def slotssm_config(
    encoder: Mapping[str, Any], stack: Mapping[str, Any], decoder: Mapping[str, Any]
) -> SlotSSMConfig:
    """The configuration that the three parts' own describe; they may be silent about what has a default.

    **Raises** `WeightsError` for parts that do not fit together, or that the code itself cannot run.
    """
    sizes = STACK_DEFAULTS | dict(stack)
    heads = max(sizes["d_model"] // 64, 1)
    if not sizes["use_cross_attn"] or sizes["input_d_model"] is None:
        raise WeightsError("the checkpoint's blocks read no frames (use_cross_attn or input_d_model is off).")
    if sizes["mamba_version"] not in ("mamba1", "mamba2"):
        raise WeightsError(f"mamba_version={sizes['mamba_version']!r} is none of 'mamba1', 'mamba2'.")
    found = dict(
        **{name: sizes.get(name, default) for name, default in OWN.items()},
        num_slots=sizes["num_slots"],
        dim=sizes["d_model"],
        token_dim=sizes["input_d_model"],
        blocks=sizes["num_blocks"],
        cross="inverted" if sizes["use_inverted_attention"] else "attention",
        cross_heads=sizes["encoder_attn_num_heads"] or heads,
        slot_heads=sizes["space_attn_num_heads"] or heads,
        ffn=bool(sizes["use_ffn"]),
        mixer=sizes["mamba_version"],
        expand=float(sizes["mamba_expand"]),
        ssm_state=sizes["mamba_d_state"],
        ssm_head_dim=sizes["mamba_headdim"],
        conv_width=sizes["mamba_d_conv"],
        same_start=True,
    )
    made = (_cnn_encoder if "downsampling_ratio" in encoder else _vit_encoder)(encoder)
    if made["token_dim"] != sizes["input_d_model"]:
        raise WeightsError(
            f"the encoder makes tokens of {made['token_dim']} channels, the slots read {sizes['input_d_model']}."
        )
    painted, takes = (_broadcast_decoder if "initial_size" in decoder else _vit_decoder)(decoder)
    if takes != sizes["d_model"]:
        raise WeightsError(f"the decoder takes slots of {takes} channels, they have {sizes['d_model']}.")
    return model_config("slotssm_clevrer", **(found | made | painted))


def _vit_encoder(given: Mapping[str, Any]) -> dict[str, Any]:
    c = ENCODER_DEFAULTS | dict(given)
    _activation(c, "gelu")
    return dict(
        encoder="vit",
        resolution=c["image_size"],
        in_channels=c["num_channels"],
        encoder_dim=c["hidden_size"],
        encoder_layers=c["num_hidden_layers"],
        encoder_heads=c["num_attention_heads"],
        encoder_mlp=c["intermediate_size"],
        encoder_patch=c["patch_size"],
        encoder_class_tokens=c["num_cls_tokens"],
        encoder_noisy_class=not c["learn_initial_cls_tokens"],
        token_dim=c["output_size"] or c["hidden_size"],
    )


def _cnn_encoder(given: Mapping[str, Any]) -> dict[str, Any]:
    c = CNN_DEFAULTS | dict(given)
    return dict(
        encoder="cnn",
        resolution=c["input_resolution"],
        in_channels=c["input_channels"],
        encoder_dim=c["hidden_size"],
        encoder_layers=c["num_hidden_layers"],
        encoder_blocks=c["blocks_per_layer"],
        encoder_kernel=c["kernel_size"],
        encoder_stride=c["downsampling_ratio"],
        token_dim=c["out_channels"],
    )


def _vit_decoder(given: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    c = DECODER_DEFAULTS | dict(given)
    _activation(c, "relu")
    painted = dict(
        decoder="vit",
        out_resolution=c["image_size"],
        out_channels=c["num_channels"],
        decoder_dim=c["hidden_size"],
        decoder_layers=c["num_hidden_layers"],
        decoder_heads=c["num_attention_heads"],
        decoder_mlp=c["intermediate_size"],
        decoder_patch=c["patch_size"],
    )
    return painted, c["input_size"] or c["hidden_size"]


def _broadcast_decoder(given: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    c = SB_DEFAULTS | dict(given)
    painted = dict(
        decoder="broadcast",
        out_resolution=c["output_resolution"],
        out_channels=c["out_channels"],
        decoder_dim=c["hidden_size"],
        decoder_grid=c["initial_size"],
    )
    return painted, c["in_channels"]


def _activation(config: Mapping[str, Any], expected: str) -> None:
    if config["hidden_act"] != expected:
        raise WeightsError(f"hidden_act={config['hidden_act']!r}; the zoo's has {expected!r} there.")


def _released(c: SlotSSMConfig) -> dict[str, tuple[str, dict[str, Any]]]:
    """Per part the folder's name and its `config.json`. **Raises** `WeightsError` for what was never released."""
    beyond = {
        "encoder": c.encoder == "patch" or c.encoder_positions,
        "decoder": c.decoder in ("classifier", "none"),
        "mixer": c.mixer not in ("mamba1", "mamba2"),
        "expand": c.expand != int(c.expand),
        "cross": c.cross == "self" or c.cross_blocks == "first",
        "slots_per_block": len(set(c.slots)) > 1 or c.split > 1,
    }
    if found := [name for name, other in beyond.items() if other]:
        raise WeightsError(f"the released SlotSSM has no module for this model's {', '.join(found)}.")
    stack = dict(
        model_type="slot_ssm",
        architectures=["SlotSSM"],
        attn_impl="flash_attention_2",
        num_slots=c.slots[0],
        num_blocks=c.blocks,
        d_model=c.dim,
        use_cross_attn=True,
        space_attn_num_heads=c.slot_heads,
        input_d_model=c.token_dim,
        use_inverted_attention=c.cross == "inverted",
        encoder_attn_num_heads=c.cross_heads,
        use_ffn=c.ffn,
        mamba_version=c.mixer,
        mamba_d_state=c.ssm_state,
        mamba_d_conv=c.conv_width,
        mamba_expand=int(c.expand),
        mamba_headdim=c.ssm_head_dim,
        **{name: getattr(c, name) for name, default in OWN.items() if getattr(c, name) != default},
    )
    return {"encoder": _released_encoder(c), "slotssm": ("slotssm", stack), "decoder": _released_decoder(c)}


def _released_encoder(c: SlotSSMConfig) -> tuple[str, dict[str, Any]]:
    if c.encoder == "cnn":
        return "cnnencoder", dict(
            model_type="cnn_encoder",
            architectures=["CNNEncoder"],
            input_channels=c.in_channels,
            input_resolution=c.resolution,
            kernel_size=c.encoder_kernel,
            hidden_size=c.encoder_dim,
            out_channels=c.token_dim,
            downsampling_ratio=c.encoder_stride,
            num_hidden_layers=c.encoder_layers,
            blocks_per_layer=c.encoder_blocks,
        )
    return "vitencoder", dict(
        model_type="vit_encoder",
        architectures=["VitEncoder"],
        hidden_size=c.encoder_dim,
        output_size=c.token_dim,
        num_hidden_layers=c.encoder_layers,
        num_attention_heads=c.encoder_heads,
        intermediate_size=c.encoder_mlp,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        image_size=c.resolution,
        patch_size=c.encoder_patch,
        num_channels=c.in_channels,
        num_patches=(c.resolution // c.encoder_patch) ** 2,
        num_cls_tokens=c.encoder_class_tokens,
        learn_initial_cls_tokens=not c.encoder_noisy_class,
    )


def _released_decoder(c: SlotSSMConfig) -> tuple[str, dict[str, Any]]:
    if c.decoder == "broadcast":
        return "sbdecoder", dict(
            model_type="spatial_broadcast_decoder",
            architectures=["SBDecoder"],
            in_channels=c.dim,
            out_channels=c.out_channels,
            initial_size=c.decoder_grid,
            output_resolution=c.out_resolution,
            hidden_size=c.decoder_dim,
        )
    return "vitdecoder", dict(
        model_type="vit_decoder",
        architectures=["VitDecoder"],
        input_size=c.dim,
        hidden_size=c.decoder_dim,
        num_hidden_layers=c.decoder_layers,
        num_attention_heads=c.decoder_heads,
        intermediate_size=c.decoder_mlp,
        hidden_act="relu",
        hidden_dropout_prob=0.0,
        image_size=c.out_resolution,
        patch_size=c.decoder_patch,
        num_channels=c.out_channels,
        num_patches=(c.out_resolution // c.decoder_patch) ** 2,
        num_cls_tokens=c.slots[0],
    )


def _buffers(c: SlotSSMConfig) -> dict[str, np.ndarray]:
    """What the released modules store besides parameters."""
    if c.decoder == "vit":
        return {"decoder.position_embeddings": _table(c)}
    line = np.linspace(-1, 1, c.decoder_grid, dtype=np.float32)
    rows, columns = np.meshgrid(line, line, indexing="ij")
    return {"decoder.pos.grid_x": columns[None], "decoder.pos.grid_y": rows[None]}


def _table(c: SlotSSMConfig) -> np.ndarray:
    """The decoder's positions as they are stored: nothing for slots, then the places."""
    side = c.out_resolution // c.decoder_patch
    nothing = np.zeros((c.slots[0], c.decoder_dim), np.float32)
    return np.concatenate([nothing, grid_positions(side, side, c.decoder_dim)])[None]


def _part(folder: Path, kinds: tuple[str, ...]) -> Part:
    """The first of `kinds` that the folder holds."""
    kind = next((kind for kind in kinds if (folder / kind).is_dir()), None)
    if kind is None:
        raise WeightsError(f"'{folder}' is no checkpoint of SlotSSM: it has no folder {' or '.join(kinds)}.")
    path = folder / kind / "config.json"
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise WeightsError(f"'{path}' is too large to be a configuration.")
        config = json.loads(path.read_text())
    except OSError as error:
        raise WeightsError(f"cannot read '{path}': {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"'{path}' is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"'{path}' holds no configuration.")
    weights, pickled = (folder / kind / name for name in ("model.safetensors", "pytorch_model.bin"))
    if weights.is_file() or not pickled.is_file():
        return Part(kind, config, read_arrays(weights))
    content = read_torch(pickled)
    if not isinstance(content, dict) or not all(isinstance(a, np.ndarray) for a in content.values()):
        raise WeightsError(f"'{pickled}' holds no state dict of arrays.")
    return Part(kind, config, {str(name): array for name, array in content.items()})


_PARTS = {"encoder": ENCODERS, "slotssm": ("slotssm",), "decoder": DECODERS}
