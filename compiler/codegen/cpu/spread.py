"""Loads whose lanes lie at distances known when lowering: whole vectors and shuffles, no gather.

Strided rows, blocked channels moved by a few, repeated and reversed elements all read a handful of
vectors' worth of memory. Windows of one vector each cover the elements of all lanes; shuffles bring
every element into its lane. Windows never touch memory that the gather would be kept from: they
start at multiples of the vector width where the buffer consists of whole vectors and the
alignment is known, and otherwise stay between the first and the last element read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....ops.expr import Expr, linear
from ....ops.traverse import substitute
from ....ops.types import boolean
from .llvm_text import Function, Value

MOST_WINDOWS = 4  # with more of them a gather is as good


@dataclass(frozen=True, slots=True)
class Lanes:
    """The vector loop being lowered: its variable in lane 0 (as a value, and as an expression), how
    many lanes, which are on."""

    var: Expr
    first: Value
    count: int
    mask: Value | None
    base: Expr


@dataclass(frozen=True, slots=True)
class Window:
    """A vector of memory at `start` elements from lane 0's, of which the first `width` elements may
    be read. lanes: (lane, its position) of all lanes it holds the elements of."""

    start: int
    width: int
    lanes: tuple[tuple[int, int], ...]


def plan(
    at: Expr, lanes: Lanes, known: Mapping[Expr, Expr], elements: int
) -> tuple[Expr, tuple[Window, ...]] | None:
    """(lane 0's offset, windows) for a load at `at` from a buffer of so many elements, None where
    only a gather will do. known: variables with a value."""
    base = substitute(at, {**known, lanes.var: lanes.base})
    apart = [0]
    for k in range(1, lanes.count):
        terms, d = linear(substitute(at, {**known, lanes.var: lanes.base + k}) - base)
        if terms:
            return None
        apart.append(d)
    found = windows(apart, elements, residue_of(base, lanes.count))
    if found is None:
        return None
    if lanes.mask is not None and not all(map(is_one_to_one, found)):
        return None  # an element of two lanes may be read if either is on
    return base, found


def windows(apart: Sequence[int], elements: int, residue: int | None) -> tuple[Window, ...] | None:
    """The fewest windows over lanes at these distances, None if more than MOST_WINDOWS. residue:
    lane 0's offset modulo the vector width, if known."""
    n = width = len(apart)
    starts: list[int] = []
    if residue is not None and elements % n == 0:
        starts = sorted({(d + residue) // n * n - residue for d in apart})
    else:
        low, high = min(apart), max(apart)
        width = min(n, high - low + 1)
        for d in sorted(set(apart)):
            if not starts or d >= starts[-1] + width:
                starts.append(min(d, high + 1 - width))
    if len(starts) > MOST_WINDOWS:
        return None
    lanes: dict[int, list[tuple[int, int]]] = {s: [] for s in starts}
    for k, d in enumerate(apart):
        start = max(s for s in starts if s <= d)
        lanes[start].append((k, d - start))
    return tuple(Window(s, width, tuple(held)) for s, held in lanes.items() if held)


def residue_of(at: Expr, n: int) -> int | None:
    """at modulo n, where that is the same for all values of its variables."""
    terms, constant = linear(at)
    return None if any(f % n for f in terms.values()) else constant % n


def is_multiple(e: Expr, n: int) -> bool:
    """Whether e is surely a multiple of n."""
    if e.op in ("min", "max"):
        return all(is_multiple(a, n) for a in e.args)
    terms, constant = linear(e)
    return constant % n == 0 and all(k % n == 0 for k in terms.values())


def window_mask(f: Function, mask: Value | None, window: Window, n: int) -> Value | None:
    """Which positions of a window of n may be read: those that a lane which is on wants."""
    if mask is None:
        on = ", ".join(f"i1 {'true' if k < window.width else 'false'}" for k in range(n))
        return None if window.width == n else Value(f"<{on}>", boolean, n)
    order = [mask.lanes] * mask.lanes
    for lane, place in window.lanes:
        order[place] = lane
    return f.shuffle(mask, Value("zeroinitializer", mask.dtype, mask.lanes), order)


def is_one_to_one(window: Window) -> bool:
    return len({place for _, place in window.lanes}) == len(window.lanes)


def assemble(f: Function, loaded: Sequence[tuple[Window, Value]]) -> Value:
    """Every lane's element out of the windows."""
    n = loaded[0][1].lanes
    window, out = loaded[0]
    if len(loaded) == 1 and all(lane == place for lane, place in window.lanes):
        return out
    order: list[int | None] = [None] * n
    for lane, place in window.lanes:
        order[lane] = place
    if len(loaded) == 1:
        return f.shuffle(out, None, order)
    for window, value in loaded[1:]:
        for lane, place in window.lanes:
            order[lane] = n + place
        out = f.shuffle(out, value, order)
        order = [k if x is not None else None for k, x in enumerate(order)]
    return out
