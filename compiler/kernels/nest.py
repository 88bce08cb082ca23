"""The general template: pointwise, injective and reducing operators, fused, as loop nests.

Every output is one expression over its indices, with `reduce` nodes inside. Each reduction is
computed at the outermost loop level at which all indices it depends on are bound, which makes a
softmax or a layer normalisation one pass over rows and a pooling a window loop at each point. One
loop runs in lanes: the output's contiguous axis, or the axis of a reduction, whichever the loads
follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from ...ops.expr import Expr, apply, binary, const, index, linear, var
from ...ops.operator import Opaque
from ...ops.traverse import substitute, transform, walk
from ...ops.types import DType, TensorType, boolean, f64, i64
from ..graph.ir import Graph, Op
from .address import offset
from .compose import Composer, Indices
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
from .template import Config

VERSION = 1
UNROLL_LIMIT = 16  # window reductions up to this many taps are unrolled
SERIAL_WORK = 24_000  # element operations below which a phase is not worth sharing between threads
ITEM_WORK = 12_000  # and what one item should hold at least
MAX_ITEMS = 32
HEAVY = frozenset("reduce exp log pow sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh "
                  "erf log1p expm1 fmod mod floordiv truncdiv".split())  # fmt: skip


@dataclass(frozen=True, slots=True)
class Assignment:
    """buffer[offset] = value for all values of the piece's loop variables."""

    buffer: Buffer
    offset: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class Piece:
    """Assignments that share one set of loops, outermost first."""

    loops: tuple[Expr, ...]
    assignments: tuple[Assignment, ...]


# --------------------------------------------------------------------------- from graph to pieces


class Buffers:
    """The kernel's parameters, named by position, found while bodies are lowered."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.table: dict[str, Buffer] = {}

    def read(self, blob: str) -> Buffer:
        if blob not in self.table:
            b = self.graph.blobs[blob]
            role = "const" if b.value is not None else "in"
            k = sum(1 for x in self.table.values() if x.role != "out")
            elements = prod(b.type.physical_shape)
            self.table[blob] = Buffer(f"x{k}", b.type.dtype, elements, role)  # type: ignore[arg-type]
        return self.table[blob]

    def write(self, blob: str) -> Buffer:
        if blob not in self.table:
            t = self.graph.type(blob)
            k = sum(1 for x in self.table.values() if x.role == "out")
            self.table[blob] = Buffer(f"y{k}", t.dtype, prod(t.physical_shape), "out")
        return self.table[blob]

    def lower(self, value: Expr) -> Expr:
        """Loads of blobs at logical indices become loads of buffers at flat offsets."""

        def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
            if n.op != "load":
                return None
            return self.read(n.payload)[offset(self.graph.type(n.payload), args)]

        return transform(value, visit)


def regions(kind: TensorType) -> Iterable[tuple[Indices, Indices]]:
    """(loop variables, logical indices) pairs that cover a tensor in the order it lies in memory.
    A blocked tensor whose channels do not fill the last block takes two."""
    dims = kind.dims
    axis, block = kind.layout.axis, kind.layout.block
    if not kind.layout.is_blocked:
        at = tuple(var(f"i{k}", d) if d != 1 else index(0) for k, d in enumerate(dims))
        yield tuple(v for v in at if v.op == "var"), at
        return
    full, rest = divmod(dims[axis], block)
    for outer, lanes, start in ((full, block, 0), (1, rest, full * block)):
        if not outer or not lanes:
            continue
        at = tuple(var(f"i{k}", d) if d != 1 else index(0) for k, d in enumerate(dims))
        hi = var("cb", outer) if outer != 1 else index(0)
        lo = var("c", lanes) if lanes != 1 else index(0)
        physical = [*at[:axis], hi, *at[axis + 1 :], lo]
        logical = (*at[:axis], hi * block + lo + start, *at[axis + 1 :])
        yield tuple(v for v in physical if v.op == "var"), logical


def pieces(graph: Graph, ops: Sequence[Op], outputs: Sequence[str], buffers: Buffers) -> list[Piece]:
    """One piece per region of the outputs; outputs of one shape and layout share their loops."""
    root = ops[-1]
    opaque = root.definition.trait(Opaque)
    if opaque is not None and opaque.kind == "concat":
        return _concat_pieces(graph, ops, buffers)
    composer = Composer(graph, ops)
    alike: dict[tuple[tuple[int, ...], object], list[str]] = {}
    for o in outputs:
        t = graph.type(o)
        alike.setdefault((t.dims, t.layout), []).append(o)
    found = []
    for names in alike.values():
        kind = graph.type(names[0])
        for loops, at in regions(kind):
            made = tuple(
                Assignment(buffers.write(o), offset(kind, at), buffers.lower(composer.element(o, at)))
                for o in names
            )
            found.append(Piece(loops, made))
    return found


def _concat_pieces(graph: Graph, ops: Sequence[Op], buffers: Buffers) -> list[Piece]:
    root = ops[-1]
    composer = Composer(graph, ops[:-1])
    out = graph.type(root.outputs[0])
    axis = root.attr("axis") % out.rank
    target = buffers.write(root.outputs[0])
    start, found = 0, []
    for name in root.reads:
        kind = graph.type(name)
        if kind.size:
            aligned = out.layout.is_blocked and start % out.layout.block == 0
            shape = TensorType(kind.dtype, kind.shape, out.layout if aligned else kind.layout)
            for loops, at in regions(shape):
                there = (*at[:axis], at[axis] + start, *at[axis + 1 :])
                value = buffers.lower(composer.element(name, at))
                found.append(Piece(loops, (Assignment(target, offset(out, there), value),)))
        start += kind.dims[axis]
    return found


# --------------------------------------------------------------------------- loop shapes


def _uses_beside_offsets(value: Expr) -> frozenset[Expr]:
    """Variables that are used for more than addressing."""
    marks: dict[Expr, Expr] = {}

    def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
        if n.op == "load":
            return marks.setdefault(n, apply("opaque", (), n.dtype))
        return None

    return transform(value, visit).free


def collapse(piece: Piece) -> Piece:
    """Merge neighbouring loops that every access walks as one."""
    loops = list(piece.loops)
    work = list(piece.assignments)
    k = len(loops) - 2
    while k >= 0:
        a, b = loops[k], loops[k + 1]
        extent = b.payload[2]
        if _collapsible(a, b, extent, work):
            both = var(a.payload[0], a.payload[2] * extent)
            swap = {a: index(0), b: both}
            work = [Assignment(x.buffer, substitute(x.offset, swap), substitute(x.value, swap))
                    for x in work]  # fmt: skip
            loops[k : k + 2] = [both]
        k -= 1
    return Piece(tuple(loops), tuple(work))


def _collapsible(a: Expr, b: Expr, extent: int, work: Sequence[Assignment]) -> bool:
    if b.payload[1] or a.payload[1]:
        return False
    for x in work:
        if not _uses_beside_offsets(x.value).isdisjoint((a, b)):
            return False
        for at in (x.offset, *(n.args[0] for n in _buffer_loads(x.value))):
            terms, _ = linear(at)
            if any(t is not a and t is not b and not t.free.isdisjoint((a, b)) for t in terms):
                return False
            if terms.get(a, 0) != terms.get(b, 0) * extent:
                return False
    return True


def _stride(at: Expr, v: Expr) -> int | None:
    """How far one step of v moves an offset; None when it is not a fixed distance."""
    terms, _ = linear(at)
    if any(t is not v and v in t.free for t in terms):
        return None
    return terms.get(v, 0)


def _reduces(values: Iterable[Expr]) -> list[Expr]:
    return [n for n in walk(*values) if n.op == "reduce"]


def _is_heavy(e: Expr) -> bool:
    """Whether unrolling e would repeat long code: elementary functions, nested reductions."""
    return any(n.op in HEAVY for n in walk(e))


def _buffer_loads(e: Expr) -> list[Expr]:
    return [n for n in walk(e) if n.op == "load" and isinstance(n.payload, Buffer)]


def _extent(v: Expr) -> int:
    return int(v.payload[2] - v.payload[1])


def _prefers_output_lanes(v: Expr, reduces: Sequence[Expr]) -> bool:
    """Whether lanes along output axis v suit the loads inside reductions better than lanes along
    the reductions' own axes."""
    score = 0
    for r in reduces:
        over = r.payload[1]
        for n in _buffer_loads(r.args[0]):
            if _stride(n.args[0], v) == 1:
                score += 1
            if any(_stride(n.args[0], k) == 1 and _extent(k) >= 8 for k in over):
                score -= 1
    return score > 0 or (score == 0 and _extent(v) >= 8)


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
            n.dtype.bytes for a in piece.assignments for n in (a.value, *_buffer_loads(a.value))
        )
        self.lanes = device.lanes(f64) if widest == 8 else device.lanes()
        self.in_lanes = False
        self.locals = 0

    def local(self, dtype: DType, shape: tuple[int, ...] = (), lanes: int = 0) -> Local:
        self.locals += 1
        return Local(f"t{self.locals}", dtype, shape, lanes)

    def hoist(self, values: Sequence[Expr], bound: frozenset[Expr]) -> tuple[list[Stmt], list[Expr]]:
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
        small = prod(_extent(v) for v in over) <= UNROLL_LIMIT and not _is_heavy(body)
        for v in reversed(order):
            if v is lane:
                nest = (loop(v, nest, "vector", lanes=self.lanes),)
            else:
                nest = (loop(v, nest, "unroll" if small else "serial"),)
        out += nest
        if lane is None:
            return out, acc.value
        kind = "hmax" if combine == "max" or body.dtype is boolean and combine == "sum" else (
            f"h{combine}"
        )
        result = self.local(body.dtype)
        out += [Declare(result), Set(result, (), apply(kind, (acc.value,), body.dtype))]
        return out, result.value

    def _lane_of(self, over: Sequence[Expr], body: Expr) -> Expr | None:
        """The reduction variable to run in lanes: the one most loads follow, if it is long."""
        best, votes = None, -1
        for v in over:
            if _extent(v) < 4:
                continue
            n = sum(1 for x in _buffer_loads(body) if _stride(x.args[0], v) == 1)
            if n >= votes:
                best, votes = v, n
        return best

    def emit(self) -> Phase:
        loops = [v for v in self.piece.loops]
        values = [a.value for a in self.piece.assignments]
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
        work = prod(map(_extent, order)) * (1 + sum(
            prod(map(_extent, r.payload[1])) for r in reduces if not columns or lane in rows
        )) * max(1, len(walk(*values)) // 12)  # fmt: skip
        return self._parallel(order, lane, values, work)

    def _output_lane(self, loops: Sequence[Expr], reduces: Sequence[Expr]) -> Expr | None:
        at = self.piece.assignments[0].offset
        lane = next((v for v in loops if _stride(at, v) == 1), None)
        if lane is None or _extent(lane) < 2:
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
        while order and order[0] is not lane and prod(map(_extent, outer)) < items:
            outer.append(order.pop(0))
        total = prod(map(_extent, outer))
        if items == 1 or (total == 1 and (lane is None or not order or order[0] is not lane)):
            item = var("item", 1)
            return Phase(1, item, self._nest(outer + order, lane, values, frozenset(), {}))
        if total == 1:  # only the lanes' loop to share out
            assert lane is not None
            n = _extent(lane)
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
                step //= _extent(v)
                swap[v] = (flat // step) % _extent(v)
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
        before = self.in_lanes
        self.in_lanes = before or v is lane
        body = self._nest(rest, lane, values, bound | {v}, limits)
        self.in_lanes = before
        kind = "vector" if v is lane else "serial"
        lanes = self.lanes if v is lane else 0
        return seq(stmts, loop(v, body, kind, lo=lo, hi=hi, lanes=lanes))  # type: ignore[arg-type]


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
        names = sorted(buffers.table, key=lambda n: buffers.table[n].role == "out")
        params = tuple(buffers.table[n] for n in names)
        flops = sum(graph.type(o).size for o in outputs)
        kernel = Kernel(
            self.name, VERSION, (), params, phases, flops, sum(b.nbytes for b in params),
            _inplace(params, phases),
        )  # fmt: skip
        return Launch(kernel, tuple(names), ())


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
            if x.role == "in" and x.nbytes == y.nbytes and x.dtype.bytes == y.dtype.bytes:
                if all(n.args[0] is mine[0].offset for n in loads(phases[0], x)):
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
