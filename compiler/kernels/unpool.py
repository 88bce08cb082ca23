"""The inverse of max pooling: zeros, and the elements at their places.

Nearly every index lies in its own channel, not far from where its element does. So an item clears
a part of the output and fills it from the same part of the input, while both are in the cache. It
notes if an index points anywhere else; if one did, all elements are placed again, one by one in
order, after everything was cleared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from ...ops.expr import Expr, binary, const, index, logical_and, var
from ...ops.operator import Opaque
from ...ops.types import i64
from ...ops.windows import spread, spread_pads
from ..graph.ir import Graph, Op
from .device import Device
from .ir import Buffer, Declare, If, Launch, Local, Phase, Set, Stmt, Store, loop
from .nest import MAX_ITEMS
from .single import OpaqueTemplate, Parameters, shared


class Unpool(OpaqueTemplate):
    """Row-major, or everything in the same channel blocks."""

    name = "unpool"
    kind = "unpool"
    version = 2

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        trait = ops[0].definition.trait(Opaque)
        if len(ops) != 1 or trait is None or trait.kind != self.kind:
            return False
        kinds = [graph.type(n) for n in (*ops[0].reads, *ops[0].outputs)]
        alike = all(t.is_dense and t.layout.order == kinds[0].layout.order for t in kinds)
        return alike and (not kinds[0].layout.is_blocked or can_be_blocked(graph, ops[0]))

    def build(self, op: Op, params: Parameters, device: Device) -> Launch:
        x, ix = map(params.read, op.reads)
        y = params.write(op.outputs[0])
        work = 4 * x.elements + y.elements
        phases = []
        if y.elements and x.elements:
            parts = _parts(params.graph, op)
            strays = params.scratch(i64, parts.total)
            made = _Placing(x, ix, y, strays, parts, device.lanes(y.dtype))
            phases = [shared(parts.total, work, made.some), made.rest()]
        elif y.elements:
            at = var("at", y.elements)
            zero = Store(y, at, const(0, y.dtype))
            whole = loop(at, (zero,), "vector", lanes=device.lanes(y.dtype))
            phases = [Phase(1, var("item", 1), (whole,))]
        return params.launch(self.name, self.version, {}, phases, x.elements)


def can_be_blocked(graph: Graph, op: Op) -> bool:
    """Whether x and y have the same channels, which may then lie in blocks."""
    return graph.type(op.reads[0]).dims[:2] == graph.type(op.outputs[0]).dims[:2]


def _block(graph: Graph, op: Op) -> int:
    layout = graph.type(op.outputs[0]).layout
    return layout.block if layout.is_blocked else 1


@dataclass(frozen=True, slots=True)
class _Parts:
    """Images and blocks of channels (`outer`), each cut into `cuts`.

    plane, out: elements of one channel of x and y. step, there: how many of them a cut has.
    """

    images: int
    channels: int
    block: int
    plane: int
    out: int
    cuts: int
    step: int
    there: int

    @property
    def blocks(self) -> int:
        return -(-self.channels // self.block)

    @property
    def total(self) -> int:
        return self.images * self.blocks * self.cuts


def _parts(graph: Graph, op: Op) -> _Parts:
    dims, out = graph.type(op.reads[0]).dims, graph.type(op.outputs[0]).dims
    block = _block(graph, op)
    if dims[:2] != out[:2]:  # no channel of y belongs to one of x
        return _Parts(1, 1, 1, prod(dims), prod(out), 1, prod(dims), prod(out))
    outer = dims[0] * -(-dims[1] // block)
    rows, cuts, stride = dims[2], 1, _row_stride(op, len(dims) - 2)
    if stride and rows * stride <= out[2]:
        cuts = max(1, min(rows, MAX_ITEMS // max(outer, 1)))
    step = -(-rows // cuts)
    cuts = -(-rows // step)
    return _Parts(dims[0], dims[1], block, prod(dims[2:]), prod(out[2:]), cuts,
                  step * prod(dims[3:]), step * stride * prod(out[3:]))  # fmt: skip


def _row_stride(op: Op, rank: int) -> int:
    """Rows of y for every row of x, where windows do not overlap; 0 where they may."""
    if op.attr("kernel_shape") == ():
        return 0
    kernel = spread(op.attr("kernel_shape"), rank, "kernel_shape", 1)[0]
    stride = spread(op.attr("strides"), rank, "strides", 1)[0]
    return stride if kernel <= stride and not any(spread_pads(op.attr("pads"), rank)[0]) else 0


@dataclass(frozen=True, slots=True)
class _Placing:
    x: Buffer
    ix: Buffer
    y: Buffer
    strays: Buffer
    parts: _Parts
    lanes: int

    def some(self, lo: Expr, hi: Expr) -> Iterable[Stmt]:
        """Parts lo..hi: each cleared and filled."""
        part = var("part", self.parts.total)
        return (loop(part, self._part(part), lo=lo, hi=hi),)

    def _part(self, part: Expr) -> Iterable[Stmt]:
        q, block = self.parts, self.parts.block
        outer, cut = part // q.cuts, part % q.cuts
        first, end = cut * q.there, self._end(cut, cut * q.there + q.there, q.out)
        base = outer * (q.out * block)
        at = var("at", self.y.elements)
        zero = Store(self.y, at, const(0, self.y.dtype))
        clear = loop(at, (zero,), "vector", lo=base + first * block, hi=base + end * block,
                     lanes=self.lanes)  # fmt: skip
        p, lane = var("p", q.plane), var("lane", block)
        channel = outer % q.blocks * block + lane
        plane = outer // q.blocks * q.channels + channel
        seen, astray = Local("seen", i64), Local("astray", i64)
        source = (outer * q.plane + p) * block + lane
        inside = logical_and(first <= seen.value, seen.value < end)
        put = (
            Set(seen, (), self.ix[source] - plane * q.out),
            If(inside, (Store(self.y, base + seen.value * block + lane, self.x[source]),),
               (Set(astray, (), const(1, i64)),)),
        )  # fmt: skip
        there = block if q.channels % block == 0 else (
            binary("min", q.channels - outer % q.blocks * block, block)
        )  # fmt: skip
        fill = loop(p, (loop(lane, put, hi=there),), lo=cut * q.step,
                    hi=self._end(cut, cut * q.step + q.step, q.plane))  # fmt: skip
        return (clear, Declare(seen), Declare(astray), Set(astray, (), const(0, i64)), fill,
                Store(self.strays, part, astray.value))  # fmt: skip

    def _end(self, cut: Expr, end: Expr, last: int) -> Expr:
        """Where a cut ends; the last one takes what is left."""
        if self.parts.cuts == 1:
            return index(last)
        return binary("min", end + (cut + 1) // self.parts.cuts * last, last)

    def rest(self) -> Phase:
        """Everything again, in order, if any index was astray."""
        q, block = self.parts, self.parts.block
        part, any_ = var("part", q.total), Local("any", i64)
        count = loop(part, (Set(any_, (), any_.value + self.strays[part]),))
        n, c, p = var("n", q.images), var("c", q.channels), var("p", q.plane)
        seen = Local("seen", i64)
        source = ((n * q.blocks + c // block) * q.plane + p) * block + c % block
        image, rest = seen.value // (q.channels * q.out), seen.value % (q.channels * q.out)
        channel, place = rest // q.out, rest % q.out
        to = ((image * q.blocks + channel // block) * q.out + place) * block + channel % block
        whole = q.images * q.channels * q.out
        inside = logical_and(seen.value >= 0, seen.value < whole)
        put = (Set(seen, (), self.ix[source]), If(inside, (Store(self.y, to, self.x[source]),)))
        again = loop(n, (loop(c, (loop(p, put),)),))
        body = (Declare(any_), Set(any_, (), const(0, i64)), count,
                If(any_.value > 0, (Declare(seen), again)))  # fmt: skip
        return Phase(1, var("item", 1), body)
