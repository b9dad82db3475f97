"""Stopping on request: a signal sets a flag, the loop saves and leaves."""

import os
import signal
import threading
from types import FrameType
from typing import Any


# What `experiments.train` exits with after a signal and a checkpoint: EX_TEMPFAIL of sysexits.h, "try again". A
# scheduler can requeue on it.
STOPPED_EXIT_CODE = 75


class Signals:
    """Context manager: SIGTERM, SIGUSR1 and Ctrl-C set `stop_requested`; a second Ctrl-C kills at once.

    Outside the main thread, where Python allows no handlers, it does nothing and `request` still works.
    """

    CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def stop_requested(self) -> bool:
        """Whether a signal arrived."""
        return self.received is not None

    def request(self, reason: str) -> None:
        """Ask to stop, as a signal does."""
        self.received = self.received or reason

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for number in self.CAUGHT:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for number, handler in self._before.items():
            # None: the handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            # The default action, not KeyboardInterrupt: it also ends a process deep inside a compilation.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        first = not self.stop_requested
        self.request(name)
        if first:
            again = " (again to quit at once)" if number == signal.SIGINT else ""
            # Not print or logging: their buffers may be in use at this very moment.
            os.write(2, f"\nReceived {name}: saving a checkpoint, then stopping{again}.\n".encode())
