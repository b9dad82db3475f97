"""Whether a run may go on under a configuration."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from slotzoo.errors import ConfigError


def check_resume(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Sequence[str] = ()) -> list[str]:
    """Compare the configuration a run was started with to the one it is asked to go on with.

    Returns the dotted keys that changed and may (patterns in `may_change`, such as `logger.*`). Raises
    ConfigError with the difference if any other key changed.
    """
    before, after = flatten(old), flatten(new)
    every = sorted(before.keys() | after.keys())
    changed = [key for key in every if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    allowed = [key for key in changed if any(fnmatch.fnmatchcase(key, pattern) for pattern in may_change)]
    refused = [key for key in changed if key not in allowed]
    if refused:
        lines = [f"  {key}: {before.get(key, _ABSENT)!r} -> {after.get(key, _ABSENT)!r}" for key in refused]
        raise ConfigError(
            "This run was started with another configuration, and what changed would make it another run:\n"
            + "\n".join(lines)
            + "\nGive the old values, or another name or seed for a new run."
            + (f" These may change: {', '.join(may_change)}." if may_change else "")
        )
    return allowed


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one dict of dotted keys; sequences become lists, as JSON and YAML have them."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return dict(value) if isinstance(value, Mapping) else value


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()
