"""What a call in progress has for itself: an arena, a table of addresses, the steps over it.

Two calls at once write into two arenas, so they need no lock. A context that comes back from a call
waits for the next one; as many wait as the process may use processors, and the others are freed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .constants import allocated
from .driver import Entry, Expected, Frame, Slot
from .linux import available_processors
from .threads import ThreadPool

_Words = npt.NDArray[np.uint64]
_STEP_BYTES = 24


@dataclass(frozen=True, slots=True)
class Bindings:
    """A program's steps, bound as far as it goes without memory.

    inputs: dtype and shape of each. table: one address per parameter of every launch; those of
    constants are final. slots: the entries that change from call to call, the number of the array
    whose address goes there (inputs, then outputs), and bytes from its start. in_arena: the entries
    that lie in the arena, and where in it. steps: per step its code, its first entry in the table,
    and its items.
    """

    inputs: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]
    table: _Words
    slots: Sequence[tuple[int, int, int]]
    in_arena: tuple[npt.NDArray[np.intp], _Words]
    steps: Sequence[tuple[int, int, int]]
    arena_bytes: int


class Context:
    """Memory for one call at a time."""

    __slots__ = ("_entry", "_inputs", "_pool", "_slots", "_steps", "_table", "_wake", "_whole",
                 "arena", "entries", "entry", "whole")  # fmt: skip

    def __init__(self, bound: Bindings, pool: ThreadPool) -> None:
        self.arena = allocated((bound.arena_bytes,), np.uint8)
        self._table = bound.table.copy()
        where, offsets = bound.in_arena
        self._table[where] = offsets + np.uint64(self.arena.ctypes.data)
        self.entries = (ctypes.c_uint64 * len(self._table)).from_address(self._table.ctypes.data)
        base = self._table.ctypes.data
        steps = [(code, base + first * 8, items) for code, first, items in bound.steps]
        self._steps = np.array(steps or [(0, 0, 0)], np.uint64)
        self._pool = pool
        self._wake = any(items > 1 for *_, items in steps)
        self._whole = self.frame(0, len(steps))
        self.whole = ctypes.addressof(self._whole)
        self._inputs = (Expected * len(bound.inputs))(*(
            Expected(id(dtype), len(shape), (ctypes.c_int64 * len(shape))(*shape))
            for dtype, shape in bound.inputs
        ))  # fmt: skip
        self._slots = (Slot * len(bound.slots))(*(Slot(*slot) for slot in bound.slots))
        self._entry = Entry(
            self.whole, base, ctypes.addressof(self._inputs), len(self._inputs),
            ctypes.addressof(self._slots), len(self._slots), id(np.ndarray),
        )  # fmt: skip
        self.entry = ctypes.addressof(self._entry)

    def frame(self, first: int, end: int) -> Frame:
        """Steps first..end as the driver takes them. Without shared steps no worker is woken."""
        pool = self._pool
        return Frame(
            pool.address, pool.run_address, pool.wake_address if self._wake else None,
            self._steps.ctypes.data + first * _STEP_BYTES, end - first,
        )  # fmt: skip

    def pointers(self, step: int) -> int:
        """The address of the table that a step's code is called with."""
        return int(self._steps[step][1])


@dataclass(slots=True)
class Contexts:
    """The contexts of one program. Those of calls in progress are known to their calls only: one
    that is lost with its caller's thread, or in a forked child, is simply not seen again.

    `idle` is a list because its `pop` and `append` are atomic.
    """

    bound: Bindings
    pool: ThreadPool
    most_idle: int = field(default_factory=available_processors)
    idle: list[Context] = field(default_factory=list)

    def take(self) -> Context:
        """One that nobody else has. Raises MemoryLimitError."""
        try:
            return self.idle.pop()
        except IndexError:
            return Context(self.bound, self.pool)

    def give(self, context: Context) -> None:
        """Take back a context that `take` gave."""
        if len(self.idle) < self.most_idle:
            self.idle.append(context)
