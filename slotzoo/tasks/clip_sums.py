"""Means over held-out clips (or images), whatever their batches and processes."""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Array, Bool, Shaped

from slotzoo.metrics.sums import sum_over_processes


class ClipSums:
    """Sums and counts of named values of clips.

    NaN says that a score is not defined for a clip, and is left out, where the name (or what follows its last `/`) is
    `partial`. Anywhere else it is a result, as infinity always is: a loss that is NaN has a mean that is NaN.
    """

    def __init__(self, partial: Iterable[str] = ()):
        self.partial = frozenset(partial)
        self._sums: dict[str, np.ndarray] = {}

    def add(
        self, values: Mapping[str, Shaped[np.ndarray | Array, "clip ..."]], valid: Bool[np.ndarray, " clip"]
    ) -> None:
        """Add the valid clips of a batch. Values may be curves: their last axes stay."""
        for name, value in values.items():
            value = np.asarray(value, np.float64)[valid]
            kept = ~(np.isnan(value) & (name.rpartition("/")[2] in self.partial))
            total, count = np.where(kept, value, 0.0).sum(0), kept.sum(0).astype(np.float64)
            for what, new in ((f"{name}/sum", total), (f"{name}/count", count)):
                self._sums[what] = np.asarray(self._sums.get(what, 0.0) + new)
        self._sums["clips"] = np.asarray(self._sums.get("clips", 0.0) + valid.sum())

    def over_processes(self) -> "ClipSums":
        """The sums of all processes; every one has to call it, a stopped one too."""
        joined = ClipSums(self.partial)
        joined._sums = sum_over_processes(self._sums)
        return joined

    @property
    def clips(self) -> int:
        """How many clips were added."""
        return int(self._sums.get("clips", 0))

    def means(self) -> dict[str, np.ndarray]:
        """The mean of each value over the clips where it is defined; left out where it is nowhere."""
        found = {}
        for name, total in self._sums.items():
            if name.endswith("/sum"):
                count = self._sums[name.removesuffix("sum") + "count"]
                if np.all(count > 0):
                    found[name.removesuffix("/sum")] = np.asarray(total / count)
        return found
