"""Large reductions in two steps: parts of them side by side, then their sum.

How a reduction falls into parts, and how those are added up, depends on its size alone, so results
are the same for any number of threads, and for any number of results, of which a batch is a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ...ops.expr import Expr, index, load, reduce, var
from ...ops.traverse import substitute, walk
from .ir import Buffer
from .pieces import Assignment, Piece, trip_count
from .reductions import combined

LEAST_WORK = 200_000  # elements to reduce for which two phases pay
PARTS = 32


def in_parts(piece: Piece, name: str) -> tuple[Piece, Piece, Buffer] | None:
    """The piece as (one that reduces parts into a scratch buffer called `name`, one that makes its
    results of that, the buffer), where it is a single large reduction that splits evenly."""
    if len(piece.assignments) != 1:
        return None
    (target,) = piece.assignments
    nodes = [n for n in walk(target.value) if n.op == "reduce"]
    if len(nodes) != 1 or prod(map(trip_count, nodes[0].payload[1])) < LEAST_WORK:
        return None
    node = nodes[0]
    if any(n.op == "select" and not nodes[0].free.isdisjoint(n.args[0].free)
           for n in walk(target.value)):  # fmt: skip
        return None  # it may have to stay unread
    combine, over = node.payload
    split = next((v for v in over if _parts(trip_count(v)) > 1), None)
    if split is None or not node.free <= set(piece.loops):
        return None
    length, first = trip_count(split), split.payload[1]
    count = _parts(length)
    part, inside = var("part", count), var(split.payload[0], length // count)
    rest = tuple(inside if v is split else v for v in over)
    where = {split: part * (length // count) + inside + first}
    flat: Expr = part
    for v in piece.loops:
        flat = flat * trip_count(v) + v
    results = prod(map(trip_count, piece.loops))
    scratch = Buffer(name, node.dtype, count * results, "scratch")
    partial = reduce(combine, rest, substitute(node.args[0], where))
    found = load(scratch, (flat,), node.dtype)
    total = _pairwise(combine, [substitute(found, {part: index(k)}) for k in range(count)])
    return (
        Piece((*piece.loops, part), (Assignment(scratch, flat, partial),)),
        Piece(piece.loops, (
            Assignment(target.buffer, target.offset, substitute(target.value, {node: total})),
        )),
        scratch,
    )  # fmt: skip


def in_steps(pieces: Iterable[Piece]) -> tuple[list[Piece], list[Buffer]]:
    """The pieces in order, large reductions among them in two steps; and the scratch buffers that
    takes."""
    steps: list[Piece] = []
    scratch: list[Buffer] = []
    for p in pieces:
        parts = in_parts(p, f"s{len(scratch)}")
        steps += [p] if parts is None else parts[:2]
        scratch += () if parts is None else parts[2:]
    return steps, scratch


def _pairwise(combine: str, values: Sequence[Expr]) -> Expr:
    """The values combined two by two, then the results."""
    while len(values) > 1:
        pairs = [combined(combine, a, b) for a, b in zip(values[::2], values[1::2], strict=False)]
        values = [*pairs, *values[2 * len(pairs) :]]
    return values[0]


def _parts(n: int) -> int:
    """The largest divisor of n up to PARTS."""
    return next(k for k in range(min(PARTS, n), 0, -1) if n % k == 0)
