"""Loads whose lanes lie at distances known when lowering: whole vectors and shuffles, no gather.

Strided rows, blocked channels moved by a few, repeated and reversed elements all read a handful of
vectors' worth of memory. Windows of one vector each cover the elements of all lanes; shuffles bring
every element into its lane (`kernels.access` chooses the windows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ....ops.expr import Expr
from ....ops.types import boolean
from ...kernels.access import Window, distances, residue_of, windows
from .llvm_text import Function, Value


@dataclass(frozen=True, slots=True)
class Lanes:
    """The vector loop being lowered: its variable in lane 0 (as a value, and as an expression), how
    many lanes, which are on."""

    var: Expr
    first: Value
    count: int
    mask: Value | None
    base: Expr


def plan(
    at: Expr, lanes: Lanes, known: Mapping[Expr, Expr], elements: int
) -> tuple[Expr, tuple[Window, ...]] | None:
    """(lane 0's offset, windows) for a load at `at` from a buffer of so many elements, None where
    only a gather will do. known: variables with a value."""
    found = distances(at, lanes.var, lanes.base, lanes.count, known)
    if found is None:
        return None
    base, apart = found
    needed = windows(apart, elements, residue_of(base, lanes.count))
    if needed is None:
        return None
    if lanes.mask is not None and not all(map(is_one_to_one, needed)):
        return None  # an element of two lanes may be read if either is on
    return base, needed


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
