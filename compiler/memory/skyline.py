"""Quick ways to pack: greedy by size, and skylines.

* Greedy by size: place the largest first, each into the smallest gap that fits between the buffers
  it meets in time (Pisarchyk and Lee, "Efficient memory management for deep neural net inference",
  2020).
* Skyline: build from the bottom up and always place the buffer that can sit lowest, so that offsets
  never decrease; every packing can be brought into such a canonical form (Moffitt, "MiniMalloc: a
  lightweight memory allocator for hardware-accelerated machine learning", 2023). Once per order in
  which buffers that can sit equally low are preferred.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from .sections import FAR, Ints, Problem


def greedy_by_size(problem: Problem) -> Ints:
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


def improve(problem: Problem, best: Ints, enough: int, deadline: float) -> Ints:
    """The lowest of `best` and the skylines, or the first that is at most `enough` high."""
    for order in _orders(problem):
        if problem.height(best) <= enough or time.monotonic() > deadline:
            break
        found = np.empty_like(order)
        found[order] = _descend(problem.permuted(order))
        if problem.height(found) < problem.height(best):
            best = found
    return best


def _orders(problem: Problem) -> Iterator[Ints]:
    """Which of the buffers that can sit equally low goes first, best guess first."""
    life = problem.end - problem.start
    contention = problem.contention()
    yield np.lexsort((-problem.size, -life, -contention))
    yield np.lexsort((-problem.size, -life))
    yield np.argsort(-life.astype(np.float64) * problem.size, kind="stable")
    yield np.lexsort((-life, -problem.size))
    yield np.lexsort((-problem.size, -contention))


def _descend(problem: Problem) -> Ints:
    """Always place the buffer that can sit lowest, the first of equals; take nothing back."""
    start, end, size = problem.start, problem.end, problem.size
    offsets = np.zeros(len(size), np.int64)
    position = np.zeros(len(size), np.int64)
    for _ in range(len(size)):
        i = position.argmin()
        offsets[i] = position[i]
        meets = (start < end[i]) & (end > start[i])
        np.maximum(position, offsets[i] + size[i], out=position, where=meets)
        position[i] = FAR
    return offsets
