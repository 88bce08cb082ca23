"""Python's collector of cycles, and what builds many objects in a short time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_paused = 0


@contextmanager
def paused_collector() -> Iterator[None]:
    """No search for dead cycles inside.

    A compilation makes hundreds of thousands of expressions, none of them in a cycle, and keeps
    most of them: the collector would walk all again and again, for a tenth of the time, and find
    nothing. Whoever has it switched off keeps it so.

    What is there at the end counts as old, as it would after a few searches: one more of them, over
    everything that was made, took as long as a twentieth of the compilation. Cycles that died
    inside are found with the next ones that died old.
    """
    global _paused
    with _lock:
        if _paused or gc.isenabled():
            _paused += 1
            gc.disable()
            mine = True
        else:
            mine = False
    try:
        yield
    finally:
        if mine:
            with _lock:
                _paused -= 1
                if not _paused:
                    if not gc.get_freeze_count():  # somebody else's frozen objects stay frozen
                        gc.freeze()
                        gc.unfreeze()  # which puts them into the oldest generation
                    gc.enable()
