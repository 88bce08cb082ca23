"""Long reductions to few results on GPUs, in two kernels: parts of them, and what follows of those.

One block, or a few, would leave a GPU idle. Where a part begins and ends depends on the reduction's
length and the number of parts alone. What is left over behind the last part, the second kernel adds
to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Final

from ...ops.expr import Expr, index, load, reduce, var
from ...ops.traverse import substitute, walk
from .ir import Buffer
from .pieces import Assignment, Piece, trip_count
from .reductions import combined

PART: Final = 1 << 13  # elements from which a part is worth a block
MOST_PARTS: Final = 256
BLOCKS: Final = 512  # that fill a device
WHOLE: Final = 32  # elements, of a multiple of which a part consists, so that it begins aligned


def parts_of(piece: Piece, one_order: bool) -> int:
    """Into how many parts the piece's reduction should fall; 1 where it should stay whole.
    one_order: whatever the number of results."""
    node = _reduction(piece)
    if node is None:
        return 1
    most = prod(map(trip_count, node.payload[1])) // PART
    if not one_order:
        most = min(most, BLOCKS // max(prod(map(trip_count, piece.loops)), 1))
    return max(1, min(most, MOST_PARTS))


def in_steps(pieces: Iterable[Piece], parts: int) -> tuple[list[Piece], list[Buffer]]:
    """The pieces in order, those that can be in two steps if there are parts; and the scratch
    buffers that takes."""
    steps: list[Piece] = []
    scratch: list[Buffer] = []
    for p in pieces:
        node = _reduction(p) if parts > 1 else None
        if node is None:
            steps.append(p)
            continue
        first, second, held = _split(p, node, parts, f"s{len(scratch)}")
        steps += [first, second]
        scratch.append(held)
    return steps, scratch


def _reduction(piece: Piece) -> Expr | None:
    """The only reduction of a piece, if it may be computed ahead of all else and is long."""
    if len(piece.assignments) != 1:
        return None
    value = piece.assignments[0].value
    nodes = [n for n in walk(value) if n.op == "reduce"]
    if len(nodes) != 1 or not nodes[0].free <= set(piece.loops):
        return None
    if prod(map(trip_count, nodes[0].payload[1])) < 2 * PART:
        return None
    if any(n.op == "select" and not nodes[0].free.isdisjoint(n.args[0].free) for n in walk(value)):
        return None  # it may have to stay unread
    return nodes[0]


def _split(piece: Piece, node: Expr, parts: int, name: str) -> tuple[Piece, Piece, Buffer]:
    (target,) = piece.assignments
    combine, over = node.payload
    long = max(over, key=trip_count)
    length, first = trip_count(long), long.payload[1]
    each = max(length // parts, 1)
    if each >= WHOLE and long is over[-1]:
        each = each // WHOLE * WHOLE
    count = length // each
    part, inside = var("part", count), var(long.payload[0], each)

    def reduced(v: Expr, start: Expr) -> Expr:
        """Of the elements that v counts from `start` on."""
        body = substitute(node.args[0], {long: start + v + first})
        return reduce(combine, tuple(v if w is long else w for w in over), body)

    flat: Expr = part
    for v in piece.loops:
        flat = flat * trip_count(v) + v
    results = prod(map(trip_count, piece.loops))
    scratch = Buffer(name, node.dtype, count * results, "scratch")
    total = reduce(combine, (part,), load(scratch, (flat,), node.dtype))
    if count * each < length:
        rest = var("rest", length - count * each)
        total = combined(combine, total, reduced(rest, index(count * each)))
    return (
        Piece((part, *piece.loops), (
            Assignment(scratch, flat, reduced(inside, part * each)),
        )),
        Piece(piece.loops, (
            Assignment(target.buffer, target.offset, substitute(target.value, {node: total})),
        )),
        scratch,
    )  # fmt: skip
