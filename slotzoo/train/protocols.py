"""What the training loop asks of a task and of a data iterator: it knows no concrete model or data set."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree


Batch = Mapping[str, Any]


@runtime_checkable
class Task(Protocol):
    """Joins a model with its loss, its metrics and its pictures.

    `model` is any pytree whose floating-point arrays are trained. `frozen` is a pytree that is not trained (a
    tokenizer, a perceptual network) and is passed as an argument, never closed over, so that it is no constant
    of the compiled program. Under `precision="bfloat16"` the model arrives cast, but for the leaves that stay
    float32 (`slotzoo.train.step.FLOAT32_LEAVES`); `frozen` always arrives as it is.
    """

    def loss(
        self,
        model: PyTree,
        frozen: PyTree,
        batch: Batch,
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Return the scalar to minimise, a mean over the batch, and named scalar terms for the log.

        `batch` is a dict of arrays on the device with a leading batch axis (video in uint8), sharded over the
        mesh axis `data`. Traced under `jit` with the mesh ambient: use `slotzoo.ops.batch_map` for the batch.
        """
        ...

    def evaluate(
        self,
        model: PyTree,
        frozen: PyTree,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        key: PRNGKeyArray,
        step: int,
        folder: Path,
        should_stop: Callable[[], bool],
    ) -> dict[str, float]:
        """Return named numbers over `batches` and write pictures into `folder`, which exists.

        `should_stop()` turns true once a signal arrived: return early then; the result is not used. The arrays
        of `batches` may lie on the device already; `np.asarray` of them always works.

        With several processes each calls this with the same `model` and its own part of the batches, on a mesh
        of its own devices, so that nothing here waits for the others. What is joined in the end must be joined
        by every process, by one that was told to stop as well.
        """
        ...


@runtime_checkable
class DataIterator(Protocol):
    """An endless iterator over batches whose position can be saved, as `iter()` of a Grain dataset is."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> Any:
        """Return the position as plain JSON values (or bytes)."""
        ...

    def set_state(self, state: Any, /) -> None:
        """Go to a position that `get_state` returned: the next batch is the very next one."""
        ...
