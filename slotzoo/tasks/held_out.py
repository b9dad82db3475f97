"""What every evaluation begins and ends with: held-out batches one by one, and the table of what was measured."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray

from slotzoo.files import write_text
from slotzoo.prng import stream


class HeldOut(NamedTuple):
    """A batch of an evaluation. What fills up the last one is not `valid` and must not count."""

    fields: dict[str, Any]
    valid: Bool[np.ndarray, " example"]
    keys: Key[Array, " example"]

    def to_draw(self, missing: int) -> Int[np.ndarray, " few"]:
        """The first `missing` valid examples; none on any process but the first, which draws for all."""
        return np.flatnonzero(self.valid)[: max(missing, 0) if jax.process_index() == 0 else 0]


def held_out(
    batches: Iterable[Mapping[str, Any]],
    *,
    key: PRNGKeyArray,
    name: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[HeldOut]:
    """The batches until they end or `should_stop()`, with a key for every example out of the stream `name`."""
    for number, batch in enumerate(batches):
        if should_stop():
            return
        count = len(next(iter(batch.values())))
        valid = np.asarray(batch.get("valid", np.ones(count, bool)))
        fields = {field: value for field, value in batch.items() if field != "valid"}
        yield HeldOut(fields, valid, jax.random.split(stream(key, name, number), count))


def write_table(folder: Path, table: Mapping[str, Any]) -> None:
    """Write `table.json`: `{"tables": [...]}` or a single table, as `slotzoo.viz.tables` reads them."""
    write_text(folder / "table.json", json.dumps(_plain(table), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
