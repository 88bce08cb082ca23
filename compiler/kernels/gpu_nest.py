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

from ...ops.expr import Expr, apply, var
from ...ops.traverse import substitute
from ...ops.types import DType
from ..graph.ir import Graph, Op
from .device import Device
from .inplace import overwritable
from .ir import Declare, Kernel, Launch, Local, Phase, Set, Stmt, Store, loop
from .nest import guarded
from .partial import in_steps
from .pieces import Buffers, Piece, buffer_loads, collapse, operations, pieces, stride, trip_count
from .reductions import across_lanes, combined, identity, reduces
from .template import Config, traffic

VERSION = 1
THREADS = (32, 64, 128, 256)  # of a block that computes a row
SHORT = 32  # rows up to which a thread does as well as a block
FEW_ROWS = 4096  # threads that leave a GPU mostly idle
WAYS = ("thread", "block")


class GpuNest:
    """Configs: `per`, what computes an item, a "thread" or a "block"; `threads` of a block."""

    name = "gpu_nest"
    version = VERSION

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return all(op.definition.compute is not None for op in ops)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        found = max(_pieces(graph, ops, outputs, Buffers(graph)), key=operations, default=None)
        return {"per": "thread"} if found is None else _preferred(found)

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        found = _pieces(graph, ops, outputs, Buffers(graph))
        if not any(reduces(a.value for a in p.assignments) for p in found):
            return [{"per": "thread"}]
        return [{"per": "thread"}, *({"per": "block", "threads": n} for n in THREADS)]

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        buffers = Buffers(graph) if config["per"] == "thread" else _AlongSums(graph)
        found = _pieces(graph, ops, outputs, buffers)
        steps, scratch = in_steps(found)
        lanes = config.get("threads", 0)
        phases = tuple(_Emitter(p, lanes).phase() for p in steps if prod(map(trip_count, p.loops)))
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


def _rows(piece: Piece) -> list[Expr]:
    """The loops that an item of a block stands for: those that the outermost reduction depends on,
    the one with the fewest of them. The others run inside, in lanes."""
    found = reduces(a.value for a in piece.assignments)
    needed = [[v for v in piece.loops if v in r.free] for r in found if r.free <= set(piece.loops)]
    return min(needed, key=len, default=list(piece.loops))


def _preferred(piece: Piece) -> Config:
    """A block per row where its elements share reductions, or where there are few, long reductions,
    or threads of a block find the elements of one side by side."""
    values = [a.value for a in piece.assignments]
    outer = [r for r in reduces(values) if r.free <= set(piece.loops)]
    if not outer:
        return {"per": "thread"}
    rows = _rows(piece)
    count = prod(map(trip_count, rows))
    inside = prod(map(trip_count, piece.loops)) // max(count, 1)
    length = max(inside, *(prod(map(trip_count, r.payload[1])) for r in outer))
    if length <= SHORT:
        return {"per": "thread"}
    if inside == 1 and count >= FEW_ROWS and not _follows_reduction(piece, outer):
        return {"per": "thread"}
    return {"per": "block", "threads": max(n for n in THREADS if n <= max(length, THREADS[0]))}


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
    """Turns one piece into a phase. lanes: threads of a block, 0 where an item is a thread."""

    def __init__(self, piece: Piece, lanes: int) -> None:
        self.piece = piece
        self.shares_reduction = any(
            r.free <= set(piece.loops) for a in piece.assignments for r in reduces([a.value])
        )
        self.lanes = lanes if self.shares_reduction else 0
        self.in_lanes = False
        self.names: dict[str, int] = {}

    def local(self, dtype: DType, lanes: int) -> Local:
        return Local(self._fresh("t"), dtype, (), lanes)

    def phase(self) -> Phase:
        rows = self._item_loops()
        count = prod(map(trip_count, rows))
        item = var("item", count)
        where = unflattened(item, rows)
        values = [substitute(guarded(a.value), where) for a in self.piece.assignments]
        offsets = [substitute(a.offset, where) for a in self.piece.assignments]
        columns = [v for v in self.piece.loops if v not in rows]
        body, values = self.hoist(values, frozenset({item}))
        if columns:
            inside = self._flat("column", columns)
            to = unflattened(inside, columns)
            values = [substitute(v, to) for v in values]
            offsets = [substitute(at, to) for at in offsets]
            self.in_lanes = self.lanes > 0
            stmts, values = self.hoist(values, frozenset({item, inside}))
            stores = self._stores(offsets, values)
            body += [self._loop(inside, (*stmts, *stores), self.lanes)]
        else:
            body += self._stores(offsets, values)
        return Phase(count, item, tuple(body))

    def _item_loops(self) -> list[Expr]:
        """All loops where nothing is shared; rows, where a row is short or a block computes it."""
        if not self.shares_reduction:
            return list(self.piece.loops)
        return _rows(self.piece)

    def _stores(self, offsets: Sequence[Expr], values: Sequence[Expr]) -> list[Stmt]:
        to = self.piece.assignments
        return [Store(a.buffer, at, v) for a, at, v in zip(to, offsets, values, strict=True)]

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
        """One reduction: in lanes where a block computes it and is not in lanes already."""
        combine, over = r.payload
        across = self.lanes > 0 and not self.in_lanes
        acc = self.local(r.dtype, self.lanes)
        if across:
            inside: list[Expr] = [self._flat("k", over)]
            body = substitute(r.args[0], unflattened(inside[0], over))
        else:
            inside, body = list(over), r.args[0]
        self.in_lanes = self.in_lanes or across
        stmts, (value,) = self.hoist([body], bound | set(inside))
        self.in_lanes = self.in_lanes and not across
        nest: tuple[Stmt, ...] = (*stmts, Set(acc, (), combined(combine, acc.value, value)))
        for v in reversed(inside):
            nest = (self._loop(v, nest, self.lanes if across else 0),)
        out = [Declare(acc), Set(acc, (), identity(combine, r.dtype)), *nest]
        if not across:
            return out, acc.value
        whole = self.local(r.dtype, 0)
        joined = apply(across_lanes(combine, r.dtype), (acc.value,), r.dtype)
        return [*out, Declare(whole), Set(whole, (), joined)], whole.value

    def _loop(self, v: Expr, body: tuple[Stmt, ...], lanes: int) -> Stmt:
        return loop(v, body, "vector", lanes=lanes) if lanes else loop(v, body)

    def _flat(self, stem: str, loops: Sequence[Expr]) -> Expr:
        """One variable for all rounds of nested loops."""
        return var(self._fresh(stem), prod(map(trip_count, loops)))

    def _fresh(self, stem: str) -> str:
        self.names[stem] = self.names.get(stem, 0) + 1
        return f"{stem}{self.names[stem]}"


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
