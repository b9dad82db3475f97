"""Sums behind a table of scores: they add up over batches and processes, and are written down as arrays."""

import dataclasses
import io
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float

from slotzoo.metrics.frechet import FeatureSums


@dataclasses.dataclass
class RowSums:
    """What one row of the table is made of. Every field is a sum, so two halves of a data set add up."""

    clips: int
    total: dict[str, float]
    square: dict[str, float]
    step: dict[str, Float[np.ndarray, " step"]]
    features: FeatureSums | None = None

    def __add__(self, other: "RowSums") -> "RowSums":
        return RowSums(
            self.clips + other.clips,
            {k: v + other.total[k] for k, v in self.total.items()},
            {k: v + other.square[k] for k, v in self.square.items()},
            {k: v + other.step[k] for k, v in self.step.items()},
            join(self.features, other.features),
        )

    def flat(self, name: str) -> dict[str, np.ndarray]:
        """Every sum as a float64 array under a name that starts with `name`."""
        found = {f"{name}/clips": np.asarray(self.clips, np.float64)}
        for key, value in self.total.items():
            found[f"{name}/total/{key}"] = np.asarray(value, np.float64)
            found[f"{name}/square/{key}"] = np.asarray(self.square[key], np.float64)
            found[f"{name}/step/{key}"] = np.asarray(self.step[key], np.float64)
        return found | flat_features(f"{name}/features", self.features)

    @classmethod
    def from_flat(cls, name: str, state: Mapping[str, np.ndarray]) -> "RowSums":
        """The row that `flat(name)` wrote."""
        prefix = f"{name}/total/"
        keys = [key[len(prefix) :] for key in state if key.startswith(prefix)]
        return cls(
            int(state[f"{name}/clips"]),
            {k: float(state[f"{name}/total/{k}"]) for k in keys},
            {k: float(state[f"{name}/square/{k}"]) for k in keys},
            {k: np.asarray(state[f"{name}/step/{k}"]) for k in keys},
            read_features(f"{name}/features", state),
        )


def join(a: FeatureSums | None, b: FeatureSums | None) -> FeatureSums | None:
    """a + b, where None has seen nothing."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def flat_features(prefix: str, sums: FeatureSums | None) -> dict[str, np.ndarray]:
    """The sums as float64 arrays under names that start with `prefix`; nothing for None."""
    if sums is None:
        return {}
    return {
        f"{prefix}/count": np.asarray(sums.count, np.float64),
        f"{prefix}/sum": sums.total,
        f"{prefix}/outer": sums.outer,
    }


def read_features(prefix: str, state: Mapping[str, np.ndarray]) -> FeatureSums | None:
    """What `flat_features` wrote under `prefix`, or None."""
    if f"{prefix}/count" not in state:
        return None
    return FeatureSums(
        int(state[f"{prefix}/count"]), np.asarray(state[f"{prefix}/sum"]), np.asarray(state[f"{prefix}/outer"])
    )


def add_states(*states: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of everything that several protocols have seen (see `VideoProtocol.state`)."""
    total: dict[str, np.ndarray] = {}
    for state in states:
        for name, value in state.items():
            total[name] = np.asarray(total[name] + value if name in total else value)
    return total


def sum_over_processes(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sum of the states of all processes, on every process; names may differ between them.

    Every process has to call it, as often as the others do. With a single process nothing is sent.
    """
    if jax.process_count() == 1:
        return dict(state)
    from jax.experimental import multihost_utils

    # Bytes, because jax would take float64 sums for float32 arrays.
    file = io.BytesIO()
    np.savez(file, np.asarray(list(state), str), *state.values())
    content = np.frombuffer(file.getvalue(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray(content.size, np.int32))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return add_states(*(_unpacked(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)))


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {str(name): file[f"arr_{i}"] for i, name in enumerate(file["arr_0"], start=1)}
