"""The inverse of max pooling: zeros, and the elements at their places.

Indices come from a pooling, as a rule with windows that lie apart: then every index points into the
window that its element is put for. In blocked layouts a part is made on that assumption: a window
at a time, its elements are the pooled one where the index says so and zeros elsewhere, in vectors,
and every element is written once.

Where an index points out of its window, its part of the output is cleared and filled once more, one
element after the other, as it is at once where windows overlap or are not known. An item notes if
an index points out of its part even; if one did, all elements are placed again, one by one in
order, after everything was cleared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod

from ...ops.expr import (
    Expr,
    apply,
    binary,
    compare,
    const,
    index,
    logical_and,
    logical_or,
    select,
    unary,
    var,
)
from ...ops.operator import Opaque
from ...ops.types import boolean, i64, row_major_strides
from ...ops.windows import spread, spread_pads
from ..graph.ir import Graph, Op
from .device import Device
from .ir import Buffer, Declare, If, Launch, Local, Phase, Set, Stmt, Store, loop
from .nest import MAX_ITEMS
from .single import OpaqueTemplate, Parameters, shared

MOST_TAPS = 16
"""Elements of a window that is made in one go."""


class Unpool(OpaqueTemplate):
    """Row-major, or everything in the same channel blocks."""

    name = "unpool"
    kind = "unpool"
    version = 3

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
            phases = [shared(parts.total, work, made.some, device), made.rest()]
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

    sizes, places: spatial axes of x and y. plane, out: elements of one channel of them. rows: of x
    in a cut. step, there: elements of x and y in a cut. strides: of windows that lie apart, per
    axis; none where they may overlap or are not known.
    """

    images: int
    channels: int
    block: int
    sizes: tuple[int, ...]
    places: tuple[int, ...]
    cuts: int
    rows: int
    strides: tuple[int, ...] = ()

    @property
    def plane(self) -> int:
        return prod(self.sizes)

    @property
    def out(self) -> int:
        return prod(self.places)

    @property
    def step(self) -> int:
        return self.rows * prod(self.sizes[1:])

    @property
    def there(self) -> int:
        return self.rows * self.strides[0] * prod(self.places[1:]) if self.strides else self.out

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
        return _Parts(1, 1, 1, (prod(dims),), (prod(out),), 1, prod(dims))
    outer = dims[0] * -(-dims[1] // block)
    strides = strides_of(op, dims[2:], out[2:])
    cuts = max(1, min(dims[2], MAX_ITEMS // max(outer, 1))) if strides else 1
    rows = -(-dims[2] // cuts)
    return _Parts(dims[0], dims[1], block, dims[2:], out[2:], -(-dims[2] // rows), rows, strides)


def strides_of(op: Op, sizes: tuple[int, ...], places: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of windows that do not overlap and lie inside y; none for others."""
    rank = len(sizes)
    if op.attr("kernel_shape") == () or any(map(any, spread_pads(op.attr("pads"), rank))):
        return ()
    kernel = spread(op.attr("kernel_shape"), rank, "kernel_shape", 1)
    strides = spread(op.attr("strides"), rank, "strides", 1)
    apart = all(k <= s for k, s in zip(kernel, strides, strict=True))
    inside = all(n * s <= m for n, s, m in zip(sizes, strides, places, strict=True))
    return strides if apart and inside else ()


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
        q = self.parts
        outer, cut = part // q.cuts, part % q.cuts
        astray = Local("astray", i64)
        whole = self._one_by_one(outer, cut, astray)
        if q.strides and 1 < q.block == self.lanes and prod(q.strides) <= MOST_TAPS:
            missed = Local("missed", boolean, (), q.block)
            any_missed = apply("hmax", (missed.value,), boolean)
            whole = (*self._windows(outer, cut, missed), If(any_missed, whole))
        return (Declare(astray), Set(astray, (), const(0, i64)), *whole,
                Store(self.strays, part, astray.value))  # fmt: skip

    def _windows(self, outer: Expr, cut: Expr, missed: Local) -> tuple[Stmt, ...]:
        """A part whose indices point into their own windows; missed: lanes where one does not."""
        q, block = self.parts, self.parts.block
        lane = var("lane", block)
        home, seen = Local("home", i64, (), block), Local("seen", i64, (), block)
        held = Local("held", self.x.dtype, (), block)
        at = (var("row", q.sizes[0]), *(var(f"at{k}", n) for k, n in enumerate(q.sizes[1:], 1)))
        corner = _flat([i * s for i, s in zip(at, q.strides, strict=True)], q.places)
        source = (outer * q.plane + _flat(at, q.sizes)) * block + lane
        base = outer * (q.out * block)
        taps = [_flat(map(index, t), q.places) for t in product(*map(range, q.strides))]
        hits = [compare("eq", seen.value, t) for t in taps]
        window: list[Stmt] = [
            Set(seen, (), self.ix[source] - home.value - corner),
            Set(held, (), self.x[source]),
            *(Store(self.y, base + (corner + t) * block + lane, select(hit, held.value, 0))
              for t, hit in zip(taps, hits, strict=True)),
        ]  # fmt: skip
        wrong = unary("not", reduce(logical_or, hits))
        if q.channels % block:
            wrong = logical_and(lane < self._there(outer), wrong)
        window.append(Set(missed, (), logical_or(missed.value, wrong)))

        def lanes(*body: Stmt) -> tuple[Stmt, ...]:
            return (loop(lane, body, "vector", lanes=self.lanes),)

        first, end = cut * q.rows, binary("min", cut * q.rows + q.rows, q.sizes[0])
        nest = lanes(*window)
        for v in reversed(at[1:]):
            nest = (loop(v, nest),)
        start = lanes(Set(home, (), self._plane(outer, lane) * q.out),
                      Set(missed, (), const(False, boolean)))  # fmt: skip
        return (Declare(home), Declare(missed), Declare(seen), Declare(held), *start,
                *self._between(base, first, end), loop(at[0], nest, lo=first, hi=end))  # fmt: skip

    def _between(self, base: Expr, first: Expr, end: Expr) -> tuple[Stmt, ...]:
        """Zeros where a part's windows, those of rows first..end, do not reach."""
        q, block = self.parts, self.parts.block
        out: list[Stmt] = []
        covered = [n * s for n, s in zip(q.sizes, q.strides, strict=True)]
        for k, (reach, n) in enumerate(zip(covered, q.places, strict=True)):
            if reach == n:
                continue
            inner = prod(q.places[k + 1 :]) * block
            before = [var(f"b{j}", m) for j, m in enumerate((q.places[0], *covered[1:])[:k])]
            start = base + _flat(before, q.places[:k]) * (n * inner)
            at = var("at", self.y.elements)
            zero = Store(self.y, at, const(0, self.y.dtype))
            last = (end + 1) // (q.sizes[0] + 1) if k == 0 else index(1)  # only below the last row
            nest: Stmt = loop(at, (zero,), "vector", lo=start + reach * inner,
                              hi=start + reach * inner + last * ((n - reach) * inner),
                              lanes=self.lanes)  # fmt: skip
            for j, v in reversed(list(enumerate(before))):
                if j == 0:
                    nest = loop(v, (nest,), lo=first * q.strides[0], hi=end * q.strides[0])
                else:
                    nest = loop(v, (nest,))
            out.append(nest)
        return tuple(out)

    def _one_by_one(self, outer: Expr, cut: Expr, astray: Local) -> tuple[Stmt, ...]:
        """A part cleared, then filled with the elements whose indices point into it; astray is set
        where one points elsewhere."""
        q, block = self.parts, self.parts.block
        first, end = cut * q.there, self._end(cut, cut * q.there + q.there, q.out)
        base = outer * (q.out * block)
        at = var("at", self.y.elements)
        zero = Store(self.y, at, const(0, self.y.dtype))
        clear = loop(at, (zero,), "vector", lo=base + first * block, hi=base + end * block,
                     lanes=self.lanes)  # fmt: skip
        p, lane = var("p", q.plane), var("lane", block)
        seen = Local("seen", i64)
        source = (outer * q.plane + p) * block + lane
        inside = logical_and(first <= seen.value, seen.value < end)
        put = (
            Set(seen, (), self.ix[source] - self._plane(outer, lane) * q.out),
            If(inside, (Store(self.y, base + seen.value * block + lane, self.x[source]),),
               (Set(astray, (), const(1, i64)),)),
        )  # fmt: skip
        fill = loop(p, (loop(lane, put, hi=self._there(outer)),), lo=cut * q.step,
                    hi=self._end(cut, cut * q.step + q.step, q.plane))  # fmt: skip
        return clear, Declare(seen), fill

    def _plane(self, outer: Expr, lane: Expr) -> Expr:
        """The number of a lane's channel, counted through all images."""
        q = self.parts
        return outer // q.blocks * q.channels + outer % q.blocks * q.block + lane

    def _there(self, outer: Expr) -> Expr:
        """How many channels of a block exist."""
        q = self.parts
        if q.channels % q.block == 0:
            return index(q.block)
        return binary("min", q.channels - outer % q.blocks * q.block, q.block)

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


def _flat(at: Iterable[Expr], sizes: Sequence[int]) -> Expr:
    """A place in a row-major box of these sizes."""
    total = index(0)
    for i, s in zip(at, row_major_strides(tuple(sizes)), strict=True):
        total = total + i * s
    return total
