"""Where a worker says what it is about to do, so that its parent knows when it hangs or is dead.

A page of shared memory: to post takes less than a microsecond and wakes nobody, so that timed runs
can be announced one by one. What was posted last can be read after the worker's death.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

Step = Literal["idle", "prepare", "build", "run"]
STEPS: Final[tuple[Step, ...]] = ("idle", "prepare", "build", "run")

NOBODY: Final = -1
_POST: Final = struct.Struct("<qqqq")
_TRIES: Final = 100


@dataclass(frozen=True, slots=True)
class Post:
    """step: what is being done. place: with which candidate, NOBODY if with none of them. since: of
    `time.monotonic()`."""

    step: Step
    place: int
    since: float


class Board:
    """One process posts, another one reads. descriptor: a file of a page at least."""

    SIZE: Final = mmap.PAGESIZE

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, self.SIZE)

    def post(self, step: Step, place: int = NOBODY) -> None:
        """Say what is done from now on."""
        number, now = STEPS.index(step), time.monotonic_ns()
        _POST.pack_into(self._memory, 0, number, place, now, _check(number, place, now))

    def read(self) -> Post | None:
        """What was posted last; None where something else was written there."""
        for _ in range(_TRIES):  # a post may be half written
            number, place, since, check = _POST.unpack_from(self._memory, 0)
            if check == _check(number, place, since) and 0 <= number < len(STEPS):
                return Post(STEPS[number], place, since / 1e9)
        return None


@contextmanager
def shared_page() -> Iterator[int]:
    """A file for a board, in memory where the system has such files: on a full disk, whoever posts
    on a page that was only promised is killed. Raises OSError."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("board")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.write(descriptor, bytes(Board.SIZE))
        yield descriptor
    finally:
        os.close(descriptor)


def _check(number: int, place: int, since: int) -> int:
    return ~(number ^ place ^ since)
