"""Transposed reads on GPUs: squares of a tensor go through shared memory.

Where what is read lies side by side along another loop than what is stored, threads side by side
would read far apart, or store far apart. So a block reads a square of both loops with its threads
along the one, and when all of it is there, computes the results with its threads along the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, const, logical_and, var
from ...ops.traverse import substitute
from ...ops.types import boolean
from .gpu_sharing import unflattened
from .ir import Call, Declare, If, Local, Phase, Set, Stmt, Store, loop
from .pieces import Piece, stride, trip_count
from .reductions import reduces
from .vectors import unguarded

SIDE: Final = 32  # of a square
ROWS: Final = 8  # of it that a block's threads take at once
LEAST: Final = 16  # of both loops, below which most of a square would be empty


def transposed(piece: Piece) -> tuple[Expr, tuple[Expr, ...]] | None:
    """(the loop along which loads lie side by side, these loads), where they do not along the last
    one, as stores do; None where there are no such loads."""
    if len(piece.loops) < 2 or reduces(a.value for a in piece.assignments):
        return None
    *others, last = piece.loops
    if trip_count(last) < LEAST or any(v.payload[1] for v in piece.loops):
        return None
    if any(stride(a.offset, last) != 1 for a in piece.assignments):
        return None
    reads = [n for a in piece.assignments for n in unguarded(a.value)
             if stride(n.args[0], last) not in (0, 1, None)]  # fmt: skip
    for v in others:
        found = tuple(dict.fromkeys(n for n in reads if stride(n.args[0], v) == 1))
        if found and trip_count(v) >= LEAST:
            return v, found
    return None


def squares(piece: Piece) -> Phase:
    """A piece that is `transposed`."""
    found = transposed(piece)
    assert found is not None
    beside, loads = found
    last = piece.loops[-1]
    outer = [v for v in piece.loops if v not in (beside, last)]
    many = -(-trip_count(beside) // SIDE), -(-trip_count(last) // SIDE)
    item = var("item", prod(map(trip_count, outer)) * many[0] * many[1])
    thread = var("thread", SIDE * ROWS)
    square = item // (many[0] * many[1])
    across, down = thread % SIDE, thread // SIDE
    first = item // many[1] % many[0] * SIDE, item % many[1] * SIDE
    where = unflattened(square, outer) if outer else {}
    body: list[Stmt] = []
    known: dict[Expr, Expr] = {}

    u = var("u", SIDE // ROWS)
    row = u * ROWS + down
    sides = beside, last
    reading = {**where, beside: first[0] + across, last: first[1] + row}
    writing = {**where, beside: first[0] + row, last: first[1] + across}
    for k, n in enumerate(loads):
        held = Local(f"square{k}", n.dtype, (SIDE * (SIDE + 1),), shared=True)
        kept = Set(held, (row * (SIDE + 1) + across,), substitute(n, reading))
        body += [Declare(held), loop(u, _inside(sides, reading, kept), "unroll")]
        known[n] = held[across * (SIDE + 1) + row]
    made = tuple(
        Store(a.buffer, substitute(a.offset, writing),
              substitute(substitute(a.value, known), writing)) for a in piece.assignments
    )  # fmt: skip
    body += [Call("barrier"), loop(u, _inside(sides, writing, *made), "unroll")]
    return Phase(trip_count(item), item, tuple(body), trip_count(thread), thread)


def _inside(sides: Sequence[Expr], made: Mapping[Expr, Expr], *stmts: Stmt) -> tuple[Stmt, ...]:
    """What a thread does at a place of the square, if the tensor has it."""
    inside = const(True, boolean)
    for v in sides:
        if trip_count(v) % SIDE:
            inside = logical_and(inside, made[v] < trip_count(v))
    return stmts if inside.is_const else (If(inside, stmts),)
