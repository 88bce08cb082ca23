"""One piece of a fusion group as a phase whose blocks compute columns: rows of reductions whose
neighbours lie side by side in memory, not their elements.

A block has `down` times `across` threads. Those across take neighbouring columns, so that what they
read at once lies side by side; those down share a column's elements, one by one in turn, and add up
what they found in shared memory, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, binary, const, index, logical_and, var
from ...ops.traverse import substitute
from ...ops.types import boolean
from .gpu_rows import Rows, placed
from .gpu_sharing import item_loops
from .ir import Call, Declare, If, Local, Phase, Set, Stmt, Store, loop
from .nest import guarded
from .pieces import Piece, trip_count
from .reductions import combined, identity
from .template import Config
from .vectors import WIDEST, aligned, wide_loads

TOGETHER: Final = 4  # elements of a column that a thread asks for at once


class Columns(Rows):
    """Configs: `down` and `across`, threads; `each`, neighbouring columns of a thread."""

    def __init__(self, piece: Piece, config: Config) -> None:
        super().__init__(piece, {"each": config["each"]})
        self.wide = config["each"]  # at once
        self.down, self.across = config["down"], config["across"]
        self.thread = var("thread", self.down * self.across)

    def phase(self) -> Phase:
        rows = item_loops(self.piece)
        columns = [v for v in self.piece.loops if v not in rows]
        count = prod(map(trip_count, rows))
        if count % self.each:
            self.each = 1
        groups = count // self.each
        item = var("item", -(-groups // self.across))
        group, self.there = item * self.across + self.thread % self.across, const(True, boolean)
        if groups % self.across:  # threads beyond the last column read it, and store nothing
            self.there = group < groups
            group = binary("min", group, groups - 1)
        self.u = var("u", self.each) if self.each > 1 else index(0)
        place = group * self.each + self.u
        values = [placed(guarded(a.value), rows, place) for a in self.piece.assignments]
        offsets = [placed(a.offset, rows, place) for a in self.piece.assignments]
        bound = frozenset({item, self.thread, self.u})
        body, values = self.hoist(values, bound)
        self.in_lanes = True
        if columns:
            body += self._elements(columns, bound, offsets, values)
        else:
            first = self.thread < self.across
            body.append(If(logical_and(self.there, first), tuple(self._stores(offsets, values))))
        return Phase(trip_count(item), item, tuple(body), self.thread.payload[2], self.thread)

    def _elements(
        self, columns: Sequence[Expr], bound: frozenset[Expr], offsets: Sequence[Expr],
        values: Sequence[Expr],
    ) -> list[Stmt]:  # fmt: skip
        """What is stored of a column, element by element."""

        def made(at: Expr) -> tuple[Stmt, ...]:
            here = [placed(x, columns, at) for x in values]
            stmts, here = self.hoist(here, bound | at.free)
            return *stmts, *self._stores([placed(x, columns, at) for x in offsets], here)

        body = self._in_turn(prod(map(trip_count, columns)), made)
        return [*body] if self.there.is_const else [If(self.there, body)]

    def _in_turn(self, count: int, made: Callable[[Expr], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
        """A thread's part of `count` elements: several at once as long as all threads have some."""
        out: list[Stmt] = []
        first = self.thread // self.across
        rounds, done = count // (self.down * TOGETHER), 0
        if rounds:
            k, v = var(self._fresh("k"), rounds), var(self._fresh("v"), TOGETHER)
            body = made((k * TOGETHER + v) * self.down + first)
            out.append(loop(k, (loop(v, body, "unroll"),)))
            done = rounds * TOGETHER * self.down
        if done < count:
            k = var(self._fresh("k"), -(-(count - done) // self.down))
            at = k * self.down + first + done
            rest = made(at)
            if (count - done) % self.down:
                rest = (If(at < count, rest),)
            out.append(loop(k, rest))
        return tuple(out)

    def reduce(self, r: Expr, bound: frozenset[Expr]) -> tuple[list[Stmt], Expr]:
        """One reduction, by all threads of a column unless each of them is at one of its elements
        already."""
        if self.in_lanes:
            return super().reduce(r, bound)
        combine, over = r.payload
        mine = self.u in r.free
        at = (self.u,) if mine else ()
        acc = Local(self._fresh("t"), r.dtype, (self.each,) if mine else ())

        def every(*body: Stmt) -> tuple[Stmt, ...]:
            return (loop(self.u, body, "unroll"),) if mine else body

        def made(place: Expr) -> tuple[Stmt, ...]:
            stmts, (value,) = self.hoist([placed(r.args[0], over, place)], bound | place.free)
            reads: list[Stmt] = []
            if mine and not stmts:
                reads, value = wide_loads(value, self.u, self._held)
            return *reads, *stmts, *every(Set(acc, at, combined(combine, acc[at], value)))

        self.in_lanes = True
        nest = self._in_turn(prod(map(trip_count, over)), made)
        self.in_lanes = False
        out = [Declare(acc), *every(Set(acc, at, identity(combine, r.dtype))), *nest]
        if self.down == 1:
            return out, acc[at]
        whole = Local(self._fresh("t"), r.dtype, acc.shape)
        return [*out, *self._joined(acc, whole, combine)], whole[at]

    def _joined(self, acc: Local, whole: Local, combine: str) -> tuple[Stmt, ...]:
        """whole = what the threads of a column hold in acc combined, in order, for all of them."""
        n = acc.shape[0] if acc.shape else 1
        size = min(n, WIDEST // acc.dtype.bytes)  # of an access
        parts = Local(self._fresh("parts"), acc.dtype, (n * trip_count(self.thread),), shared=True)
        q = var(self._fresh("part"), self.down)
        mine, other = self.thread * n, (q * self.across + self.thread % self.across) * n
        if not acc.shape:
            put: list[Stmt] = [Set(parts, (mine,), acc.value)]
            add: list[Stmt] = [Set(whole, (), combined(combine, whole.value, parts[other]))]
            start: Stmt = Set(whole, (), identity(combine, acc.dtype))
        else:
            put = [Call("store_vector", (parts, mine + k, acc, index(k), size))
                   for k in range(0, n, size)]  # fmt: skip
            u, part = self.u, Local(self._fresh("part"), acc.dtype, acc.shape)
            add = [Declare(part)]
            add += [Call("load_vector", (part, index(k), parts, other + k, size))
                    for k in range(0, n, size)]  # fmt: skip
            step = Set(whole, (u,), combined(combine, whole[u], part[u]))
            add.append(loop(u, (step,), "unroll"))
            start = loop(u, (Set(whole, (u,), identity(combine, acc.dtype)),), "unroll")
        return (Declare(parts), *put, Call("barrier"), Declare(whole), start, loop(q, add))

    def _stores(self, offsets: Sequence[Expr], values: Sequence[Expr]) -> list[Stmt]:
        """Neighbouring columns are read and stored at once where they lie side by side."""
        if self.u.is_const:
            return super()._stores(offsets, values)
        u, n = self.u, self.each
        reads, made, put = list[Stmt](), list[Stmt](), list[Stmt]()
        for a, at, value in zip(self.piece.assignments, offsets, values, strict=True):
            read, value = wide_loads(value, u, self._held)
            out = Local(self._fresh("out"), value.dtype, (n,))
            reads += [*read, Declare(out)]
            made.append(Set(out, (u,), value))
            if aligned(at, u) and n * out.dtype.bytes <= WIDEST:
                first = substitute(at, {u: index(0)})
                put.append(Call("store_vector", (a.buffer, first, out, index(0), n)))
            else:
                put.append(loop(u, (Store(a.buffer, at, out[u]),), "unroll"))
        return [*reads, loop(u, made, "unroll"), *put]
