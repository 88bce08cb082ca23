"""Being asked to stop: what was found so far is kept, and nothing new is begun."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A wish to stop that is set once. `wake` is called then: in a signal handler, so that it may
    take no lock (`SimpleQueue.put` takes none)."""

    def __init__(self) -> None:
        self._set = False
        self.wake: Callable[[], object] | None = None

    def set(self) -> None:
        self._set = True
        if self.wake is not None:
            self.wake()

    def is_set(self) -> bool:
        return self._set


@contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM sets `stop`, and another one raises KeyboardInterrupt.

    Only the main thread can ask for signals; in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    wanted = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, heard) for number in wanted]
    try:
        yield
    finally:
        for number, handler in zip(wanted, before, strict=True):
            # None: a handler that was not set from Python, and cannot be set again from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
