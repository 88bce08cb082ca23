"""Static memory packing: one offset per buffer so that no two buffers alive together overlap.

Known as dynamic storage allocation, NP-hard. What is tried, until the arena is as small as asked:

1. greedy by size, and skylines (`skyline`), which take milliseconds and on neural networks nearly
   always give a smallest arena;
2. a search (`exact`) for the size asked for; if nobody asked, or that size is impossible, for the
   lower bound and sizes above it. It goes on until its placements or its time are used up, or
   nothing is left to decide.

Parts of time that no buffer connects are packed one by one.

A lower bound comes from one of two proofs. All that is alive at one moment has to fit, which
anybody can check by adding up the sizes: `most_alive`. Where the search tries everything in vain at
some size, the arena must be larger than that: `lower_bound` is then above `most_alive`, and one has
to trust the search (or run it again). An arena that is as small as the lower bound is optimal.

Both searches count placements, not seconds, so the same problem gives the same offsets on any
machine unless the time limit strikes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import OptionError
from .buffers import round_up
from .exact import search
from .sections import Ints, Problem
from .skyline import greedy_by_size, improve

PLACEMENTS = 100_000
"""That the exact search of one call may try: 10 to 40 seconds at some hundred buffers."""

_ASKED, _BETWEEN = 8, 2
"""Placements per buffer for the search at the size asked for, and at those in between, in the first
round; they double from round to round."""

_FINE = 256
"""In the first round, sizes in between are this fraction of the bound apart."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Offsets in bytes, in the order of the buffers given, and what is known about their quality.

    `height` is the arena size. `most_alive` is the largest sum of (rounded) sizes alive together;
    `lower_bound` is at least that, and more if a search has proved that no packing is so low.
    `optimal` says that height and lower bound are equal: no packing is smaller. Where they differ,
    the packing may still be the best one: nothing is claimed then.
    """

    offsets: tuple[int, ...]
    height: int
    lower_bound: int
    optimal: bool
    most_alive: int


def pack(
    buffers: Sequence[tuple[int, int, int]],
    capacity: int | None = None,
    time_limit: float = 10.0,
    *,
    alignment: int = 64,
    placements: int = PLACEMENTS,
) -> Packing:
    """Place buffers given as (first step, step after the last, bytes) at low offsets.

    Sizes are rounded up to `alignment` bytes, so every offset is a multiple of it. Without a
    `capacity` in bytes, or if none can fit it, the aim is the smallest arena. With one, the search
    stops as soon as the arena fits; a packing that does not is returned as well, so look at
    `height`. No packing fits if the capacity is below `lower_bound`. The result is never higher
    than greedy by size. `time_limit` in seconds and the `placements` of the exact search bound the
    effort; 0 placements leave the quick ways, 0 seconds greedy by size.

    Raises OptionError for a lifetime that is empty, a negative size, sizes that sum to 2**61 bytes
    or more, and an alignment below 1.
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
    rounded = [round_up(size, alignment) for _, _, size in buffers]
    if sum(rounded) >= 2**61:
        raise OptionError(f"the buffers sum to {sum(rounded)} bytes; offsets end at 2**61")
    solid = [index for index, size in enumerate(rounded) if size]
    if not solid:
        return Packing((0,) * len(buffers), 0, 0, True, 0)
    whole = Problem.of([(buffers[i][0], buffers[i][1], rounded[i]) for i in solid])
    height, bound, offsets = 0, whole.bound, [0] * len(buffers)
    for numbers in whole.parts():
        part = _Part(whole.among(numbers), max(bound, capacity or 0), deadline)
        if not part.done:
            part.skyline()
        placements -= part.search(placements, capacity is not None and bound <= capacity)
        height, bound = max(height, part.height), max(bound, part.bound)
        for number, offset in zip(numbers.tolist(), part.offsets.tolist(), strict=True):
            offsets[solid[number]] = offset
    return Packing(tuple(offsets), height, bound, height == bound, whole.bound)


class _Part:
    """A problem, its best packing so far, and the largest bound that is proved.

    A height of `enough` will do. Heights are multiples of `unit`, because every buffer can be
    lowered onto the ground or onto another one.
    """

    def __init__(self, problem: Problem, enough: int, deadline: float) -> None:
        self.problem = problem
        self.enough = enough
        self.deadline = deadline
        self.unit = math.gcd(*problem.size.tolist())
        self.bound = problem.bound
        self._take(greedy_by_size(problem))

    @property
    def done(self) -> bool:
        return self.height <= max(self.enough, self.bound)

    def _take(self, offsets: Ints) -> None:
        self.offsets = offsets
        self.height = self.problem.height(offsets)

    def skyline(self) -> None:
        self._take(improve(self.problem, self.offsets, self.enough, self.deadline))

    def search(self, placements: int, capped: bool) -> int:
        """Search for a packing of `enough`; if there is none, or that is not the capacity of a
        caller (`capped`), for one as low as can be. Returns the placements used."""
        used = 0
        if capped and not self.done:
            used = self._try(self.enough, placements, 0)
        if not capped or self.bound > self.enough:
            used += self._lower(placements - used)
        return used

    def _lower(self, placements: int) -> int:
        """Close the gap between height and bound: in every round, ask for the bound, then for
        heights halfway between the last that was not found and the best. Rounds get longer."""
        used = number = 0
        while not self.done:
            refused, fine = self.bound - self.unit, max(self.unit, self.bound // _FINE >> number)
            goal = asked = max(self.enough, self.bound)
            while not self.done and self.height - refused > fine:
                tries = (_ASKED if goal == asked else _BETWEEN) * len(self.offsets) << number
                tries = min(tries, placements - used)
                if tries <= 0 or time.monotonic() > self.deadline:
                    return used
                used += self._try(goal, tries, number)
                if self.height > goal:
                    refused = goal
                goal = max(self.bound, (self.height + refused) // 2 // self.unit * self.unit)
            number += 1
        return used

    def _try(self, goal: int, tries: int, attempt: int) -> int:
        outcome = search(self.problem, goal, tries, self.deadline, attempt)
        if outcome.offsets is not None:
            self._take(outcome.offsets)
        if outcome.impossible:
            self.bound = (goal // self.unit + 1) * self.unit
        return outcome.used
