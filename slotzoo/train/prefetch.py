"""Batches put onto the devices ahead of time, without running ahead of the saved data position."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from slotzoo.errors import DataError
from slotzoo.train.protocols import DataIterator


class Prefetch:
    """Draws from `iterator` in a thread and keeps `depth` batches ready, as `put` leaves them.

    `get_state` is the position after the last batch that was given out, whatever has been read ahead.
    """

    def __init__(
        self, iterator: DataIterator, put: Callable[[Mapping[str, Any]], Mapping[str, Any]], depth: int = 2
    ):
        self._iterator = iterator
        self._put = put
        self._state = iterator.get_state()
        self._depth = max(depth, 1)
        self._thread: threading.Thread | None = None
        self._queue: queue.Queue = queue.Queue(maxsize=self._depth)
        self._stop = threading.Event()
        self._peeked: tuple[Any, Any, BaseException | None] | None = None
        self.waited = 0.0  # seconds that `__next__` spent waiting in all

    def __iter__(self) -> "Prefetch":
        return self

    def peek(self) -> Mapping[str, Any]:
        """Return the next batch without giving it out: its shapes are needed to compile."""
        if self._peeked is None:
            self._peeked = self._take()
        batch, _, error = self._peeked
        if error is not None:
            raise error
        return batch

    def __next__(self) -> Mapping[str, Any]:
        start = time.perf_counter()
        batch, state, error = self._peeked or self._take()
        self._peeked = None
        self.waited += time.perf_counter() - start
        if error is not None:
            raise error
        self._state = state
        return batch

    def get_state(self) -> Any:
        return self._state

    def set_state(self, state: Any, /) -> None:
        self._join()
        self._iterator.set_state(state)
        self._state = state

    def close(self) -> None:
        """Stop the thread, then close the iterator where it can be."""
        self._join()
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _take(self) -> tuple[Any, Any, BaseException | None]:
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
            self._thread.start()
        return self._queue.get()

    def _fill(self) -> None:
        while not self._stop.is_set():
            try:
                batch = next(self._iterator)
                item = (self._put(batch), self._iterator.get_state(), None)
            except StopIteration:
                item = (None, None, DataError("The training data ended; it has to repeat without end."))
            except BaseException as error:  # handed to the consumer, who raises it where it is seen
                item = (None, None, error)
            while not self._stop.is_set():
                try:
                    self._queue.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if item[2] is not None:
                return

    def _join(self) -> None:
        """Stop the thread and forget what was read ahead."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self._peeked = None
        self._queue = queue.Queue(maxsize=self._depth)
