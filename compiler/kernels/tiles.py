"""Squares of elements that change from rows to lanes in registers.

A load whose lanes would lie far apart, while some other loop walks it element by element, is read
along that loop instead: a vector for every lane, transposed once for a square of both loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...ops.expr import Expr, var
from ...ops.traverse import substitute, walk
from .ir import Declare, Local, Set, Stmt, Store, Transpose, loop, seq
from .pieces import Assignment, buffer_loads, stride, trip_count

MOST_LOADS = 2  # squares that registers hold at a time


@dataclass(frozen=True, slots=True)
class Tiling:
    """Loops `across` (along which the loads lie in memory) and `lane` in squares of n.

    where: either loop's variable as square and place in it. loads: what is read transposed.
    """

    n: int
    across: Expr
    lane: Expr
    squares: tuple[Expr, Expr]
    places: tuple[Expr, Expr]
    loads: tuple[Expr, ...]

    @property
    def where(self) -> Mapping[Expr, Expr]:
        loops = (self.across, self.lane)
        return {v: s * self.n + p
                for v, s, p in zip(loops, self.squares, self.places, strict=True)}  # fmt: skip


def tiling(
    loops: Sequence[Expr], lane: Expr | None, assignments: Sequence[Assignment], n: int
) -> Tiling | None:
    """Squares that serve all loads whose lanes lie apart; None where there are none such, or some
    that squares cannot serve."""
    if lane is None or trip_count(lane) < 2:
        return None
    values = [a.value for a in assignments]
    apart = [x for x in dict.fromkeys(x for v in values for x in buffer_loads(v))
             if stride(x.args[0], lane) not in (0, 1)]  # fmt: skip
    guarded = {x for v in values for s in walk(v) if s.op == "select"
               for arm in s.args[1:] for x in buffer_loads(arm)}  # fmt: skip
    if not apart or len(apart) > MOST_LOADS or not guarded.isdisjoint(apart):
        return None
    if any(x.payload.dtype.bytes not in (4, 8) for x in apart):
        return None
    for across in loops:
        if across is lane or across.payload[1] or lane.payload[1] or trip_count(across) < n // 2:
            continue
        squares = tuple(var(f"{v.payload[0]}s", -(-trip_count(v) // n)) for v in (across, lane))
        places = tuple(var(f"{v.payload[0]}p", n) for v in (across, lane))
        found = Tiling(n, across, lane, squares, places, tuple(apart))  # type: ignore[arg-type]
        if all(_follows(substitute(x.args[0], found.where), places) for x in apart):
            return found
    return None


def _follows(at: Expr, places: Sequence[Expr]) -> bool:
    return stride(at, places[0]) == 1 and stride(at, places[1]) is not None


def square(
    n: int, places: tuple[Expr, Expr], assignments: Sequence[Assignment], extents: Sequence[int],
    local: Callable[..., Local],
) -> tuple[Stmt, ...]:  # fmt: skip
    """One square of n by n, of which `extents` rows and lanes exist. places: the variables of rows,
    along which loads lie in memory, and of lanes. assignments: in terms of these."""
    across, lane = places
    rows, lanes = extents
    loads = dict.fromkeys(
        x
        for a in assignments
        for x in buffer_loads(a.value)
        if stride(x.args[0], across) == 1 and stride(x.args[0], lane) != 1
    )
    out: list[Stmt] = []
    held: dict[Expr, Expr] = {}
    for x in loads:
        if stride(x.args[0], lane) == 0:
            continue
        t = local(x.dtype, (n,), n)
        read = loop(across, (Set(t, (lane,), x),), "vector", hi=rows, lanes=n)
        out += [Declare(t), loop(lane, (read,), "unroll", hi=lanes), Transpose(t)]
        held[x] = t[across]
    stores = [Store(a.buffer, a.offset, substitute(a.value, held)) for a in assignments]
    write = loop(lane, stores, "vector", hi=lanes, lanes=n)
    return seq(out, loop(across, (write,), "unroll", hi=rows))
