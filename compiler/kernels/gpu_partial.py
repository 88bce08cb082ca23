"""Long reductions of few rows on GPUs, in several kernels: parts of them, and what follows.

One block for each row, or a few, would leave a GPU idle. A sum becomes the sums of its parts, a
block each, and a kernel that adds those up. A softmax becomes the largest elements of parts; the
sums of parts, whose blocks find the largest of all first; the whole sums; and the quotients, by a
thread each. Where a part begins and ends depends on the reduction's length and the number of parts
alone. What is left over behind the last part, whoever needs the result adds to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, index, load, reduce, var
from ...ops.traverse import substitute, walk
from .gpu_sharing import item_loops, side
from .ir import Buffer
from .pieces import Assignment, Piece, trip_count
from .reductions import combined, reduces

PART: Final = 1 << 12  # elements from which a part is worth a block
SEVERAL: Final = 8  # times as many, where one reduction needs the result of another
MOST_PARTS: Final = 256
BLOCKS: Final = 512  # that fill a device
COLUMNS: Final = 16  # that a block computes side by side
WHOLE: Final = 32  # elements, of a multiple of which a part consists, so that it begins aligned


def parts_of(piece: Piece, one_order: bool) -> int:
    """Into how many parts the piece's reductions should fall; 1 where they should stay whole.
    one_order: whatever the number of rows."""
    found = _reductions(piece)
    if not found:
        return 1
    length = min(map(_length, found))
    if len(found) > 1 and length < SEVERAL * PART:
        return 1
    most = length // PART
    if not one_order:
        rows = prod(map(trip_count, item_loops(piece)))
        blocks = rows if side(piece, found) >= 0 else -(-rows // COLUMNS)
        most = min(most, BLOCKS // max(blocks, 1) // len(found))
    return max(1, min(most, MOST_PARTS))


def in_steps(pieces: Iterable[Piece], parts: int) -> tuple[list[Piece], list[Buffer]]:
    """The pieces in order, those that can be in steps if there are parts; and the scratch buffers
    that takes."""
    steps: list[Piece] = []
    scratch: list[Buffer] = []
    for p in pieces:
        found = _reductions(p) if parts > 1 else []
        steps += _split(p, found, parts, scratch) if found else [p]
    return steps, scratch


def _length(r: Expr) -> int:
    return prod(map(trip_count, r.payload[1]))


def _reductions(piece: Piece) -> list[Expr]:
    """The reductions of a piece, if all of them are long, are of the same rows, and may be computed
    ahead of all else."""
    values = [a.value for a in piece.assignments]
    found = reduces(values)
    rows = set(item_loops(piece))
    if any(r.free != rows or _length(r) < 2 * PART for r in found):
        return []
    if any(n.op == "select" and reduces(n.args[1:]) and not rows.isdisjoint(n.args[0].free)
           for n in walk(*values)):  # fmt: skip
        return []  # they may have to stay unread
    return found


def _split(
    piece: Piece, found: Sequence[Expr], parts: int, scratch: list[Buffer]
) -> list[Piece]:  # fmt: skip
    rows = [v for v in piece.loops if v in item_loops(piece)]
    count, row = prod(map(trip_count, rows)), index(0)
    for v in rows:
        row = row * trip_count(v) + v
    steps: list[Piece] = []
    known: dict[Expr, Expr] = {}

    def held(like: Expr, elements: int) -> Buffer:
        scratch.append(Buffer(f"s{len(scratch)}", like.dtype, elements, "scratch"))
        return scratch[-1]

    for r in found:
        node = substitute(r, known)
        part, partial, rest = _parts(node, parts)
        at = part * count + row
        s = held(r, trip_count(part) * count)
        steps.append(Piece((part, *rows), (Assignment(s, at, partial),)))
        total = reduce(node.payload[0], (part,), load(s, (at,), r.dtype))
        known[r] = total if rest is None else combined(node.payload[0], total, rest)
    if len(rows) < len(piece.loops):  # their elements are computed by a thread each
        totals = {r: held(r, count) for r in found}
        steps.append(Piece(tuple(rows), tuple(
            Assignment(s, row, known[r]) for r, s in totals.items())))  # fmt: skip
        known = {r: load(s, (row,), r.dtype) for r, s in totals.items()}
    return [*steps, Piece(piece.loops, tuple(
        Assignment(a.buffer, a.offset, substitute(a.value, known)) for a in piece.assignments
    ))]  # fmt: skip


def _parts(node: Expr, parts: int) -> tuple[Expr, Expr, Expr | None]:
    """(which part, its reduction, that of what is left over, if anything is)."""
    combine, over = node.payload
    long = max(over, key=trip_count)
    length, first = trip_count(long), long.payload[1]
    each = max(length // parts, 1)
    if each >= WHOLE and long is over[-1]:
        each = each // WHOLE * WHOLE
    count = length // each

    def reduced(v: Expr, start: Expr) -> Expr:
        """Of the elements that v counts from `start` on."""
        body = substitute(node.args[0], {long: start + v + first})
        return reduce(combine, tuple(v if w is long else w for w in over), body)

    part, inside = var("part", count), var(long.payload[0], each)
    rest = None
    if count * each < length:
        rest = reduced(var("rest", length - count * each), index(count * each))
    return part, reduced(inside, part * each), rest
