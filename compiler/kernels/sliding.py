"""Windows that slide along a loop: neighbouring results share what they have in common.

A window over several axes is reduced axis by axis, the one that slides last. Then the reductions of
the other axes, columns, serve every window that covers them: results are computed several at a
time, and each column once for all of them.

Where a window moves by several rows at a time, each of its rows may be gone through from end to
end before the next one, so that memory is read in one stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ops.expr import Expr, index, reduce, var
from ...ops.traverse import substitute, transform, walk
from .pieces import buffer_loads, stride, trip_count

MOST_TAPS = 16  # of a window that is unrolled
WIDTHS = (8, 4, 2)  # results computed together


@dataclass(frozen=True, slots=True)
class Sliding:
    """node: a reduction over `tap` alone. One step of the loop moves its window by `step` taps."""

    node: Expr
    tap: Expr
    step: int

    def columns(self, width: int) -> int:
        """How many columns `width` results together need."""
        return (width - 1) * self.step + trip_count(self.tap)

    def width(self, registers: int, rounds: int) -> int:
        """How many results to compute together."""
        fits = (w for w in WIDTHS if w <= rounds and self.columns(w) <= registers // 2)
        return next(fits, 1)


def separated(value: Expr, along: Expr) -> Expr:
    """value with windows that slide along a loop reduced axis by axis, the sliding one last."""

    def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if n.op != "reduce" or len(n.payload[1]) < 2:
            return None
        combine, over = n.payload
        for tap in over:
            if _step(args[0], along, tap):
                rest = tuple(v for v in over if v is not tap)
                return reduce(combine, (tap,), reduce(combine, rest, args[0]))
        return None

    return transform(value, visit)


def sliding(values: Sequence[Expr], along: Expr) -> Sliding | None:
    """The one reduction that slides along a loop, if the values hold no other one over it."""
    outer = _outer(values)
    if len(outer) != 1 or len(outer[0].payload[1]) != 1 or taps(outer[0]) > MOST_TAPS:
        return None
    (tap,) = outer[0].payload[1]
    step = _step(outer[0].args[0], along, tap)
    return Sliding(outer[0], tap, step) if step else None


@dataclass(frozen=True, slots=True)
class Rows:
    """node: a maximum or minimum over `tap` alone, each value of which reads another row. shared:
    whether the last row of one window is the first of the next; they have no others in common."""

    node: Expr
    tap: Expr
    shared: bool

    def row(self, k: int) -> Expr:
        """The result of the window's row k."""
        return substitute(self.node.args[0], {self.tap: index(self.tap.payload[1] + k)})


def rows_apart(
    values: Sequence[Expr], along: Expr, across: Expr
) -> tuple[list[Expr], Rows] | None:  # fmt: skip
    """The values with the rows of their window reduced one by one, and what that makes of the one
    reduction that is in no other. along, across: the loops over rows of results and in a row. None
    unless it is a maximum or minimum, which any order leaves exact, and its windows move by as many
    rows as they have, or one less."""
    found: dict[Expr, Rows] = {}

    def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if n.op != "reduce" or n.payload[0] not in ("max", "min"):
            return None
        combine, over = n.payload
        body = args[0]
        while body.op == "reduce" and body.payload[0] == combine:
            over, body = over + body.payload[1], body.args[0]
        down, length = _pitch(body, along), _pitch(body, across) * (trip_count(across) - 1)
        for tap in over:
            count, pitch = trip_count(tap), _pitch(body, tap)
            shared = count > 2 and _step(body, along, tap) == count - 1
            if 0 < length < pitch and (shared or 1 < count <= down // pitch):
                rest = tuple(v for v in over if v is not tap)
                row = reduce(combine, rest, body) if rest else body
                apart = reduce(combine, (tap,), row)
                found[apart] = Rows(apart, tap, shared)
                return apart
        return None

    there = [transform(v, visit) for v in values]
    outer = _outer(there)
    if len(outer) != 1 or outer[0] not in found or taps(outer[0]) > MOST_TAPS:
        return None
    return there, found[outer[0]]


def _outer(values: Sequence[Expr]) -> list[Expr]:
    """The reductions that are in no other one."""
    nodes = [n for n in walk(*values) if n.op == "reduce"]
    inner = {m for n in nodes for m in walk(*n.args) if m.op == "reduce"}
    return [n for n in nodes if n not in inner]


def _pitch(body: Expr, v: Expr) -> int:
    """How far one step of v moves all loads that v moves; 0 where it is not one distance."""
    steps = {stride(n.args[0], v) for n in buffer_loads(body) if v in n.args[0].free}
    return next(iter(steps)) or 0 if len(steps) == 1 else 0


def taps(node: Expr) -> int:
    """Elements that one reduction combines, those of reductions inside it included."""
    total = 1
    for v in node.payload[1]:
        total *= trip_count(v)
    return total * max((taps(n) for n in walk(*node.args) if n.op == "reduce"), default=1)


def _step(body: Expr, along: Expr, tap: Expr) -> int:
    """How many taps the window moves with one step of the loop, if fewer than it has; else 0."""
    if along not in body.free or tap not in body.free:
        return 0
    name, first, end = along.payload
    here = var(name, end + 1 - first, first)  # room for one step more
    wide = substitute(body, {along: here})
    moved = substitute(wide, {here: here + 1})
    for step in range(1, trip_count(tap)):
        if substitute(wide, {tap: tap + step}) is moved:
            return step
    return 0
