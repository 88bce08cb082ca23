"""Which taps of a window lie inside the input, tile by tile. The others fall on padding: skipped.

A tile of several places along an axis has, per tap, a range of places at which that tap is inside:
all of them but for tiles at the ends of the axis. Tiles that lie alike share their code (`runs`).
For a tile of one place it is the taps that form a range, which may be computed (`span`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ...ops.expr import Expr, floordiv, index, maximum, minimum
from ...ops.windows import Window


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis of a window: sizes in elements, `begin` elements of padding before them."""

    input: int
    output: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    begin: int = 0

    def inside(self, tap: int) -> tuple[int, int]:
        """The range of output places at which a tap lies inside the input."""
        first = self.begin - tap * self.dilation
        lo = max(0, -(-first // self.stride))
        hi = min(self.output, (self.input - 1 + first) // self.stride + 1)
        return lo, max(lo, hi)

    @property
    def is_padded(self) -> bool:
        """Whether some tap of some place falls on padding."""
        return any(self.inside(t) != (0, self.output) for t in range(self.kernel))

    @property
    def is_covered(self) -> bool:
        """Whether every place has a tap inside the input."""
        end = 0  # of the places that have one, from the first on
        for lo, hi in sorted(map(self.inside, range(self.kernel))):
            if lo <= end:
                end = max(end, hi)
        return end >= self.output

    @property
    def taps(self) -> int:
        """Taps inside the input, over all places."""
        return sum(hi - lo for lo, hi in map(self.inside, range(self.kernel)))

    def span(self, place: Expr) -> tuple[Expr, Expr]:
        """The range of taps inside the input at an output place; empty where lo >= hi."""
        if not self.is_padded:
            return index(0), index(self.kernel)
        d, first = self.dilation, self.begin - place * self.stride
        lo = maximum(floordiv(first + (d - 1), d), 0)
        hi = minimum(floordiv(first + (self.input - 1), d) + 1, self.kernel)
        return lo, hi


def axes(window: Window) -> tuple[Axis, ...]:
    """The axes of a window, outermost first."""
    return tuple(
        map(Axis, window.input, window.output, window.kernel, window.strides, window.dilations,
            window.begin)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Taps:
    """`count` neighbouring taps from `first` on that are inside at the places lo..hi of a tile."""

    first: int
    count: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Run:
    """`count` neighbouring tiles of `size` places from tile `first` on, whose taps lie alike."""

    first: int
    count: int
    size: int
    taps: tuple[Taps, ...]


@cache
def runs(axis: Axis, size: int) -> tuple[Run, ...]:
    """All tiles of an axis that is cut into tiles of `size` places; the last may be smaller."""
    inside = [axis.inside(t) for t in range(axis.kernel)]
    tiles = -(-axis.output // size)
    first = -(-max((lo for lo, _ in inside), default=0) // size)
    end = min((hi for _, hi in inside), default=axis.output) // size  # those between see all taps
    out: list[Run] = []
    k = 0
    while k < tiles:
        count = max(1, end - k) if k >= first else 1
        here = min(size, axis.output - k * size)
        taps = tuple(_groups(inside, k * size, here))
        if out and (out[-1].size, out[-1].taps) == (here, taps):
            out[-1] = Run(out[-1].first, out[-1].count + count, here, taps)
        else:
            out.append(Run(k, count, here, taps))
        k += count
    return tuple(out)


def _groups(inside: Sequence[tuple[int, int]], start: int, size: int) -> Iterator[Taps]:
    """The taps of the tile of `size` places from `start` on; those that are nowhere inside fall
    out. inside: per tap of the axis."""
    held: Taps | None = None
    for t, reach in enumerate(inside):
        lo, hi = (min(max(p - start, 0), size) for p in reach)
        if held is not None and (held.lo, held.hi) == (lo, hi):
            held = Taps(held.first, held.count + 1, lo, hi)
            continue
        if held is not None:
            yield held
        held = Taps(t, 1, lo, hi) if lo < hi else None
    if held is not None:
        yield held
