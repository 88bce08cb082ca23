"""The general template for GPUs: any group of operators with expressions, one thread per element.

An item of the Kernel IR becomes a thread, or a block of threads that run the item's vector loops
(see `codegen.cuda.source`). So a pointwise operator, a window or a plain contraction is a phase
with one item per output element, and its reductions are loops of that thread. Where elements share
a reduction (a softmax, a normalisation), or where few long ones have to be computed, an item is a
row: a block takes each reduction in lanes, combines them, and then the row's elements in lanes.

A contraction that `gpu_tiles` has no tiles for, a product with a vector, say, comes out right, and
most below what the device could do: operands are read from the caches for every multiply-add.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...ops.expr import Expr, apply, index, var
from ...ops.traverse import substitute
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_sharing import (
    FEW_THREADS,
    flattened,
    good_each,
    item_loops,
    most_each,
    most_wide,
    shared_each,
)
from .gpu_windows import window_of
from .inplace import overwritable
from .ir import (
    Buffer,
    Declare,
    Kernel,
    Launch,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    expressions,
    loop,
)
from .nest import guarded
from .partial import in_steps
from .pieces import Buffers, Piece, buffer_loads, collapse, operations, pieces, stride, trip_count
from .reductions import across_lanes, combined, identity, reduces
from .template import Config, traffic
from .vectors import spelled_out, wide_loads

VERSION = 2
THREADS = (32, 64, 128, 256)  # of a block that computes a row
SHORT = 32  # rows up to which a thread does as well as a block
CHAIN = 128  # elements that a thread adds up one by one, however few threads there are


class GpuNest:
    """Configs: `per`, what computes an item, a "thread" or a "block" of `threads`; `each`, elements
    of an item side by side; `wide`, neighbours that a thread of a block takes at once.

    one_order: all configs add in the same order, which follows from one element's reduction and
    not from how many elements there are. So `each` is all that they differ in.
    """

    name = "gpu_nest"
    version = VERSION

    def __init__(self, *, one_order: bool = False) -> None:
        self.one_order = one_order

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return all(op.definition.compute is not None for op in ops)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        found = max(_pieces(graph, ops, outputs, Buffers(graph)), key=operations, default=None)
        if found is None:
            return {"per": "thread", "each": 1}
        return _preferred(found, self.one_order)

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        space = self._space(graph, ops, outputs)
        if not self.one_order:
            return space
        order = _order(self.default(graph, ops, outputs, device))
        return [c for c in space if _order(c) == order]

    def _space(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> list[Config]:
        found = _pieces(graph, ops, outputs, Buffers(graph))
        best = max(map(most_each, found), default=1)
        alone = [{"per": "thread", "each": n} for n in sorted({1, 2, best}) if n <= best]
        if not any(reduces(a.value for a in p.assignments) for p in found):
            return alone
        wide = sorted({1, *map(most_wide, found)})
        each = sorted({1, *map(shared_each, found)})
        return alone + [{"per": "block", "threads": n, "each": e, "wide": w}
                        for n in THREADS for e in each for w in wide]  # fmt: skip

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        buffers = Buffers(graph) if config["per"] == "thread" else _AlongSums(graph)
        found = _pieces(graph, ops, outputs, buffers)
        steps, scratch = in_steps(found)
        phases = tuple(_Emitter(p, config).phase() for p in steps if prod(map(trip_count, p.loops)))
        params, args = buffers.parameters()
        kernel = Kernel(
            self.name, VERSION, tuple(sorted(config.items())), (*params, *scratch), phases,
            sum(map(operations, found)), traffic(graph, params, args),
            overwritable(params, phases),
        )  # fmt: skip
        return Launch(kernel, (*args, *(None for _ in scratch)), ())


class _AlongSums(Buffers):
    """Constants lie as the threads of a block read them: side by side along a reduction."""

    def lower(self, value: Expr, lane: Expr | None) -> Expr:
        found = reduces([value])
        return super().lower(value, found[-1].payload[1][-1] if found else lane)


def _pieces(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], buffers: Buffers
) -> list[Piece]:  # fmt: skip
    return [collapse(p) for p in pieces(graph, ops, outputs, buffers)]


# --------------------------------------------------------------------------- how a piece is shared


def _order(config: Config) -> Config:
    """What decides in which order a config adds."""
    return {k: v for k, v in config.items() if k != "each"}


def _preferred(piece: Piece, one_order: bool) -> Config:
    """A block per row where its elements share reductions, or where there are few, long reductions,
    or threads of a block find the elements of one side by side. one_order: whatever their number,
    unless a thread would take very long."""
    values = [a.value for a in piece.assignments]
    outer = [r for r in reduces(values) if r.free <= set(piece.loops)]
    alone = {"per": "thread", "each": good_each(piece)}
    if not outer:
        return alone
    count = prod(map(trip_count, item_loops(piece)))
    inside = 1 if one_order else prod(map(trip_count, piece.loops)) // max(count, 1)
    length = max(inside, *(prod(map(trip_count, r.payload[1])) for r in outer))
    if length <= SHORT:
        return alone
    enough = length <= CHAIN if one_order else count >= FEW_THREADS
    if inside == 1 and enough and not _follows_reduction(piece, outer):
        return alone
    wide = most_wide(piece)
    threads = max(n for n in THREADS if n <= max(length // wide, THREADS[0]))
    return {"per": "block", "threads": threads, "each": shared_each(piece), "wide": wide}


def _follows_reduction(piece: Piece, outer: Sequence[Expr]) -> bool:
    """Whether more loads are contiguous along a long reduction than along the output."""
    last = piece.loops[-1] if piece.loops else None
    score = 0
    for r in outer:
        for n in buffer_loads(r.args[0]):
            if n.payload.role == "const":  # is stored as suits
                continue
            over = r.payload[1]
            score += any(stride(n.args[0], v) == 1 and trip_count(v) >= SHORT for v in over)
            score -= last is not None and stride(n.args[0], last) == 1
    return score > 0


# --------------------------------------------------------------------------- emission


class _Emitter:
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
        values = [_placed(guarded(a.value), rows, place) for a in self.piece.assignments]
        offsets = [_placed(a.offset, rows, place) for a in self.piece.assignments]
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
        values = [_placed(x, columns, place) for x in values]
        offsets = [_placed(at, columns, place) for at in offsets]
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
            inside, body = [k], _placed(body, over, place)
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


def _placed(value: Expr, loops: Sequence[Expr], place: Expr) -> Expr:
    """A value over nested loops in the round of that number."""
    flat = var("flat", prod(map(trip_count, loops)))
    return substitute(flattened(value, flat, loops), {flat: place})
