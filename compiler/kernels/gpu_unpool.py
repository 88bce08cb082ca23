"""The inverse of max pooling on GPUs: every element of the result looks into its own window.

That is all there is to do where windows lie apart and every index points into the window that its
element was taken from, as a pooling leaves them. A second kernel finds out whether they do. If any
does not, the third places all elements again, one by one in their order, so that the last one of
several for one place stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr, apply, compare, const, index, logical_and, select, unary, var
from ...ops.types import boolean, i64
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_sharing import unflattened
from .ir import Buffer, Declare, If, Launch, Local, Phase, Set, Stmt, Store, loop
from .single import Parameters
from .unpool import Unpool, strides_of

LOOKED_AT: Final = 4096  # indices that a block looks at
EACH: Final = 4  # neighbours that a thread makes


class GpuUnpool(Unpool):
    """Row-major, windows that lie apart."""

    name = "gpu_unpool"
    version = 1

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        if not super().matches(graph, ops, outputs):
            return False
        x, y = graph.type(ops[0].reads[0]), graph.type(ops[0].outputs[0])
        alike = x.dims[:2] == y.dims[:2] and not x.layout.is_blocked and x.size > 0
        return alike and strides_of(ops[0], x.dims[2:], y.dims[2:]) != ()

    def build(self, op: Op, params: Parameters, device: Device) -> Launch:
        kinds = [params.graph.type(n) for n in (op.reads[0], op.outputs[0])]
        sizes, places = (t.dims[2:] for t in kinds)
        x, ix = map(params.read, op.reads)
        y = params.write(op.outputs[0])
        blocks = -(-x.elements // LOOKED_AT)
        strays = params.scratch(i64, blocks)
        made = _Windows(x, ix, y, strays, sizes, places, strides_of(op, sizes, places))
        lanes = device.lanes(i64)
        phases = [made.looked_up(), made.astray(blocks, lanes), made.again(blocks, lanes)]
        return params.launch(self.name, self.version, {}, phases, x.elements)


class _Windows:
    def __init__(
        self, x: Buffer, ix: Buffer, y: Buffer, strays: Buffer, sizes: tuple[int, ...],
        places: tuple[int, ...], strides: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.x, self.ix, self.y, self.strays = x, ix, y, strays
        self.sizes, self.places, self.strides = sizes, places, strides

    def looked_up(self) -> Phase:
        """Neighbouring results: an element where its window's index says so, else zero."""
        each = EACH if self.places[-1] % EACH == 0 else 1
        item, u = var("item", self.y.elements // each), var("u", each)
        channels = self.y.elements // prod(self.places)
        plane = var("plane", channels)
        at = [var(f"at{k}", n) for k, n in enumerate(self.places)]
        where = unflattened(item * each + u, (plane, *at))
        source: Expr = where[plane]
        inside = const(True, boolean)
        for v, n, step in zip(at, self.sizes, self.strides, strict=True):
            window = where[v] // step
            source = source * n + window
            inside = logical_and(inside, window < n)
        seen, held = Local("seen", i64, (each,)), Local("held", self.y.dtype, (each,))
        hit = compare("eq", seen[u], item * each + u)
        zero = const(0, self.y.dtype)
        body = (
            Declare(seen), Declare(held),
            loop(u, (Set(seen, (u,), select(inside, self.ix[source], const(-1, i64))),), "unroll"),
            loop(u, (Set(held, (u,), select(hit, self.x[source], zero)),), "unroll"),
            loop(u, (Store(self.y, item * each + u, held[u]),), "unroll"),
        )  # fmt: skip
        return Phase(self.y.elements // each, item, body)

    def astray(self, blocks: int, lanes: int) -> Phase:
        """Whether an index of a block's part points out of its window."""
        item, t = var("item", blocks), var("t", LOOKED_AT)
        element = item * LOOKED_AT + t
        plane = var("plane", self.x.elements // prod(self.sizes))
        at = [var(f"at{k}", n) for k, n in enumerate(self.sizes)]
        where = unflattened(element, (plane, *at))
        seen = Local("seen", i64, (), lanes)
        missed = Local("missed", boolean, (), lanes)
        rest = seen.value
        inside = logical_and(rest >= 0, rest < prod(self.places))
        apart = prod(self.places)
        for v, n, step in zip(at, self.places, self.strides, strict=True):
            apart //= n
            inside = logical_and(inside, compare("eq", rest // apart // step, where[v]))
            rest = rest % apart
        look: tuple[Stmt, ...] = (
            Set(seen, (), self.ix[element] - where[plane] * prod(self.places)),
            Set(missed, (), missed.value | unary("not", inside)),
        )
        if self.x.elements % LOOKED_AT:
            look = (If(element < self.x.elements, look),)
        found = apply("hmax", (missed.value,), boolean)
        lane = var("lane", lanes)
        start = loop(lane, (Set(missed, (), const(False, boolean)),), "vector", lanes=lanes)
        body = (Declare(seen), Declare(missed), start, loop(t, look, "vector", lanes=lanes),
                Store(self.strays, item, select(found, index(1), index(0))))  # fmt: skip
        return Phase(blocks, item, body)

    def again(self, blocks: int, lanes: int) -> Phase:
        """Everything in order, if any index was astray."""
        many, total = Local("many", i64, (), lanes), Local("total", i64)
        b, lane, e = var("b", blocks), var("lane", lanes), var("e", self.x.elements)
        to = Local("to", i64)
        inside = logical_and(to.value >= 0, to.value < self.y.elements)
        put = (Set(to, (), self.ix[e]), If(inside, (Store(self.y, to.value, self.x[e]),)))
        body = (
            Declare(many), Declare(total), Declare(to),
            loop(lane, (Set(many, (), index(0)),), "vector", lanes=lanes),
            loop(b, (Set(many, (), many.value + self.strays[b]),), "vector", lanes=lanes),
            Set(total, (), apply("hsum", (many.value,), i64)),
            If(total.value > 0, (loop(e, put),)),
        )  # fmt: skip
        return Phase(1, var("item", 1), body)
