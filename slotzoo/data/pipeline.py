"""Batches from a source: shuffled over the whole set, split over processes, resumable to the very next batch.

Batch number k is a function of (source, seed, k): which records, in which order, which window of each. Threads
only decide when it is computed. So the state of an iterator is the number of its next batch, and a run may be
resumed with other numbers of threads, workers or processes as long as the global batch stays the same.

Importing this module imports grain, which imports jax; `slotzoo.data` does so only when a pipeline is asked
for.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import grain
import numpy as np

from slotzoo.data.skipping import check_skippable, too_many
from slotzoo.data.spec import AugmentedSource, Record, Source, WindowSource, frames_of, slice_time
from slotzoo.errors import ConfigError, DataError


log = logging.getLogger(__name__)
Transform = Callable[[Record, np.random.Generator], Record]
Batch = dict[str, np.ndarray]
_FOREVER = 2**60  # batches of a training run


class _Batches:
    """Random access to the local part of global batch k, with the corrupted records met on the way."""

    def __init__(
        self,
        source: Source,
        records: int,
        batch_size: int,
        seed: int,
        train: bool,
        process_index: int,
        process_count: int,
        length: int | None,
        on_error: str,
        max_skips: int,
        transforms: Sequence[Transform],
        stride: int,
    ):
        self.source, self.records, self.batch_size = source, records, batch_size
        self.seed, self.train, self.length, self.stride = seed, train, length, stride
        self.process_index, self.process_count = process_index, process_count
        self.on_error, self.max_skips, self.transforms = on_error, max_skips, tuple(transforms)
        self.order = grain.MapDataset.range(records)
        if train:
            self.order = self.order.seed(seed).shuffle().repeat()  # another order in every epoch
        # A source that can read a part of a clip is asked for no more.
        self._windows = cast(WindowSource, source) if hasattr(source, "window") else None
        self._augmented = cast(AugmentedSource, source) if train and hasattr(source, "augmented") else None
        self._filler: Record | None = None

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.process_count

    def __repr__(self) -> str:
        return f"Batches({self.source!r}, {self.batch_size}, seed={self.seed}, train={self.train})"

    def __len__(self) -> int:
        return _FOREVER if self.train else -(-self.records // self.global_batch)

    def __getitem__(self, index: int) -> tuple[Batch, dict[int, str]]:
        start = index * self.global_batch + self.process_index * self.batch_size
        skipped: dict[int, str] = {}
        rows: list[Record | None] = []
        for position in range(start, start + self.batch_size):
            if self.train:
                rows.append(self._train_record(position, skipped))
            else:
                rows.append(self._read(position, 0, skipped) if position < self.records else None)
        if self.train:
            return self._stack([row for row in rows if row is not None]), skipped
        valid = np.asarray([row is not None for row in rows])
        batch = self._stack([self._fill() if row is None else row for row in rows])
        return {**batch, "valid": valid}, skipped

    def _train_record(self, position: int, skipped: dict[int, str]) -> Record:
        """The record at a position of the endless order; for a corrupted one, the next that can be read."""
        index = int(self.order[position] or 0)  # never None: nothing is filtered
        for offset in range(self.records):
            record = self._read((index + offset) % self.records, position // self.records, skipped)
            if record is not None:
                return record
        raise DataError(f"{self.source!r}: not one of its {self.records} records can be read.")

    def _read(self, index: int, epoch: int, skipped: dict[int, str]) -> Record | None:
        rng = np.random.default_rng([self.seed, epoch, index])
        try:
            record = self._window(index, rng)
        except DataError as error:
            check_skippable(error)
            if self.on_error == "raise":
                raise
            skipped[index] = str(error)
            if len(skipped) > self.max_skips:
                raise too_many(skipped, self.max_skips) from error
            return None
        for transform in self.transforms:
            record = transform(record, rng)
        return record

    def _window(self, index: int, rng: np.random.Generator) -> Record:
        source, length = self.source, self.length
        if self._augmented is not None:
            frames = self._augmented.frames(index)
            start = self._start(index, frames, length or frames, rng)
            return self._augmented.augmented(index, start, length or frames, rng)
        if length is None:
            return source[index]
        if self._windows is not None:
            start = self._start(index, self._windows.frames(index), length, rng)
            return self._windows.window(index, start, length)
        record = source[index]
        start = self._start(index, frames_of(record, source.spec), length, rng)
        return slice_time(record, source.spec, start, start + length)

    def _start(self, index: int, frames: int, length: int, rng: np.random.Generator) -> int:
        if frames < length:
            raise DataError(
                f"Clip {index} of {self.source.name!r} has {frames} frames, fewer than the {length} asked for; ask "
                "for shorter clips or use on_error=skip."
            )
        return self.stride * int(rng.integers((frames - length) // self.stride + 1)) if self.train else 0

    def _fill(self) -> Record:
        """What stands in rows that are not valid: the first clip that can be read, so that shapes stay
        equal."""
        if self._filler is None:
            for index in range(self.records):
                record = self._read(index, 0, {})
                if record is not None:
                    self._filler = record
                    break
            else:
                raise DataError(f"{self.source!r}: not one of its {self.records} records can be read.")
        return self._filler

    def _stack(self, rows: Sequence[Record]) -> Batch:
        shapes = {tuple((name, x.shape) for name, x in sorted(row.items())) for row in rows}
        if len(shapes) > 1:
            a, b = sorted(shapes)[:2]
            raise DataError(
                f"{self.source.name!r} has clips of different shapes, {dict(a)} and {dict(b)}; give a "
                "length that all of them have."
            )
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class BatchIterator(grain.DatasetIterator):
    """Iterator over batches. `skipped` maps the corrupted records met so far to what was wrong with them."""

    def __init__(self, dataset: "BatchDataset"):
        super().__init__()
        self._dataset = dataset
        self._next = 0
        self.skipped: dict[int, str] = {}
        self._inner: grain.DatasetIterator | None = None

    def __next__(self) -> Batch:
        fresh = self._inner is None
        if self._inner is None:
            self._inner = self._dataset.elements(self._next)
        batch, skipped = next(self._inner)
        if fresh:
            size = sum(x.nbytes for x in batch.values()) / 2**20
            log.debug("a batch has %.1f MiB, up to %d are read ahead", size, self._dataset.ahead)
        self._next += 1
        for index, message in skipped.items():
            if index not in self.skipped:
                log.warning("skipped clip %d (%d so far): %s", index, len(self.skipped) + 1, message)
                self.skipped[index] = message
        if len(self.skipped) > self._dataset.max_skips:
            raise too_many(self.skipped, self._dataset.max_skips)
        return batch

    def get_state(self) -> dict[str, Any]:
        skipped = {str(index): message for index, message in self.skipped.items()}
        return {**self._dataset.identity(), "next_index": self._next, "skipped": skipped}

    def set_state(self, state: dict[str, Any]) -> None:
        for name, mine in self._dataset.identity().items():
            if state.get(name, mine) != mine:
                raise DataError(
                    f"The saved data position belongs to another order of batches: {name} was {state[name]}, "
                    f"is {mine}; resume with the same value or start a new run."
                )
        self.close()
        self._next = int(state["next_index"])
        self.skipped = {int(index): message for index, message in state.get("skipped", {}).items()}

    def close(self) -> None:
        """Stop the reading threads. The next batch starts them again."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None


class BatchDataset(grain.IterDataset):
    """What `make_pipeline` returns. `records` and `batches` count one epoch (`batches` rounds up)."""

    def __init__(self, batches: _Batches, num_threads: int, num_workers: int, prefetch: int):
        super().__init__()
        self._batches = batches
        self.num_threads, self.num_workers = num_threads, num_workers
        # As many batches in flight as threads, never grain's default of 500: a batch has tens of megabytes.
        self.ahead = max(prefetch, num_threads)
        self.max_skips = batches.max_skips
        self.records = batches.records
        self.batches = -(-batches.records // batches.global_batch)

    def __repr__(self) -> str:
        return repr(self._batches)

    def identity(self) -> dict[str, Any]:
        """What the order of batches depends on, but for the content of the records."""
        b = self._batches
        identity = {"records": b.records, "global_batch": b.global_batch, "length": b.length}
        return {**identity, "stride": b.stride, "seed": b.seed, "train": b.train}

    def elements(self, start: int) -> grain.DatasetIterator:
        dataset = grain.MapDataset.source(self._batches)[start:]
        threads = self.num_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self.ahead)
        elements = dataset.to_iter_dataset(options)
        if self.num_workers:
            _parse_absl_flags()
            elements = elements.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self.num_workers, per_worker_buffer_size=max(1, self.ahead)
                )
            )
        return iter(elements)

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self)


def _parse_absl_flags() -> None:
    """grain 0.2.18 reads an absl flag before it starts workers, which fails unless flags were parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def make_pipeline(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    train: bool,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    num_workers: int = 0,
    prefetch: int = 2,
    on_error: Literal["raise", "skip"] = "raise",
    max_skips: int = 100,
    length: int | None = None,
    stride: int = 1,
    limit: int | None = None,
    transforms: Sequence[Transform] = (),
) -> BatchDataset:
    """Batches of `batch_size` records per process, as dicts of numpy arrays with a leading batch axis.

    Training: without end, every epoch in another order, one shuffle over the whole set; with `length`, a random
    window of so many frames of each clip, another one in every epoch, that begins at a multiple of `stride`.
    Consecutive batches of one process are
    slices of consecutive global batches (`batch_size * process_count` records), process by process, so that the
    global batch does not depend on the number of processes.

    Evaluation: one pass in order, every record exactly once over all processes; with `length`, the first
    frames. All processes get the same number of batches of the same size: rows that are left over hold some
    clip again, and the extra field `valid` (batch,) is False there.

    `limit` takes the first so many records. `on_error="skip"` leaves corrupted records out (training: the next
    record stands in; evaluation: `valid` is False), each with a warning, at most `max_skips` different ones.
    Each of `transforms` is called as `transform(record, rng)` with a generator seeded by seed, epoch and
    record.
    """
    for name, value, low in (
        ("batch_size", batch_size, 1),
        ("process_count", process_count, 1),
        ("num_threads", num_threads, 0),
        ("num_workers", num_workers, 0),
        ("prefetch", prefetch, 0),
        ("length", 1 if length is None else length, 1),
        ("stride", stride, 1),
        ("limit", 1 if limit is None else limit, 1),
    ):
        if value < low:
            raise ConfigError(f"The data pipeline needs {name} of at least {low}, got {value}.")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index {process_index} is not one of {process_count} processes.")
    records = min(len(source), limit or len(source))
    if records == 0:
        raise DataError(f"{source!r} has no records.")
    batches = _Batches(
        source=source,
        records=records,
        batch_size=batch_size,
        seed=seed % 2**32,  # grain takes 32 bits
        train=train,
        process_index=process_index,
        process_count=process_count,
        length=length,
        on_error=on_error,
        max_skips=max_skips,
        transforms=transforms,
        stride=stride,
    )
    return BatchDataset(batches, num_threads, num_workers, prefetch)
