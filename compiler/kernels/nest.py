"""The general template: pointwise, injective and reducing operators, fused, as loop nests.

Every output is one expression over its indices, with `reduce` nodes inside. Each reduction is
computed at the outermost loop level at which all indices it depends on are bound, which makes a
softmax or a layer normalisation one pass over rows and a pooling a window loop at each point. One
loop runs in lanes: the output's contiguous axis, or the axis of a reduction, whichever the loads
follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ...ops.expr import (
    UNARY,
    Expr,
    apply,
    binary,
    bounds,
    const,
    reduce,
    select,
    unary,
    var,
)
from ...ops.traverse import rebuild, substitute, walk
from ...ops.types import DType, boolean, f64, i64
from ..graph.ir import Graph, Op
from .device import Device
from .ir import (
    Buffer,
    Declare,
    For,
    If,
    Kernel,
    Launch,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    loads,
    loop,
    seq,
)
from .pieces import (
    Assignment,
    Buffers,
    Piece,
    buffer_loads,
    collapse,
    operations,
    pieces,
    stride,
    trip_count,
)
from .template import Config, traffic

VERSION = 1
UNROLL_LIMIT = 16  # window reductions up to this many taps are unrolled
SERIAL_WORK = 24_000  # element operations below which a phase is not worth sharing between threads
ITEM_WORK = 12_000  # and what one item should hold at least
MAX_ITEMS = 32
BORDER = 4  # rounds at either end of a loop that may be split off to free the middle of guards
ENOUGH_ITEMS = 4  # items with which a phase may stop taking loops apart
LIGHT = {"neg", "abs", "sqrt", "floor", "ceil", "round", "trunc", "not", "bitnot", "isnan", "isinf"}
HEAVY = (UNARY - LIGHT) | {"reduce", "pow", "fmod", "mod", "floordiv", "truncdiv"}


def _reduces(values: Iterable[Expr]) -> list[Expr]:
    return [n for n in walk(*values) if n.op == "reduce"]


def _is_heavy(e: Expr) -> bool:
    """Whether unrolling e would repeat long code: elementary functions, nested reductions."""
    return any(n.op in HEAVY and n.dtype is not i64 for n in walk(e))


def _prefers_output_lanes(v: Expr, reduces: Sequence[Expr]) -> bool:
    """Whether lanes along output axis v suit the loads inside reductions better than lanes along
    the reductions' own axes."""
    score = 0
    for r in reduces:
        over = r.payload[1]
        for n in buffer_loads(r.args[0]):
            if stride(n.args[0], v) == 1:
                score += 1
            if any(stride(n.args[0], k) == 1 and trip_count(k) >= 8 for k in over):
                score -= 1
    return score > 0 or (score == 0 and trip_count(v) >= 8)


# --------------------------------------------------------------------------- emission


_IDENTITY_FLOAT = {"sum": 0.0, "prod": 1.0, "max": float("-inf"), "min": float("inf")}
_COMBINE = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def _identity(combine: str, dtype: DType) -> Expr:
    if dtype.is_float:
        return const(_IDENTITY_FLOAT[combine], dtype)
    if dtype is boolean:
        return const(combine in ("min", "prod"), dtype)
    if combine in ("sum", "prod"):
        return const(int(combine == "prod"), dtype)
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0
    return const(low if combine == "max" else low + (1 << dtype.bits) - 1, dtype)


def _combined(combine: str, acc: Expr, value: Expr) -> Expr:
    if value.dtype is boolean:
        return binary("or" if combine == "max" else "and", acc, value)
    if combine == "sum" and value.op == "mul" and value.dtype.is_float:
        return apply("fma", (*value.args, acc), value.dtype)
    return binary(_COMBINE[combine], acc, value)


class _Emitter:
    """Turns one piece into statements, placing reductions at their loop levels."""

    def __init__(self, piece: Piece, device: Device) -> None:
        self.piece = piece
        widest = max(
            n.dtype.bytes for a in piece.assignments for n in (a.value, *buffer_loads(a.value))
        )
        self.lanes = device.lanes(f64) if widest == 8 else device.lanes()
        self.in_lanes = False
        self.locals = 0

    def local(self, dtype: DType, shape: tuple[int, ...] = (), lanes: int = 0) -> Local:
        self.locals += 1
        return Local(f"t{self.locals}", dtype, shape, lanes)

    def hoist(
        self, values: Sequence[Expr], bound: frozenset[Expr]
    ) -> tuple[list[Stmt], list[Expr]]:
        """Emit every reduction that can be computed here; values then read its result."""
        out: list[Stmt] = []
        known: dict[Expr, Expr] = {}
        for r in _reduces(values):
            if r.free <= bound and r not in known:
                stmts, result = self.reduce(substitute(r, known), bound)
                out += stmts
                known[r] = result
        return out, [substitute(v, known) for v in values]

    def reduce(self, r: Expr, bound: frozenset[Expr]) -> tuple[list[Stmt], Expr]:
        combine, over = r.payload
        body = r.args[0]
        lane = None if self.in_lanes else self._lane_of(over, body)
        lanes = self.lanes if self.in_lanes or lane is not None else 0
        acc = self.local(body.dtype, (), lanes)
        out: list[Stmt] = [Declare(acc), Set(acc, (), _identity(combine, body.dtype))]
        order = sorted(over, key=lambda v: v is lane)
        inner = bound | set(over)
        self.in_lanes = self.in_lanes or lane is not None
        stmts, (value,) = self.hoist([body], inner)
        self.in_lanes = lanes > 0 and lane is None
        nest = seq(stmts, Set(acc, (), _combined(combine, acc.value, value)))
        small = prod(trip_count(v) for v in over) <= UNROLL_LIMIT and not _is_heavy(body)
        for v in reversed(order):
            if lane is not None and v is lane:
                nest = (loop(v, nest, "vector", lanes=self.lanes),)
            else:
                nest = (loop(v, nest, "unroll" if small else "serial"),)
        out += nest
        if lane is None:
            return out, acc.value
        kind = (
            "hmax"
            if combine == "max" or (body.dtype is boolean and combine == "sum")
            else (f"h{combine}")
        )
        result = self.local(body.dtype)
        out += [Declare(result), Set(result, (), apply(kind, (acc.value,), body.dtype))]
        return out, result.value

    def _lane_of(self, over: Sequence[Expr], body: Expr) -> Expr | None:
        """The reduction variable to run in lanes: the one most loads follow, if it is long."""
        best, votes = None, -1
        for v in over:
            if trip_count(v) < 4:
                continue
            n = sum(1 for x in buffer_loads(body) if stride(x.args[0], v) == 1)
            if n >= votes:
                best, votes = v, n
        return best

    def emit(self) -> Phase:
        loops = [v for v in self.piece.loops]
        values = [guarded(a.value) for a in self.piece.assignments]
        reduces = _reduces(values)
        lane = self._output_lane(loops, reduces)
        needed = {v for r in reduces for v in r.free}
        rows = [v for v in loops if v in needed]
        columns = [v for v in loops if v not in needed]
        if lane is not None and lane in rows:
            rows = [v for v in rows if v is not lane] + [lane]
        order = rows + columns
        if lane is not None and lane in columns:
            order = rows + [v for v in columns if v is not lane] + [lane]
        work = prod(map(trip_count, order)) * (1 + sum(
            prod(map(trip_count, r.payload[1])) for r in reduces if not columns or lane in rows
        )) * max(1, len(walk(*values)) // 12)  # fmt: skip
        return self._parallel(order, lane, values, work)

    def _output_lane(self, loops: Sequence[Expr], reduces: Sequence[Expr]) -> Expr | None:
        at = self.piece.assignments[0].offset
        lane = next((v for v in loops if stride(at, v) == 1), None)
        if lane is None or trip_count(lane) < 2:
            return None
        inside = [r for r in reduces if lane in r.free]
        if inside and not _prefers_output_lanes(lane, inside):
            return None
        return lane

    def _parallel(
        self, order: list[Expr], lane: Expr | None, values: list[Expr], work: int
    ) -> Phase:  # fmt: skip
        items = 1 if work < SERIAL_WORK else min(MAX_ITEMS, work // ITEM_WORK)
        outer: list[Expr] = []
        while order and order[0] is not lane and prod(map(trip_count, outer)) < items:
            if prod(map(trip_count, outer)) >= ENOUGH_ITEMS and interior(order[0], values):
                break  # a loop with borders is worth keeping whole
            outer.append(order.pop(0))
        total = prod(map(trip_count, outer))
        if items == 1 or (total == 1 and (lane is None or not order or order[0] is not lane)):
            item = var("item", 1)
            return Phase(1, item, self._nest(outer + order, lane, values, frozenset(), {}))
        if total == 1:  # only the lanes' loop to share out
            assert lane is not None
            n = trip_count(lane)
            step = -(-n // items // self.lanes) * self.lanes or self.lanes
            count = -(-n // step)
            item = var("item", count)
            limits = {lane: (item * step, binary("min", item * step + step, n))}
            return Phase(count, item, self._nest(order, lane, values, frozenset(), limits))
        chunk = -(-total // items)
        count = -(-total // chunk)
        item = var("item", count)
        flat = outer[0] if len(outer) == 1 else var("f", total)
        swap: dict[Expr, Expr] = {}
        if len(outer) > 1:
            step = total
            for v in outer:
                step //= trip_count(v)
                swap[v] = (flat // step) % trip_count(v)
        if swap:
            values = [substitute(v, swap) for v in values]
            self.piece = Piece(self.piece.loops, tuple(
                Assignment(a.buffer, substitute(a.offset, swap), a.value)
                for a in self.piece.assignments))  # fmt: skip
        limits = {flat: (item * chunk, binary("min", item * chunk + chunk, total))}
        return Phase(count, item, self._nest([flat, *order], lane, values, frozenset(), limits))

    def _nest(
        self, order: list[Expr], lane: Expr | None, values: list[Expr], bound: frozenset[Expr],
        limits: dict[Expr, tuple[Expr, Expr]],
    ) -> tuple[Stmt, ...]:  # fmt: skip
        stmts, values = self.hoist(values, bound)
        if not order:
            stores = [Store(a.buffer, a.offset, v)
                      for a, v in zip(self.piece.assignments, values, strict=True)]  # fmt: skip
            return seq(stmts, stores)
        v, rest = order[0], order[1:]
        lo, hi = limits.get(v, (None, None))
        inside = None if v is lane else interior(v, values)
        if inside is None:
            return seq(stmts, self._loop(v, rest, lane, values, bound, limits, lo, hi))
        _, first, end = v.payload
        parts: list[Stmt] = []
        for a, b in ((first, inside[0]), inside, (inside[1], end)):
            if a < b:
                part = var(v.payload[0], b - a, a)
                swap = {v: part}
                start = None if lo is None else binary("max", lo, a)
                stop = None if hi is None else binary("min", hi, b)
                whole = self.piece
                self.piece = Piece(whole.loops, tuple(
                    Assignment(x.buffer, substitute(x.offset, swap), x.value)
                    for x in whole.assignments))  # fmt: skip
                narrowed = [substitute(x, swap) for x in values]
                parts.append(self._loop(part, rest, lane, narrowed, bound, limits, start, stop))
                self.piece = whole
        return seq(stmts, parts)

    def _loop(
        self, v: Expr, rest: list[Expr], lane: Expr | None, values: list[Expr],
        bound: frozenset[Expr], limits: dict[Expr, tuple[Expr, Expr]], lo: Expr | None,
        hi: Expr | None,
    ) -> Stmt:  # fmt: skip
        before = self.in_lanes
        self.in_lanes = before or v is lane
        body = self._nest(rest, lane, values, bound | {v}, limits)
        self.in_lanes = before
        if v is lane:
            return loop(v, body, "vector", lo=lo, hi=hi, lanes=self.lanes)
        return loop(v, body, lo=lo, hi=hi)


def guarded(value: Expr) -> Expr:
    """value with reductions that a select keeps from reading outside their buffers guarded in
    themselves: they are computed ahead of the select."""

    def go(e: Expr, guard: Expr) -> Expr:
        if not _reduces([e]):
            return e
        if e.op == "select":
            c = e.args[0]
            yes, no = go(e.args[1], guard & c), go(e.args[2], guard & unary("not", c))
            return select(c, yes, no)
        args = tuple(go(a, guard) for a in e.args)
        if e.op == "reduce" and not guard.is_const and _strays(e):
            combine, over = e.payload
            inside = select(guard, args[0], _identity(combine, e.dtype))
            return reduce(combine, over, inside)
        return rebuild(e, args)

    return go(value, const(True, boolean))


def _strays(e: Expr) -> bool:
    """Whether a load in e may leave its buffer, by what is known of its offset."""
    for n in buffer_loads(e):
        b = bounds(n.args[0])
        if b is not None and (b[0] < 0 or b[1] >= n.payload.elements):
            return True
    return False


def interior(v: Expr, values: Sequence[Expr]) -> tuple[int, int] | None:
    """The part of loop v, without a few rounds at its ends, in which every comparison that v is
    part of holds: a window that stays inside its input. None where there is nothing to gain."""
    guards = [n for x in walk(*values) if x.op == "select" and v in x.args[0].free
              for n in walk(x.args[0]) if n.op in ("lt", "le") and v in n.free]  # fmt: skip
    if not guards:
        return None
    name, first, end = v.payload
    for cut in range(1, min(2 * BORDER, end - first - 1) + 1):
        for left in range(max(0, cut - BORDER), min(cut, BORDER) + 1):
            a, b = first + left, end - (cut - left)
            part = var(name, b - a, a)
            if all(substitute(g, {v: part}).op == "const" for g in guards):
                return a, b
    return None


# --------------------------------------------------------------------------- the template


class Nest:
    """The template that serves every group whose operators declare expressions."""

    name = "nest"
    version = VERSION

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return all(op.definition.compute is not None for op in ops)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        return {}

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return [{}]

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        buffers = Buffers(graph)
        found = [collapse(p) for p in pieces(graph, ops, outputs, buffers)]
        phases = tuple(_Emitter(p, device).emit() for p in found if p.assignments)
        params, args = buffers.parameters()
        flops = sum(map(operations, found))
        kernel = Kernel(
            self.name, VERSION, (), params, phases, flops, traffic(graph, params, args),
            _inplace(params, phases),
        )  # fmt: skip
        return Launch(kernel, args, ())


def _inplace(params: tuple[Buffer, ...], phases: tuple[Phase, ...]) -> tuple[tuple[int, int], ...]:
    """An input may share the output's memory if every load of it is at the index being stored."""
    if len(phases) != 1:
        return ()
    stores = [s for s in _stores(phases[0].body)]
    found = []
    for j, y in enumerate(params):
        mine = [s for s in stores if s.buffer == y]
        if y.role != "out" or len(mine) != 1 or len(stores) != 1:
            continue
        for k, x in enumerate(params):
            same_size = x.nbytes == y.nbytes and x.dtype.bytes == y.dtype.bytes
            at = mine[0].offset
            if x.role == "in" and same_size and all(n.args[0] is at for n in loads(phases[0], x)):
                found.append((j, k))
    return tuple(found)


def _stores(body: Iterable[Stmt]) -> Iterable[Store]:
    for s in body:
        if isinstance(s, Store):
            yield s
        elif isinstance(s, For):
            yield from _stores(s.body)
        elif isinstance(s, If):
            yield from _stores(s.then)
            yield from _stores(s.otherwise)
