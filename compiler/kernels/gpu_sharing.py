"""How threads of a GPU share out a piece: who computes which elements, how many at once.

A thread that takes neighbours takes as many as fill 16 bytes, the widest access there is: fewer
instructions move the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, var
from ...ops.traverse import substitute
from .gpu_windows import window_of
from .nest import guarded
from .pieces import Piece, buffer_loads, stride, trip_count
from .reductions import reduces
from .vectors import WIDEST, aligned

FEW_THREADS: Final = 4096  # that leave a GPU mostly idle
RUN: Final = 16  # elements side by side that are worth to be read by threads side by side
MOST_EACH: Final = 8  # sums that a thread of a block holds


def item_loops(piece: Piece) -> list[Expr]:
    """The loops that an item of a block stands for: those that the outermost reduction depends on,
    the one with the fewest of them. The others run inside, in lanes."""
    found = reduces(a.value for a in piece.assignments)
    needed = [[v for v in piece.loops if v in r.free] for r in found if r.free <= set(piece.loops)]
    return min(needed, key=len, default=list(piece.loops))


def most_each(piece: Piece) -> int:
    """Elements that fill 16 bytes of the narrowest type that a thread stores, if all of it lies
    side by side and starts at multiples of that; half as many, or fewer, where they do not."""
    if item_loops(piece) != list(piece.loops) or not piece.loops:
        return 1
    return _neighbours(piece, _shares)


def columns_each(piece: Piece) -> int:
    """The same of columns: results of reductions, and what is computed of them, element by element
    of the reduction."""
    return _neighbours(piece, _aligned) if item_loops(piece) else 1


def _neighbours(piece: Piece, fit: Callable[[Expr, Expr], bool]) -> int:
    u = var("u", WIDEST // min(a.buffer.dtype.bytes for a in piece.assignments))
    while trip_count(u) > 1 and not _is_wide(piece, u, fit):
        u = var("u", trip_count(u) // 2)
    return trip_count(u)


def _is_wide(piece: Piece, u: Expr, fit: Callable[[Expr, Expr], bool]) -> bool:
    """Whether u = 0, 1, ... are neighbours in all that a piece stores, and in what it loads if it
    reduces: its threads read nothing twice that they could share otherwise."""
    n, rows = trip_count(u), item_loops(piece)
    count = prod(map(trip_count, rows))
    if count % n:
        return False
    where = unflattened(var("item", count // n) * n + u, rows)
    if not all(aligned(substitute(a.offset, where), u) for a in piece.assignments):
        return False
    values = [substitute(guarded(a.value), where) for a in piece.assignments]
    return all(fit(r, u) for r in reduces(values))


def _aligned(r: Expr, u: Expr) -> bool:
    """Whether elements u of a reduction read neighbours."""
    return all(aligned(n.args[0], u) for n in buffer_loads(r.args[0]) if u in n.free)


def _shares(r: Expr, u: Expr) -> bool:
    """Whether elements u of a reduction read neighbours, or slide a window."""
    if _aligned(r, u):
        return True
    found = window_of(r.args[0], u, r.payload[1][-1])
    return found is not None and found.step == 1


def good_each(piece: Piece) -> int:
    """As many as fill an access, as long as that leaves threads enough."""
    most, count = most_each(piece), prod(map(trip_count, piece.loops))
    while most > 1 and count // most < FEW_THREADS:
        most //= 2
    return most


def side(piece: Piece, outer: Sequence[Expr], one_order: bool = False) -> int:
    """Positive where more of what is read is contiguous along long reductions than along the
    output, negative where it is the other way round. one_order: whatever its size, which may be
    that of a batch."""
    rows = item_loops(piece)
    last = rows[-1] if rows else None
    score = 0
    for r in outer:
        for n in buffer_loads(r.args[0]):
            if n.payload.role == "const":  # is stored as suits
                continue
            run = prod(map(trip_count, run_of(n.args[0], r.payload[1])))
            across = last is not None and stride(n.args[0], last) == 1
            score += (1 if one_order else n.payload.elements) * ((run >= RUN) - across)
    return score


def run_of(at: Expr, over: Sequence[Expr]) -> list[Expr]:
    """The innermost loops along which elements follow each other in memory."""
    run: list[Expr] = []
    length = 1
    for v in reversed(over):
        if stride(at, v) != length:
            break
        run.append(v)
        length *= trip_count(v)
    return run


def most_wide(piece: Piece) -> int:
    """Neighbours that a thread of a block takes at once: 16 bytes of the narrowest type that it
    loads, if rows and reductions are multiples of that and lie side by side."""
    found = [r for a in piece.assignments for r in reduces([a.value]) if r.free <= {*piece.loops}]
    if not found:
        return 1
    loads = [n for r in found for n in buffer_loads(r.args[0])]
    if not all(_lies_along(n, r.payload[1][-1]) for r in found for n in buffer_loads(r.args[0])):
        return 1
    n = WIDEST // min((x.payload.dtype.bytes for x in loads), default=WIDEST)
    rows = item_loops(piece)
    columns = [v for v in piece.loops if v not in rows]
    lengths = [prod(map(trip_count, r.payload[1])) for r in found]
    lengths += [prod(map(trip_count, columns))] if columns else []
    while n > 1 and any(length % n for length in lengths):
        n //= 2
    return n


def _lies_along(load: Expr, v: Expr) -> bool:
    """Whether neighbours along a reduction are neighbours in memory; constants are put that way."""
    return load.payload.role == "const" or stride(load.args[0], v) in (0, 1)


def shared_each(piece: Piece) -> int:
    """Elements that a block computes at once, because they read one operand of a sum alike: no more
    than a few, where there are no more."""
    if not piece.loops or item_loops(piece) != list(piece.loops):
        return 1
    last = piece.loops[-1]
    if trip_count(last) > MOST_EACH:
        return 1
    alike = any(last not in x.free for a in piece.assignments for r in reduces([a.value])
                for x in buffer_loads(r.args[0]))  # fmt: skip
    return trip_count(last) if alike else 1


def flattened(value: Expr, flat: Expr, loops: Sequence[Expr]) -> Expr:
    """A value over nested loops in terms of one variable that counts all their rounds. Loops are
    joined two by two, the inner ones first: so places that follow each other in memory become sums
    of the variable."""
    if len(loops) < 2:
        return substitute(value, unflattened(flat, loops))
    *outer, a, b = loops
    both = flat if not outer else var("both", trip_count(a) * trip_count(b))
    value = substitute(value, unflattened(both, (a, b)))
    return flattened(value, flat, [*outer, both]) if outer else value


def unflattened(flat: Expr, loops: Sequence[Expr]) -> dict[Expr, Expr]:
    """The loops' variables in terms of the number of the round, the last one fastest. Rounds past
    the last lie past the end of the first loop."""
    out: dict[Expr, Expr] = {}
    apart = 1
    for v in reversed(loops):
        n, first = trip_count(v), v.payload[1]
        at = flat // apart
        out[v] = (at if v is loops[0] else at % n) + first
        apart *= n
    return out
