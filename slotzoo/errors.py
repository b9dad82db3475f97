"""Errors that a user is meant to read: each message says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class SlotzooError(Exception):
    """Base of every error that slotzoo raises on purpose."""


class ConfigError(SlotzooError):
    """A configuration value is unknown, missing, of the wrong type, or inconsistent."""


class ShapeError(SlotzooError):
    """An array does not have the shape that a model was built for."""


class DataError(SlotzooError):
    """A data set, a file or a record cannot be used as it is."""


class CheckpointError(SlotzooError):
    """A checkpoint is missing, torn, or belongs to another configuration."""


class WeightsError(SlotzooError):
    """A weights file or its card does not fit the model."""


class NonFiniteError(SlotzooError):
    """A loss or a gradient became NaN or infinite during training."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest known name, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
