"""What a loop nest has to compute: outputs cut into pieces, each with loops and assignments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, apply, index, linear, var
from ...ops.operator import Opaque
from ...ops.traverse import substitute, transform, walk
from ...ops.types import TensorType, boolean, i64
from ..graph.ir import Graph, Op
from .address import offset
from .compose import Composer, Indices
from .ir import Buffer, Local, Prepared, Role, Set, Stmt, Store
from .recipe import prepared, recipe


@dataclass(frozen=True, slots=True)
class Assignment:
    """buffer[offset] = value for all values of the piece's loop variables. kept: the local that
    takes the buffer's place while a nest is written, for another sweep over the same loops."""

    buffer: Buffer
    offset: Expr
    value: Expr
    kept: Local | None = None

    @property
    def target(self) -> Buffer | Local:
        return self.buffer if self.kept is None else self.kept

    def at(self, offset: Expr, value: Expr) -> Stmt:
        """One element's statement."""
        if self.kept is not None:
            return Set(self.kept, (offset,), value)
        return Store(self.buffer, offset, value)


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
        self.reads: dict[str | Prepared, Buffer] = {}
        self.writes: dict[str, Buffer] = {}

    def parameters(self) -> tuple[tuple[Buffer, ...], tuple[str | Prepared, ...]]:
        """Buffers and what they hold, inputs first."""
        return (*self.reads.values(), *self.writes.values()), (*self.reads, *self.writes)

    def read(self, arg: str | Prepared, elements: int | None = None) -> Buffer:
        """elements: of a packed constant, where they are not as many as the constant's."""
        if arg not in self.reads:
            b = self.graph.blobs[arg if isinstance(arg, str) else arg.blobs[0]]
            count = b.type.span if elements is None else elements
            role: Role = "const" if b.is_constant else "in"
            self.reads[arg] = Buffer(f"x{len(self.reads)}", b.type.dtype, count, role)
        return self.reads[arg]

    def write(self, blob: str) -> Buffer:
        if blob not in self.writes:
            t = self.graph.type(blob)
            size = t.span
            self.writes[blob] = Buffer(f"y{len(self.writes)}", t.dtype, size, "out")
        return self.writes[blob]

    def lower(self, value: Expr, lane: Expr | None) -> Expr:
        """Loads of blobs at logical indices become loads of buffers at flat offsets. Constants are
        stored anew where that puts the axis that `lane` walks innermost."""

        def visit(n: Expr, at: tuple[Expr, ...]) -> Expr | None:
            if n.op != "load":
                return None
            kind = self.graph.type(n.payload)
            axis = self._lane_axis(n.payload, at, lane)
            if axis is None:
                return self.read(n.payload)[offset(kind, at)]
            order = (*(k for k in range(kind.rank) if k != axis), axis)
            moved = TensorType(kind.dtype, tuple(kind.dims[k] for k in order))
            made = prepared((n.payload,), "last", axis=axis)
            return self.read(made)[offset(moved, tuple(at[k] for k in order))]

        return transform(value, visit)

    def _lane_axis(self, blob: str, at: tuple[Expr, ...], lane: Expr | None) -> int | None:
        b = self.graph.blobs[blob]
        if not b.is_constant or lane is None:
            return None
        axes = [k for k, i in enumerate(at) if lane in i.free]
        if len(axes) != 1 or linear(at[axes[0]])[0].get(lane) != 1:
            return None
        return None if prod(b.type.dims[axes[0] + 1 :]) == 1 else axes[0]


@recipe("last")
def _axis_last(value: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(value, axis, -1))


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


def pieces(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], buffers: Buffers
) -> list[Piece]:
    """One piece per region of the outputs; outputs of one shape and order share their loops."""
    root = ops[-1]
    opaque = root.definition.trait(Opaque)
    if opaque is not None and opaque.kind == "concat":
        return _concat_pieces(graph, ops, buffers)
    composer = Composer(graph, ops)
    alike: dict[tuple[tuple[int, ...], object], list[str]] = {}
    for o in outputs:
        t = graph.type(o)
        alike.setdefault((t.dims, t.layout.order), []).append(o)
    found = []
    for names in alike.values():
        kind = graph.type(names[0])
        for loops, at in regions(kind):
            made = tuple(
                Assignment(
                    buffers.write(o),
                    offset(graph.type(o), at),
                    buffers.lower(composer.element(o, at), _last(loops)),
                )
                for o in names
            )
            found.append(Piece(loops, made))
    return found


def _last(loops: Indices) -> Expr | None:
    return loops[-1] if loops else None


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
                value = buffers.lower(composer.element(name, at), _last(loops))
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
        for at in (x.offset, *(n.args[0] for n in buffer_loads(x.value))):
            terms, _ = linear(at)
            if any(t is not a and t is not b and not t.free.isdisjoint((a, b)) for t in terms):
                return False
            if terms.get(a, 0) != terms.get(b, 0) * extent:
                return False
    return True


def stride(at: Expr, v: Expr) -> int | None:
    """How far one step of v moves an offset; None when it is not a fixed distance."""
    terms, _ = linear(at)
    if any(t is not v and v in t.free for t in terms):
        return None
    return terms.get(v, 0)


def buffer_loads(e: Expr) -> list[Expr]:
    return [n for n in walk(e) if n.op == "load" and isinstance(n.payload, Buffer)]


def trip_count(v: Expr) -> int:
    return int(v.payload[2] - v.payload[1])


def operations(piece: Piece) -> int:
    """Arithmetic operations on element values, every reduction counted once per result."""
    values = [a.value for a in piece.assignments]
    total = prod(map(trip_count, piece.loops)) * _plain(values)
    for r in walk(*values):
        if r.op == "reduce":
            around = (*r.free, *r.payload[1])
            total += prod(map(trip_count, around)) * (1 + _plain(r.args))
    return total


def _plain(values: Iterable[Expr]) -> int:
    """Operations outside reductions, loads' indices and conditions left out."""
    seen: set[Expr] = set()

    def count(e: Expr) -> int:
        if e in seen or e.op in ("reduce", "load", "const", "var"):
            return 0
        seen.add(e)
        mine = 0 if e.op in ("select", "cast") or e.dtype in (i64, boolean) else 1
        return mine + sum(map(count, e.args))

    return sum(map(count, values))
