"""Weights on disk: `NAME.safetensors` with dotted leaf names, and `NAME.json`, the card that describes them.

A card is data. Its registry name and plain fields choose a model that this package already knows; nothing that
is named in it is imported or called, and the file it points to lies in the card's own folder.
"""

import dataclasses
import hashlib
import json
from collections.abc import Container
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from slotzoo.errors import ConfigError, WeightsError
from slotzoo.files import write_bytes, write_text
from slotzoo.models import create_model, model_config
from slotzoo.weights.leaves import fill, named_leaves


FORMAT = 1
MOST_CARD_BYTES = 1 << 20
# Where the leaves of ConvS5 stood before its temporal core could be exchanged, and where they stand now.
MOVED = {
    "core.action_embedding.": "core.temporal.actions.embedding.",
    "core.input_conv.": "core.temporal.input_conv.",
    "core.sequence.": "core.temporal.sequence.",
}
M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class WeightsCard:
    """What is known of a weights file. `config` holds every field of the model's Config as plain values."""

    model: str  # registry name
    config: dict[str, Any]
    source: str = ""  # where the numbers come from
    licence: str = ""
    notes: str = ""
    file: str = ""  # name of the weights file, beside the card
    sha256: str = ""  # of the weights file
    parameters: int = 0
    format: int = FORMAT


def save_weights(
    path: str | Path,
    model: Any,
    *,
    name: str,
    config: Any,
    source: str = "",
    licence: str = "",
    notes: str = "",
) -> Path:
    """Write every array leaf of `model` to `path` (`.safetensors`), its card beside it; return the card's path.

    `name` is the registry name that builds such a model and `config` its Config. Both files are written under
    another name first and renamed, the card last: a card never stands beside half a file.
    """
    path = _weights_path(path)
    arrays = {key: np.asarray(leaf, order="C") for key, leaf in named_leaves(model).items()}
    content = safetensors.numpy.save(arrays, metadata={"format": f"slotzoo-{FORMAT}"})
    card = WeightsCard(
        model=name,
        config=_plain_config(config),
        source=source,
        licence=licence,
        notes=notes,
        file=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        parameters=sum(int(a.size) for a in arrays.values()),
    )
    write_bytes(path, content, durable=True)
    write_text(card_path(path), json.dumps(dataclasses.asdict(card), indent=1) + "\n", durable=True)
    return card_path(path)


def load_model(path: str | Path) -> tuple[eqx.Module, WeightsCard]:
    """Build the model that the card names, at the sizes it states, with the weights of its file.

    `path`: the weights file or its card. **Raises** `WeightsError` when they do not fit each other or the zoo.
    """
    card = load_card(path)
    try:
        config = model_config(card.model, **card.config)
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        abstract = eqx.filter_eval_shape(lambda: create_model(card.model, key=jax.random.key(0), **fields))
    except ConfigError as error:
        raise WeightsError(f"'{card_path(path)}' describes no model of this zoo: {error}") from error
    return load_weights(path, abstract), card


def load_weights(path: str | Path, model: M) -> M:
    """`model`, which may be abstract, with every array leaf read from a weights file by name.

    The file's hash is compared with its card's where there is one. Leaves that have moved since the file was written
    are found under their former names. **Raises** `WeightsError`, naming the leaf,
    for missing, unexpected or misshapen ones.
    """
    return fill(model, load_arrays(path, named_leaves(model)), what=f"'{_beside(path)}'")


def load_arrays(path: str | Path, wanted: Container[str]) -> dict[str, np.ndarray]:
    """All arrays of a weights file by name, under the present names where the `wanted` ones have moved.

    The file's hash is compared with its card's where there is one.
    """
    path = _beside(path)
    arrays = read_arrays(path, sha256=load_card(path).sha256 if card_path(path).exists() else None)
    return {name if name in wanted else _moved(name, wanted): a for name, a in arrays.items()}


def _moved(name: str, wanted: Container[str]) -> str:
    """The present name of a leaf that an older file has under another one; `name` itself if there is none."""
    for old, new in MOVED.items():
        if name.startswith(old) and (now := new + name.removeprefix(old)) in wanted:
            return now
    return name


def read_arrays(path: Path, *, sha256: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read the weights '{path}': {error.strerror}.") from error
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise WeightsError(
            f"'{path}' is not the file its card was written for: sha256 {found[:12]}..., the card says "
            f"{sha256[:12]}...; it was cut short, changed, or belongs to another card."
        )
    try:
        return safetensors.numpy.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"'{path}' is not a safetensors file: {error}.") from error


def load_card(path: str | Path) -> WeightsCard:
    """The card of a weights file (or of itself), its fields checked."""
    card = card_path(path)
    try:
        if card.stat().st_size > MOST_CARD_BYTES:
            raise WeightsError(f"'{card}' is too large to be a card.")
        values = json.loads(card.read_text())
    except OSError as error:
        raise WeightsError(
            f"cannot read the card '{card}': {error.strerror}; it stands beside its weights."
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"'{card}' is not JSON: {error}.") from error
    fields = {f.name: f.type for f in dataclasses.fields(WeightsCard)}
    kinds: dict[str, type] = dict.fromkeys(fields, str) | {"config": dict, "parameters": int, "format": int}
    if not isinstance(values, dict) or not {"model", "config", "file", "sha256"} <= set(values) <= set(fields):
        raise WeightsError(f"'{card}' is not a weights card: it must have the fields {', '.join(fields)}.")
    for key, value in values.items():
        if type(value) is not kinds[key]:
            raise WeightsError(f"'{card}': '{key}' should be {kinds[key].__name__}, is {type(value).__name__}.")
    if values.get("format", FORMAT) != FORMAT:
        raise WeightsError(f"'{card}' has format {values['format']}; this version reads format {FORMAT}.")
    return WeightsCard(**values)


def card_path(path: str | Path) -> Path:
    """Where the card of a weights file stands."""
    return Path(path).with_suffix(".json")


def _beside(path: str | Path) -> Path:
    """The weights file of a path that may be a card's, which can only point into its own folder."""
    path = Path(path)
    if path.suffix != ".json":
        return path
    name = load_card(path).file
    folder = path.resolve().parent
    if not name or Path(name).name != name or (folder / name).resolve().parent != folder:
        raise WeightsError(f"'{path}' points to '{name}', which is not a file of its own folder.")
    return path.parent / name


def _weights_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"'{path}': weights are written to a file that ends in .safetensors.")
    return path


def _plain_config(config: Any) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"the config {type(config).__name__} holds more than plain values: {error}."
        ) from error
