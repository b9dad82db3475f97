"""Checkpoints of object-discovery-pytorch (Lightning), and of the authors of SLATE: Slot Attention, SLATE, GNM."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from slotzoo.errors import ConfigError, WeightsError
from slotzoo.models.gnm import GNM
from slotzoo.models.slate import SLATE
from slotzoo.models.slot_attention import SlotAttentionAutoencoder
from slotzoo.weights.convert import object_discovery_gnm, object_discovery_slate, object_discovery_slots
from slotzoo.weights.convert.convssm import Converted
from slotzoo.weights.convert.rules import Rule, from_seed
from slotzoo.weights.torch_file import read_torch


PREFIX = "model."


class Checkpoint(NamedTuple):
    """What a file holds: the arrays by the seed's names, its hyper-parameters, and the step."""

    state: dict[str, np.ndarray]
    hyper: dict[str, Any]
    step: int


class _Seed(NamedTuple):
    """One system: our class and the name it is registered under, and how its table is found."""

    model: Callable[..., eqx.Module]
    name: str
    parameters: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
    config: Callable[[Checkpoint], Any]
    rules: Callable[[Checkpoint, Any], tuple[Rule, ...]]


_SEEDS = {
    "Slot Attention": _Seed(
        SlotAttentionAutoencoder,
        "slot_attention_clevr6",
        object_discovery_slots.parameters,
        lambda found: object_discovery_slots.config(found.hyper, found.state),
        lambda found, config: object_discovery_slots.rules(found.state),
    ),
    "SLATE": _Seed(
        SLATE,
        "slate_clevr6",
        object_discovery_slate.parameters,
        lambda found: object_discovery_slate.config(found.hyper, found.state),
        lambda found, config: object_discovery_slate.rules(found.state),
    ),
    "GNM": _Seed(
        GNM,
        "gnm_clevr6",
        object_discovery_gnm.parameters,
        lambda found: object_discovery_gnm.config(found.hyper),
        lambda found, config: object_discovery_gnm.rules(config),
    ),
}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a `.ckpt` of Lightning, a `checkpoint.pt.tar` or a bare state dict, by what is in it.

    **Raises** `WeightsError` for files that are none of these.
    """
    content = read_torch(path)
    if not isinstance(content, dict):
        raise WeightsError(f"'{path}' holds a {type(content).__name__}, not a checkpoint.")
    state = next((content[k] for k in ("state_dict", "model") if isinstance(content.get(k), dict)), content)
    arrays = {
        str(name).removeprefix(PREFIX): array for name, array in state.items() if isinstance(array, np.ndarray)
    }
    if not arrays or len(arrays) < len(state):
        raise WeightsError(f"'{path}' holds no state dict of arrays.")
    hyper = content.get("hyper_parameters")
    step = content.get("global_step", 0)
    return Checkpoint(arrays, hyper if isinstance(hyper, dict) else {}, step if isinstance(step, int) else 0)


def convert_checkpoint(path: str | Path) -> Converted:
    """The model of a checkpoint, with its weights. **Raises** `WeightsError` for what is unknown or does not fit."""
    found = read_checkpoint(path)
    kind = _kind(found, path)
    seed = _SEEDS[kind]
    try:
        config = seed.config(found)
        abstract = eqx.filter_eval_shape(lambda: seed.model(config, key=jax.random.key(0)))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise WeightsError(f"the hyper-parameters of '{path}' do not describe a {kind}: {error}") from error
    model = from_seed(
        seed.parameters(found.state), abstract, seed.rules(found, config), what=f"checkpoint '{path}'"
    )
    return Converted(model, seed.name, config, found.step, f"{kind} of object-discovery-pytorch")


def _kind(found: Checkpoint, path: str | Path) -> str:
    """Told by a part that only one system has."""
    marks = {"dvae.": "SLATE", "global_struct_draw.": "GNM", "decoder_pos_embedding.": "Slot Attention"}
    for mark, kind in marks.items():
        if any(name.startswith(mark) for name in found.state):
            return kind
    raise WeightsError(
        f"'{path}' is a checkpoint of something else: its arrays are {', '.join(list(found.state)[:3])} ...; known "
        f"are {', '.join(_SEEDS)} as object-discovery-pytorch names them."
    )
