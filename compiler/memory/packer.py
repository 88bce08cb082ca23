"""Static memory packing: one offset per buffer so that no two buffers alive together overlap.

Known as dynamic storage allocation, NP-hard. Two heuristics and a certificate:

* Greedy by size: place the largest first, each into the smallest gap that fits between the buffers
  it meets in time (Pisarchyk and Lee, "Efficient memory management for deep neural net inference",
  2020).
* Skyline: build from the bottom up and always place the buffer that can sit lowest, so that offsets
  never decrease; every packing can be brought into such a canonical form (Moffitt, "MiniMalloc: a
  lightweight memory allocator for hardware-accelerated machine learning", 2023). The search has a
  capacity to meet, rejects a placement as soon as the height reached at some moment plus all that
  is still to come at that moment exceeds it, and backs up within a budget of placements.
* The largest sum of sizes alive at one moment is a lower bound for any packing. Planning stops when
  it is reached, which on neural networks is nearly always, and then the result is provably optimal.

The budget counts placements, not seconds, so the same problem gives the same offsets on any
machine; only the time limit, a guard for very large problems, could change that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import OptionError

_Ints = npt.NDArray[np.int64]

_FAR = np.int64(2**62)
"""Above every offset: the position of buffers that are already placed."""

_SLACKS = (1.0, 1.01, 1.02, 1.05, 1.1)
"""Capacities to search at one after another, as multiples of the lower bound."""

_BUDGET = 2000
"""Placements that the searches of one call may try: about 0.06 s at 200 buffers."""

_RETRIES = 200
"""Placements that one search may try beyond the number of buffers."""

_DEPTH = 256
"""Placements that the search can take back: bounds its memory."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Offsets in bytes, in the order of the buffers given, and what is known about their quality.

    `height` is the arena size, `lower_bound` the largest sum of (rounded) sizes alive together, and
    `optimal` says that they are equal, which proves that no packing is smaller. Where they differ
    the packing may still be the best one: nothing is claimed then.
    """

    offsets: tuple[int, ...]
    height: int
    lower_bound: int
    optimal: bool


def pack(
    buffers: Sequence[tuple[int, int, int]],
    capacity: int | None = None,
    time_limit: float = 10.0,
    *,
    alignment: int = 64,
) -> Packing:
    """Place buffers given as (first step, step after the last, bytes) at low offsets.

    Sizes are rounded up to `alignment` bytes, so every offset is a multiple of it. The search stops
    as soon as the height is at most `capacity` bytes or the lower bound, whichever is larger;
    without a capacity it goes for the bound. It always returns a valid packing, never higher than
    greedy by size; whether it meets the capacity is for the caller to look at. `time_limit` in
    seconds ends the search early and leaves the best packing so far. Raises OptionError for a
    lifetime that is empty, a negative size, sizes that sum to 2**61 bytes or more, and an alignment
    below 1.
    """
    if alignment < 1:
        raise OptionError(f"alignment of {alignment} bytes; it must be at least 1")
    for index, (first, end, size) in enumerate(buffers):
        if end <= first or size < 0:
            raise OptionError(
                f"buffer number {index} is alive in steps {first}..{end} (end excluded) with {size}"
                " bytes; it must live for a step or more, and its size must not be negative"
            )
    deadline = time.monotonic() + time_limit
    rounded = [-(-size // alignment) * alignment for _, _, size in buffers]
    if sum(rounded) >= 2**61:
        raise OptionError(f"the buffers sum to {sum(rounded)} bytes; offsets end at 2**61")
    solid = [index for index, size in enumerate(rounded) if size]
    if not solid:
        return Packing((0,) * len(buffers), 0, 0, True)
    problem = _Problem.of([(buffers[i][0], buffers[i][1], rounded[i]) for i in solid])
    enough = max(problem.bound, capacity or 0)
    best = _greedy_by_size(problem)
    if problem.height(best) > enough:
        best = _improve(problem, best, enough, deadline)
    offsets = [0] * len(buffers)
    for index, offset in zip(solid, best.tolist(), strict=True):
        offsets[index] = offset
    height = problem.height(best)
    return Packing(tuple(offsets), height, problem.bound, height == problem.bound)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Buffers in terms of sections: the stretches of time between two consecutive first steps.

    Two lifetimes meet exactly when they share a section, because the later one's first step opens
    one. `start` and `end` (excluded) are section numbers; `load` is the sum of live sizes per
    section.
    """

    start: _Ints
    end: _Ints
    size: _Ints
    load: _Ints
    bound: int

    @classmethod
    def of(cls, buffers: Sequence[tuple[int, int, int]]) -> _Problem:
        steps = [buffer[0] for buffer in buffers]
        first = np.array(steps, np.int64)
        last = np.array([buffer[1] for buffer in buffers], np.int64)
        size = np.array([buffer[2] for buffer in buffers], np.int64)
        opens = np.array(sorted(set(steps)), np.int64)  # np.unique would import numpy.ma
        start = np.searchsorted(opens, first).astype(np.int64)
        end = np.searchsorted(opens, last).astype(np.int64)
        change = np.zeros(len(opens) + 1, np.int64)
        np.add.at(change, start, size)
        np.subtract.at(change, end, size)
        load = np.cumsum(change)[:-1]
        return cls(start, end, size, load, int(load.max()))

    def permuted(self, order: _Ints) -> _Problem:
        return _Problem(self.start[order], self.end[order], self.size[order], self.load, self.bound)

    def height(self, offsets: _Ints) -> int:
        return int((offsets + self.size).max())


def _greedy_by_size(problem: _Problem) -> _Ints:
    """Largest first, each into the smallest gap that fits, else on top of what it meets."""
    start, end, size = problem.start, problem.end, problem.size
    offsets = np.zeros(len(size), np.int64)
    placed = np.zeros(len(size), np.bool_)
    for i in np.lexsort((start, -size)):
        met = np.flatnonzero(placed & (start < end[i]) & (end > start[i]))
        met = met[np.argsort(offsets[met], kind="stable")]
        below = np.zeros(len(met) + 1, np.int64)
        np.maximum.accumulate(offsets[met] + size[met], out=below[1:])
        gaps = offsets[met] - below[:-1]
        fits = np.flatnonzero(gaps >= size[i])
        offsets[i] = below[fits[np.argmin(gaps[fits])]] if len(fits) else below[-1]
        placed[i] = True
    return offsets


def _improve(problem: _Problem, best: _Ints, enough: int, deadline: float) -> _Ints:
    """Descend once per tie-break, then search at growing capacities, until one meets `enough`."""
    ranked: list[tuple[int, int, _Ints]] = []
    for number, order in enumerate(_orders(problem)):
        if time.monotonic() > deadline:
            return best
        found = np.empty_like(order)
        found[order] = _descend(problem.permuted(order))
        height = problem.height(found)
        if height < problem.height(best):
            best = found
        if height <= enough:
            return best
        ranked.append((height, number, order))
    orders = [order for _, _, order in sorted(ranked, key=lambda entry: entry[:2])]
    budget = _BUDGET
    for slack in _SLACKS:
        limit = max(enough, int(problem.bound * slack))
        if limit >= problem.height(best):
            break
        for order in orders:
            tries = min(len(order) + _RETRIES, budget)
            offsets, used = _skyline(problem.permuted(order), limit, tries, deadline)
            budget -= used
            if offsets is not None:
                best = np.empty_like(offsets)
                best[order] = offsets
                return best
            if budget <= 0 or time.monotonic() > deadline:
                return best
    return best


def _orders(problem: _Problem) -> Iterator[_Ints]:
    """Which of the buffers that can sit equally low goes first, best guess first."""
    life = problem.end - problem.start
    pairs = zip(problem.start.tolist(), problem.end.tolist(), strict=True)
    contention = np.array([problem.load[start:end].max() for start, end in pairs], np.int64)
    yield np.lexsort((-problem.size, -life, -contention))
    yield np.lexsort((-problem.size, -life))
    yield np.argsort(-life.astype(np.float64) * problem.size, kind="stable")
    yield np.lexsort((-life, -problem.size))
    yield np.lexsort((-problem.size, -contention))


def _descend(problem: _Problem) -> _Ints:
    """Always place the buffer that can sit lowest, the first of equals; take nothing back."""
    start, end, size = problem.start, problem.end, problem.size
    offsets = np.zeros(len(size), np.int64)
    position = np.zeros(len(size), np.int64)
    for _ in range(len(size)):
        i = position.argmin()
        offsets[i] = position[i]
        meets = (start < end[i]) & (end > start[i])
        np.maximum(position, offsets[i] + size[i], out=position, where=meets)
        position[i] = _FAR
    return offsets


@dataclass(frozen=True, slots=True)
class _State:
    """A partial packing. Its arrays are never modified, so taking back is dropping it.

    `position` is the lowest offset each buffer can still get (`_FAR` once placed), `floor` the
    height reached and `rest` the bytes still to place, per section. `choices` are the buffers not
    yet tried next, the preferred one at the end; `chosen` and `offset` say what was placed to come
    here.
    """

    position: _Ints
    floor: _Ints
    rest: _Ints
    choices: list[int]
    chosen: int
    offset: int


def _skyline(
    problem: _Problem, limit: int, tries: int, deadline: float
) -> tuple[_Ints | None, int]:
    """Offsets within `limit` bytes, or None if none were found in `tries`; and the tries used."""
    count = len(problem.size)
    position = np.zeros(count, np.int64)
    floor = np.zeros(len(problem.load), np.int64)
    trail = deque(
        [_State(position, floor, problem.load, _choices(position, problem.size), -1, 0)],
        maxlen=_DEPTH,
    )
    offsets = np.zeros(count, np.int64)
    depth = used = 0
    while trail:
        state = trail[-1]
        if not state.choices:
            trail.pop()
            depth -= 1
            continue
        if used >= tries or time.monotonic() > deadline:
            return None, used
        used += 1
        after = _place(problem, state, state.choices.pop(), limit)
        if after is None:
            continue
        offsets[after.chosen] = after.offset
        trail.append(after)
        depth += 1
        if depth == count:
            return offsets, used
    return None, used


def _place(problem: _Problem, state: _State, i: int, limit: int) -> _State | None:
    """Put buffer i as low as it can sit; None when the rest can't fit under the limit then."""
    start, end, size = problem.start[i], problem.end[i], problem.size[i]
    offset = state.position[i]
    top = offset + size
    if top + state.rest[start:end].max() - size > limit:
        return None
    floor, rest = state.floor.copy(), state.rest.copy()
    floor[start:end] = top
    rest[start:end] -= size
    # Offsets never decrease from here on, so what lies below this one is lost in every section.
    if (np.maximum(floor, offset) + rest).max() > limit:
        return None
    meets = (problem.start < end) & (problem.end > start)
    position = np.maximum(state.position, np.where(meets, top, offset))
    position[i] = _FAR
    tops = position + problem.size
    if tops[position < _FAR].max(initial=0) > limit:
        return None
    return _State(position, floor, rest, _choices(position, problem.size), i, int(offset))


def _choices(position: _Ints, size: _Ints) -> list[int]:
    """Buffers worth placing next, the lowest one last.

    One that starts at or above the lowest possible top would leave room for that other buffer
    beneath it, so a canonical packing has placed the other one before.
    """
    low = np.flatnonzero(position < (position + size).min())
    order: list[int] = low[np.argsort(position[low], kind="stable")][::-1].tolist()
    return order
