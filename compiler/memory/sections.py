"""A packing problem in terms of sections, the form that the searches work on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

FAR = 2**62
"""Above every offset: where buffers are that are placed already."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Buffers in terms of sections: the stretches of time between two consecutive first steps.

    Two lifetimes meet exactly when they share a section, because the later one's first step opens
    one. `start` and `end` (excluded) are section numbers; `load` is the sum of live sizes per
    section, and `bound` the largest of them: no packing is lower.
    """

    start: Ints
    end: Ints
    size: Ints
    load: Ints
    bound: int

    @classmethod
    def of(cls, buffers: Sequence[tuple[int, int, int]]) -> Problem:
        """From (first step, step after the last, bytes), the bytes being positive."""
        first, last, size = np.array(buffers, np.int64).T
        opens = np.array(sorted(set(first.tolist())), np.int64)  # np.unique would import numpy.ma
        return cls.of_sections(np.searchsorted(opens, first), np.searchsorted(opens, last), size)

    @classmethod
    def of_sections(cls, start: Ints, end: Ints, size: Ints) -> Problem:
        start, end = start.astype(np.int64), end.astype(np.int64)
        change = np.zeros(end.max() + 1, np.int64)
        np.add.at(change, start, size)
        np.subtract.at(change, end, size)
        load = np.cumsum(change)[:-1]
        return cls(start, end, size, load, int(load.max()))

    def permuted(self, order: Ints) -> Problem:
        return Problem(self.start[order], self.end[order], self.size[order], self.load, self.bound)

    def height(self, offsets: Ints) -> int:
        return int((offsets + self.size).max())

    def contention(self) -> Ints:
        """Per buffer, the largest load that it meets."""
        pairs = zip(self.start.tolist(), self.end.tolist(), strict=True)
        return np.array([self.load[start:end].max() for start, end in pairs], np.int64)

    def parts(self) -> Iterator[Ints]:
        """Numbers of the buffers of each part: at the cuts between parts no buffer is alive."""
        crossing = np.zeros(len(self.load) + 1, np.int64)
        np.add.at(crossing, self.start + 1, 1)
        np.subtract.at(crossing, self.end, 1)
        cuts = np.flatnonzero(np.cumsum(crossing) == 0)
        part = np.searchsorted(cuts, self.start, side="right")
        for each in sorted(set(part.tolist())):
            yield np.flatnonzero(part == each)

    def among(self, buffers: Ints) -> Problem:
        """The problem of these buffers alone."""
        start, end = self.start[buffers], self.end[buffers]
        return Problem.of_sections(start - start.min(), end - start.min(), self.size[buffers])
