"""One piece of a fusion group as a phase whose items are threads, or blocks that compute a row.

A block takes each reduction in lanes, combines them, and then the row's elements in lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ops.expr import Expr, apply, index, var
from ...ops.traverse import substitute
from .gpu_sharing import flattened, item_loops
from .gpu_windows import window_of
from .ir import (
    Buffer,
    Declare,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    expressions,
    loop,
)
from .nest import guarded
from .pieces import Piece, trip_count
from .reductions import across_lanes, combined, identity, reduces
from .template import Config
from .vectors import spelled_out, wide_loads


class Rows:
    """Turns one piece into a phase. lanes: threads of a block, 0 where an item is a thread. each:
    elements that an item computes side by side. wide: neighbouring ones that a thread of a block
    takes in one access."""

    def __init__(self, piece: Piece, config: Config) -> None:
        self.piece = piece
        self.shares_reduction = any(
            r.free <= set(piece.loops) for a in piece.assignments for r in reduces([a.value])
        )
        self.lanes = config.get("threads", 0) if self.shares_reduction else 0
        self.each, self.wide = config.get("each", 1), config.get("wide", 1)
        self.in_lanes = False
        self.u: Expr = index(0)
        self.names: dict[str, int] = {}

    def phase(self) -> Phase:
        rows = self._rows()
        columns = [v for v in self.piece.loops if v not in rows]
        count = prod(map(trip_count, rows))
        if self.each > 1 and not columns and count % self.each == 0:
            self.u, count = var("u", self.each), count // self.each
        item = var("item", count)
        place = item * (1 if self.u.is_const else self.each) + self.u
        values = [placed(guarded(a.value), rows, place) for a in self.piece.assignments]
        offsets = [placed(a.offset, rows, place) for a in self.piece.assignments]
        body, values = self.hoist(values, frozenset({item, self.u}))
        if columns:
            body.append(self._columns(columns, item, offsets, values))
        else:
            body += self._stores(offsets, values)
        return Phase(count, item, tuple(body))

    def _rows(self) -> list[Expr]:
        """All loops where nothing is shared; rows, where a row is short or a block computes it."""
        if not self.shares_reduction:
            return list(self.piece.loops)
        return item_loops(self.piece)

    def _columns(
        self, columns: Sequence[Expr], item: Expr, offsets: Sequence[Expr], values: Sequence[Expr]
    ) -> Stmt:
        """The elements of a row, in lanes where a block computes it."""
        inside, place, v = self._along("column", columns)
        values = [placed(x, columns, place) for x in values]
        offsets = [placed(at, columns, place) for at in offsets]
        self.in_lanes, self.u = self.lanes > 0, v
        stmts, values = self.hoist(values, frozenset({item, inside, v}))
        return self._loop(inside, (*stmts, *self._stores(offsets, values)), self.lanes)

    def _along(self, stem: str, loops: Sequence[Expr]) -> tuple[Expr, Expr, Expr]:
        """One loop for all rounds of nested ones: (its variable, the number of the round, which of
        the neighbouring rounds that one thread takes at once)."""
        count = prod(map(trip_count, loops))
        n = self.wide if self.lanes and count % self.wide == 0 else 1
        inside = var(self._fresh(stem), count // n)
        v = var(self._fresh("v"), n) if n > 1 else index(0)
        return inside, inside * n + v, v

    def _stores(self, offsets: Sequence[Expr], values: Sequence[Expr]) -> list[Stmt]:
        """What is stored side by side is computed before any of it is stored."""
        to = self.piece.assignments
        if self.u.is_const:
            return [Store(a.buffer, at, v) for a, at, v in zip(to, offsets, values, strict=True)]
        lanes = self.lanes if self.in_lanes else 0
        held = [Local(self._fresh("out"), v.dtype, (trip_count(self.u),), lanes) for v in values]
        made = [Set(h, (self.u,), v) for h, v in zip(held, values, strict=True)]
        put = [loop(self.u, (Store(a.buffer, at, h[self.u]),), "unroll")
               for a, at, h in zip(to, offsets, held, strict=True)]  # fmt: skip
        return [*map(Declare, held), loop(self.u, made, "unroll"), *put]

    def hoist(
        self, values: Sequence[Expr], bound: frozenset[Expr]
    ) -> tuple[list[Stmt], list[Expr]]:
        """Emit every reduction that can be computed here; values then read the results."""
        out: list[Stmt] = []
        known: dict[Expr, Expr] = {}
        for r in reduces(values):
            if r.free <= bound:
                stmts, known[r] = self.reduce(substitute(r, known), bound)
                out += stmts
        return out, [substitute(v, known) for v in values]

    def reduce(self, r: Expr, bound: frozenset[Expr]) -> tuple[list[Stmt], Expr]:
        """One reduction: in lanes where a block computes it and is not in lanes already; for all
        elements at once where they are neighbours and it depends on which of them."""
        combine, over = r.payload
        across = self.lanes > 0 and not self.in_lanes
        mine = self.u in r.free
        at = (self.u,) if mine else ()
        shape = (trip_count(self.u),) if mine else ()
        acc = Local(self._fresh("t"), r.dtype, shape, self.lanes)

        def every(*body: Stmt) -> tuple[Stmt, ...]:
            return (loop(self.u, body, "unroll"),) if mine else body

        body, v = r.args[0], index(0)
        inside: list[Expr] = list(over)
        if across:
            k, place, v = self._along("k", over)
            inside, body = [k], placed(body, over, place)
        self.in_lanes = self.in_lanes or across
        stmts, (value,) = self.hoist([body], bound | {*inside, v})
        self.in_lanes = self.in_lanes and not across
        nest: tuple[Stmt, ...] = ()
        if mine and not across and not stmts:
            nest = self._sliding(inside, value, acc, combine)
        if not nest:
            calls, wide = ([], value) if v.is_const else wide_loads(value, v, self._held)
            reads = spelled_out(calls)  # ahead of all that would come between them
            each = any(self.u in e.free for s in calls for e in expressions(s))
            if each and stmts:
                reads, wide, each = (), value, False
            step = Set(acc, at, combined(combine, acc[at], wide))
            if each:  # every neighbour reads its own
                nest = every(*reads, loop(v, (step,), "unroll"))
            elif v.is_const:
                nest = (*stmts, *every(step))
            else:
                nest = (*reads, loop(v, (*stmts, *every(step)), "unroll"))
            for w in reversed(inside):
                nest = (self._loop(w, nest, self.lanes if across else 0),)
        out = [Declare(acc), *every(Set(acc, at, identity(combine, r.dtype))), *nest]
        if not across:
            return out, acc[at]
        whole = Local(self._fresh("t"), r.dtype, shape)
        joined = apply(across_lanes(combine, r.dtype), (acc[at],), r.dtype)
        return [*out, Declare(whole), *every(Set(whole, at, joined))], whole[at]

    def _sliding(
        self, over: Sequence[Expr], body: Expr, acc: Local, combine: str
    ) -> tuple[Stmt, ...]:
        """A window's reduction whose neighbours share what they read; nothing where they don't."""
        r, u = over[-1], self.u
        found = window_of(body, u, r)
        if found is None:
            return ()
        held = Local(self._fresh("window"), found.value.dtype, (found.places,), self.lanes)
        value = substitute(body, {found.value: held[u * found.step + r]})
        step = Set(acc, (u,), combined(combine, acc[u], value))
        nest: tuple[Stmt, ...] = (
            Declare(held), *found.filled(held),
            loop(r, (loop(u, (step,), "unroll"),), "unroll"),
        )  # fmt: skip
        for w in reversed(over[:-1]):
            nest = (loop(w, nest),)
        return nest

    def _held(self, b: Buffer) -> Local:
        """Registers for what is read of a buffer at once."""
        return Local(self._fresh(f"{b.name}_v"), b.dtype, (self.wide,), self.lanes)

    def _loop(self, v: Expr, body: tuple[Stmt, ...], lanes: int) -> Stmt:
        return loop(v, body, "vector", lanes=lanes) if lanes else loop(v, body)

    def _fresh(self, stem: str) -> str:
        self.names[stem] = self.names.get(stem, 0) + 1
        return f"{stem}{self.names[stem]}"


def placed(value: Expr, loops: Sequence[Expr], place: Expr) -> Expr:
    """A value over nested loops in the round of that number."""
    flat = var("flat", prod(map(trip_count, loops)))
    return substitute(flattened(value, flat, loops), {flat: place})
