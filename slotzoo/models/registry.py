"""The front door of the zoo: named, published configurations of every system.

    model = create_model("convs5_dmlab", key=jax.random.key(0), layers=4)

A registered name is a frozen dataclass of plain values plus a function that builds the module from it, so a
configuration can travel through YAML or JSON and nothing in it is ever executed.
"""

import dataclasses
import fnmatch
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray

from slotzoo.errors import ConfigError, nearest


# Ends the description of a card whose `metrics` were not read in the paper itself.
FROM_MEMORY = " The published figures are from memory and to be checked against the paper."


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is known of a registered model.

    `parameters` is the number of trained parameters at the published sizes (few sources state it: it is counted in the
    module, whose arrays the checkpoints of the authors fill), `metrics` the published results by name, `source` the
    repository whose checkpoints it loads and `licence` the licence of these.
    """

    name: str
    title: str
    paper: str
    section: str
    licence: str
    parameters: int
    source: str
    metrics: Mapping[str, float]
    description: str


@dataclasses.dataclass(frozen=True)
class _Entry:
    config: Any
    build: Callable[..., eqx.Module]
    card: ModelCard
    tiny: Mapping[str, Any]


_ENTRIES: dict[str, _Entry] = {}


def register(
    name: str,
    config: Any,
    build: Callable[..., eqx.Module],
    card: ModelCard,
    tiny: Mapping[str, Any] | None = None,
) -> None:
    """Add a model to the zoo.

    `config` is an instance of a frozen dataclass at the published size, `build(config, *, key)` makes the
    module, `tiny` holds the overrides of a variant that trains in minutes on two CPU cores.
    """
    if name in _ENTRIES:
        raise ValueError(f"a model named {name!r} is already registered")
    if card.name != name:
        raise ValueError(f"the card of {name!r} carries the name {card.name!r}")
    _ENTRIES[name] = _Entry(config, build, card, types.MappingProxyType(dict(tiny or {})))


def create_model(name: str, *, key: PRNGKeyArray, **overrides: Any) -> eqx.Module:
    """Build the registered model `name`; `overrides` replace fields of its configuration.

    **Raises** `ConfigError` for an unknown name, an unknown field, or a value of the wrong type.
    """
    return _entry(name).build(model_config(name, **overrides), key=key)


def model_config(name: str, **overrides: Any) -> Any:
    """The configuration of the registered model `name`, with fields replaced by `overrides`."""
    return replaced(_entry(name).config, overrides, what=f"model {name!r}")


def list_models(pattern: str = "*") -> list[str]:
    """The registered names that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_ENTRIES, pattern))


def model_card(name: str) -> ModelCard:
    """The card of the registered model `name`."""
    return _entry(name).card


def tiny(name: str) -> dict[str, Any]:
    """The overrides of the tiny variant: `model_config(name, **tiny(name))`."""
    return dict(_entry(name).tiny)


def replaced(config: Any, overrides: Mapping[str, Any], *, what: str) -> Any:
    """Return `config` with `overrides` put in, each checked for its name and its type.

    Lists become tuples and integers become floats where the field wants that, as YAML and JSON know no
    difference. `what` names the configuration in the error.
    """
    hints = typing.get_type_hints(type(config))
    values = {}
    for field, value in overrides.items():
        if field not in hints:
            raise ConfigError(
                f"{what} has no option {field!r}.{nearest(field, hints)} Its options are: {', '.join(hints)}."
            )
        values[field] = _coerced(value, hints[field], f"{what}, option {field!r}")
    return dataclasses.replace(config, **values)


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise ConfigError(
            f"there is no model named {name!r}.{nearest(name, _ENTRIES)} "
            f"The zoo has: {', '.join(list_models()) or 'none'}."
        )
    return _ENTRIES[name]


def _coerced(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in args:
            hint = nearest(str(value), map(str, args))
            raise ConfigError(f"{where}: {value!r} is none of {', '.join(map(repr, args))}.{hint}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [arg for arg in args if arg is not type(None)]
        return _coerced(value, hint, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_coerced(item, args[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = origin or hint
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        wanted = "list" if kind is tuple else kind.__name__
        raise ConfigError(f"{where}: expected {wanted}, got {value!r} ({type(value).__name__}).")
    return value
