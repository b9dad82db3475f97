"""Checkpoints of the authors of SAVi, SAVi++ and STATM: `checkpoints-0/ckpt-<n>.flax`, of either of their environments.

The files hold no configuration. A published one is told by the shapes of its arrays; any other comes as the authors'
own `config.model`. Norms of flax 0.3 have axes of 1 in front, which those of flax 0.5 have not: both are read.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from slotzoo.errors import ConfigError, WeightsError
from slotzoo.models.registry import list_models, model_config
from slotzoo.models.savi import SAVi, SAViConfig
from slotzoo.models.statm import STATMConfig, statm
from slotzoo.nn.image_resnet import stages
from slotzoo.weights.convert import savi_rules
from slotzoo.weights.convert.convssm import Converted
from slotzoo.weights.convert.rules import from_seed
from slotzoo.weights.flax_msgpack import flat, read_flax


# Their names of targets, where ours differ.
_TARGETS = {"video": "rgb"}


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path looks like a run of SAVi or STATM, or a checkpoint of one."""
    path = Path(path)
    return path.suffix == ".flax" or (path / "checkpoints-0").is_dir() or any(path.glob("ckpt-*.flax"))


def read_checkpoint(path: str | Path) -> tuple[dict[str, np.ndarray], int]:
    """The parameters and the step of a `ckpt-<n>.flax`, or of the newest one in a run's folder.

    **Raises** `WeightsError` for what is no such file.
    """
    path = Path(path)
    file = _newest(path) if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"'{path}': no such file or folder.")
    tree = read_flax(file)
    optimizer = tree.get("optimizer")
    target = optimizer.get("target") if isinstance(optimizer, dict) else None
    if not isinstance(target, dict) or "SlotAttention_0" not in target:
        raise WeightsError(
            f"'{file}' is no training state of SAVi or STATM: there is no optimizer/target/SlotAttention_0 in it."
        )
    params = flat(target)
    variables = tree.get("variables")
    if isinstance(variables, dict) and isinstance(variables.get("batch_stats"), dict):
        params |= flat(variables["batch_stats"])
    return params, int(np.asarray(tree.get("step", 0)))


def read_model(path: str | Path) -> dict[str, Any]:
    """The `model` section of the authors' configuration (or all of it) from a JSON file."""
    try:
        content = json.loads(Path(path).read_text())
        section = content.get("model", content)
        if "encoder" in section:
            return section
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"'{path}' is no JSON file of a configuration: {error}") from error
    raise WeightsError(f"'{path}' holds no `model` section with an `encoder` in it.")


def convert_checkpoint(
    path: str | Path, *, name: str | None = None, model: Mapping[str, Any] | None = None
) -> Converted:
    """The model of a checkpoint, with its weights.

    `name` is that of a registered model with the same arrays; unless given, the first that fits. For sizes of one's
    own `model` is the `model` section of the configuration of the run, as plain values: only those are read, and the
    last names of its modules.

    **Raises** `WeightsError` for what is unknown or does not fit.
    """
    params, step = read_checkpoint(path)
    try:
        if model is not None:
            config = seed_config(model, params)
        else:
            config = _named(name) if name else _published(params, path)
        abstract = eqx.filter_eval_shape(lambda: build(config, key=jax.random.key(0)))
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise WeightsError(
            f"the configuration of '{path}' does not describe a SAVi or STATM: {error}"
        ) from error
    found = parameters(params, abstract, config, what=f"checkpoint '{path}'")
    name = name or _nearest_name(config)
    return Converted(found, name, config, step, f"{name} of the authors")


def build(config: SAViConfig, *, key: Any) -> SAVi:
    """The model of either configuration."""
    return statm(config, key=key) if isinstance(config, STATMConfig) else SAVi(config, key=key)


def parameters(
    params: Mapping[str, np.ndarray], model: SAVi, config: SAViConfig, *, what: str = "checkpoint of SAVi"
) -> SAVi:
    """`model`, which may be abstract, with the authors' parameters."""
    return from_seed(savi_rules.joined(params), model, rules(config), what=what)


def rules(config: SAViConfig) -> tuple[Any, ...]:
    """The table of a configuration."""
    return savi_rules.whole(config, config.block if isinstance(config, STATMConfig) else None)


def seed_config(model: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> SAViConfig:
    """Ours of the authors' `config.model`: nested dictionaries with the paths of their classes under `module`.

    Only the last name of a path is looked at, and only plain values are read. What is not in it (the size of frames,
    the number of learned slots) is that of the arrays.
    """
    encoder, corrector, predictor = model["encoder"], model["corrector"], model["predictor"]
    decoder, first = model["decoder"], model["initializer"]
    slot_dim = int(params["SlotAttention_0/LayerNorm_0/scale"].size)
    grid = params["SpatialBroadcastDecoder_0/PositionEmbedding_0/pos_embedding"].shape[1:3]
    strides = tuple(_one(pair) for pair in decoder["backbone"]["strides"])
    factor = int(np.prod(strides))
    readout = decoder["target_readout"]
    c: dict[str, Any] = dict(
        height=grid[0] * factor,
        width=grid[1] * factor,
        slot_dim=slot_dim,
        position_width=encoder["pos_emb"]["output_transform"]["hidden_size"],
        iterations=corrector["num_iterations"],
        corrector_qkv=corrector.get("qkv_size") or slot_dim,
        corrector_heads=corrector.get("num_heads", 1),
        corrector_mlp=corrector.get("mlp_size"),
        predictor_heads=predictor["num_heads"],
        predictor_qkv=predictor["qkv_size"],
        predictor_mlp=predictor["mlp_size"],
        predictor_pre_norm=predictor.get("pre_norm", False),
        decoder_grid=grid[0],
        decoder_widths=tuple(decoder["backbone"]["features"]),
        decoder_strides=strides,
        kernel=_kernel(decoder["backbone"]),
        targets=tuple(_TARGETS.get(key, key) for key in readout["keys"]),
    )
    c |= _seed_backbone(encoder["backbone"])
    if transformer := encoder.get("output_transform"):
        c |= dict(
            encoder_layers=transformer["num_layers"],
            encoder_heads=transformer["num_heads"],
            encoder_dim=transformer["qkv_size"],
            encoder_mlp=transformer["mlp_size"],
        )
    c |= _seed_initializer(first, params)
    kind = predictor["module"].rpartition(".")[2]
    if match := re.fullmatch(r"TimeSpaceTransformerBlock(\d?)", kind):
        block: Any = int(match.group(1) or 1)
        return STATMConfig(**c, block=block)
    if kind != "TransformerBlock":
        raise ConfigError(f"there is no predictor {kind!r} in the zoo.")
    return SAViConfig(**c)


def _seed_backbone(backbone: Mapping[str, Any]) -> dict[str, Any]:
    kind = backbone["module"].rpartition(".")[2]
    if kind == "CNN":
        if backbone.get("norm_type"):
            raise ConfigError(f"a CNN with norm_type={backbone['norm_type']!r} is not in the zoo.")
        return dict(
            encoder_widths=tuple(backbone["features"]),
            encoder_strides=tuple(_one(pair) for pair in backbone["strides"]),
            kernel=_kernel(backbone),
        )
    if not backbone.get("small_inputs"):
        raise ConfigError("a ResNet in SAVi has small_inputs=True.")
    match = re.fullmatch(r"ResNet(\d+)", kind)
    blocks = stages(int(match.group(1))).blocks if match else tuple(backbone["stage_sizes"])
    return dict(
        resnet=blocks,
        resnet_width=int(64 * backbone.get("width_factor", 1)),
        resnet_norm=backbone["norm_type"],
    )


def _seed_initializer(first: Mapping[str, Any], params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    match first["module"].rpartition(".")[2]:
        case "CoordinateEncoderStateInit":
            return dict(
                conditioning="centers" if first.get("center_of_mass") else "boxes",
                init_width=first["embedding_transform"]["hidden_size"],
                background=first.get("background_value", 0.0) if first.get("prepend_background") else None,
            )
        case "ParamStateInit":
            slots = int(params["ParamStateInit_0/state_init"].shape[0])
            return dict(conditioning=None, init="learned", num_slots=slots)
        case "GaussianStateInit":
            return dict(conditioning=None, init="gaussian", num_slots=first["shape"][0])
        case "SegmentationEncoderStateInit":
            backbone = first["backbone"]
            if backbone["module"].rpartition(".")[2] != "CNN" or backbone.get("norm_type"):
                raise ConfigError("segments are encoded by a CNN without norms; the zoo has no other there.")
            if _kernel(backbone) != 3 or first.get("reduction", "all_flatten") != "all_flatten":
                raise ConfigError("segments are encoded by 3 x 3 convolutions and then flattened in the zoo.")
            return dict(
                conditioning="segmentation",
                num_slots=first["max_num_slots"],
                segment_widths=tuple(backbone["features"]),
                segment_strides=tuple(_one(pair) for pair in backbone["strides"]),
                init_width=first["output_transform"]["hidden_size"],
                zero_background=first.get("zero_background", False),
            )
        case "NoHintsEncoderStateInit":
            return dict(conditioning=None, init="gaussian_learned", num_slots=first.get("num_slots", 11))
        case kind:
            raise ConfigError(f"there is no initial state {kind!r} in the zoo's converter.")


def _one(pair: Any) -> int:
    """The stride, or the side of a kernel, that is the same for rows and columns."""
    if isinstance(pair, int):
        return pair
    first, second = pair
    if first != second:
        raise ConfigError(f"{pair} differs between rows and columns.")
    return first


def _kernel(backbone: Mapping[str, Any]) -> int:
    sides = {_one(pair) for pair in backbone["kernel_size"]}
    if len(sides) != 1:
        raise ConfigError(f"kernel_size={backbone['kernel_size']} differs between layers.")
    return sides.pop()


def _named(name: str) -> SAViConfig:
    config = model_config(name)
    if not isinstance(config, SAViConfig):
        raise ConfigError(f"the model {name!r} is neither a SAVi nor a STATM; these are {', '.join(_names())}.")
    return config


def _published(params: Mapping[str, np.ndarray], path: str | Path) -> SAViConfig:
    """The first registered configuration whose model has just these arrays."""
    names = _names()
    for name in names:
        config = model_config(name)
        abstract = eqx.filter_eval_shape(lambda config=config: build(config, key=jax.random.key(0)))
        try:
            parameters(params, abstract, config)
        except WeightsError:
            continue
        return config
    raise WeightsError(
        f"the arrays of '{path}' are those of none of {', '.join(names)}; give the `model` section of the "
        "configuration that it was trained with, as a JSON file."
    )


def _nearest_name(config: SAViConfig) -> str:
    """The registered model with the same configuration, or else one of the same class and backbone."""
    alike = [name for name in _names() if type(model_config(name)) is type(config)]
    for name in alike:
        if model_config(name) == config:
            return name
    kind = lambda c: (bool(c.resnet), bool(c.encoder_layers))
    return next((name for name in alike if kind(model_config(name)) == kind(config)), alike[0])


def _names() -> list[str]:
    return [name for name in list_models() if isinstance(model_config(name), SAViConfig)]


def _newest(folder: Path) -> Path:
    inside = folder / "checkpoints-0"
    found = {
        int(match.group(1)): path
        for path in (inside if inside.is_dir() else folder).glob("ckpt-*.flax")
        if (match := re.fullmatch(r"ckpt-(\d+)", path.stem))
    }
    if not found:
        raise WeightsError(
            f"'{folder}' holds no ckpt-<n>.flax: it is not the folder of a run of SAVi or STATM."
        )
    return found[max(found)]
