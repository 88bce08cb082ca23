"""From sums in registers to results in memory: what `gpu_wgmma` does with a finished tile.

A thread holds pairs of neighbouring columns, eight columns apart, in rows eight apart. What follows
on the sum is computed there. 16-bit results then go through shared memory, a panel of 64 rows and
64 columns at a time, from where whole boxes are copied to the result; other results, and those
whose rows the copying unit cannot address, are stored by each thread where they belong. Of a part
of a sum it is stored as it is, and a second phase does all that (see `gpu_parts`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...ops.expr import Expr, apply, cast, compare, const, index, logical_and, select, var
from ...ops.traverse import substitute, transform
from ...ops.types import HALF, boolean, f32
from ..graph.ir import Graph
from .gpu_matrices import Product
from .gpu_mma_product import kept_wide
from .gpu_parts import Element, Parts
from .gpu_wgmma_shape import GROUP, TILE, Shape
from .ir import Buffer, Call, Declare, If, Local, Phase, Set, Stmt, Store, TensorMap, loop
from .pieces import Buffers, buffer_loads
from .tensor_map import MOST_AXES, WORD

PANEL: Final = 64  # columns


def results_of(graph: Graph, p: Product, s: Shape, buffers: Buffers) -> Results:
    """How the results of a product are stored."""
    if s.parts > 1:
        return Sums(graph, p, s, buffers)
    return (Boxes if _goes_in_boxes(graph, p, s) else Results)(graph, p, s, buffers)


def _goes_in_boxes(graph: Graph, p: Product, s: Shape) -> bool:
    kind, found = graph.type(p.out), p.boxes(TILE)
    if kind.dtype.bytes != 2 or s.n % PANEL or found is None:
        return False
    steps = found[1]
    fits = all(x > 0 and x * kind.dtype.bytes % WORD == 0 for x in steps)
    return fits and len(steps) < MOST_AXES


class Results:
    """Every thread stores what it has. shared: arrays of the block; maps: tensors that are
    written in boxes; scratch: what further phases read."""

    shared: tuple[Local, ...] = ()
    maps: tuple[TensorMap, ...] = ()
    scratch: tuple[Buffer, ...] = ()

    def __init__(self, graph: Graph, p: Product, s: Shape, buffers: Buffers) -> None:
        self.graph, self.p, self.s = graph, p, s
        self.kind = graph.type(p.out)
        self.dtype = self.kind.dtype
        self.total, total = apply("whole", (), s.held), apply("sum", (), p.node.dtype)
        value = substitute(p.value, {p.node: total})
        if value.dtype in HALF:  # a sum that is only rounded for what follows need not be
            rounded = cast(total, value.dtype)
            value = kept_wide(value, {total: self.total, rounded: self.total})
        value = substitute(value, {total: cast(self.total, p.node.dtype)})
        self.value = buffers.lower(_without_calls(value), None)
        self.out = buffers.write(p.out)
        self.ragged = (p.is_ragged(s.m * s.cluster), p.n % s.n != 0)

    def phases(self) -> tuple[Phase, ...]:
        """Behind the one that multiplies."""
        return ()

    def registers(self) -> tuple[Stmt, ...]:
        """Declarations of what a thread needs for it."""
        return ()

    def ended(self, thread: Expr) -> tuple[Stmt, ...]:
        """Behind the last tile."""
        return ()

    def stored(
        self, sums: Local, thread: Expr, group: Expr, batch: Expr, row: Expr, column: Expr
    ) -> tuple[Stmt, ...]:
        """All results of a group's part of a tile. thread: in the group."""
        first = row + group * (self.s.tiles * TILE)

        def store(at: Expr, r: Expr, c: Expr) -> tuple[Stmt, ...]:
            inside = self._inside(r, c, self.ragged)
            found = self.element(sums[at], batch, r, c)
            put = Store(self.out, found.at, found.value)
            return (put,) if inside.is_const else (If(inside, (put,)),)

        tile, panel = var("tile_row", self.s.tiles), var("panel", self.s.n // 8)
        held = tile * (self.s.n // 2) + panel * 4
        body = _fragment(1, held, thread, first + tile * TILE, column + panel * 8, store)
        return (loop(tile, (loop(panel, body, "unroll"),), "unroll"),)

    def _inside(self, row: Expr, column: Expr, which: tuple[bool, bool]) -> Expr:
        """Whether an element exists, as far as rows and columns may be beyond the result."""
        inside = const(True, boolean)
        limits = [*(self.p.bounds(row) if which[0] else ()),
                  *([(column, self.p.n)] if which[1] else ())]  # fmt: skip
        for at, size in limits:
            inside = logical_and(inside, at < size)
        return inside

    def element(self, total: Expr, batch: Expr, row: Expr, column: Expr) -> Element:
        """What becomes of one sum."""
        to = self.p.where(batch, row, column)
        return Element(substitute(self.value, to | {self.total: total}), substitute(self.p.at, to))

    def exists(self, row: Expr) -> Expr:
        """Of a window, tiles go beyond the result."""
        return self._inside(row, row, (self.p.window is not None, False))


def _without_calls(value: Expr) -> Expr:
    """Divisions on the way to a half float only need to be as good as that; exact ones may be calls
    of functions, which keep products from overlapping."""
    if value.dtype not in HALF:
        return value

    def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
        return apply("near", args, f32) if n.op == "div" and n.dtype is f32 else None

    return transform(value, visit)


def _fragment(
    columns: int, held: Expr, thread: Expr, row: Expr, column: Expr,
    each: Callable[[Expr, Expr, Expr], tuple[Stmt, ...]],
) -> tuple[Stmt, ...]:  # fmt: skip
    """each(register, row, column) for the elements that a thread holds of 64 rows and `columns`
    times 8 columns; register: counted from `held`."""
    j, h, i = var("eight", columns), var("half", 2), var("pair", 2)
    at = held + j * 4 + h * 2 + i if columns > 1 else held + h * 2 + i
    r = row + thread // 32 * 16 + thread % 32 // 4 + h * 8
    c = column + thread % 4 * 2 + i + (j * 8 if columns > 1 else 0)
    body: tuple[Stmt, ...] = (loop(h, (loop(i, each(at, r, c), "unroll"),), "unroll"),)
    return (loop(j, body, "unroll"),) if columns > 1 else body


class Sums(Results):
    """Every thread stores its sums as they are, pairs of neighbours at once."""

    def __init__(self, graph: Graph, p: Product, s: Shape, buffers: Buffers) -> None:
        super().__init__(graph, p, s, buffers)
        self.split = Parts(p.batch, p.m, p.n, s.held, s.parts, s.part)
        self.scratch = (self.split.out,)

    def phases(self) -> tuple[Phase, ...]:
        return (self.split.added(self),)

    def stored(
        self, sums: Local, thread: Expr, group: Expr, batch: Expr, row: Expr, column: Expr
    ) -> tuple[Stmt, ...]:
        tile, panel, h = var("tile_row", self.s.tiles), var("panel", self.s.n // 8), var("half", 2)
        r = (
            row
            + (group * self.s.tiles + tile) * TILE
            + thread // 32 * 16
            + thread % 32 // 4
            + h * 8
        )
        c, held = column + panel * 8 + thread % 4 * 2, tile * (self.s.n // 2) + panel * 4 + h * 2
        body = self._pair(sums, held, batch, r, c)
        for v in (h, panel, tile):
            body = (loop(v, body, "unroll"),)
        return body

    def _pair(
        self, sums: Local, held: Expr, batch: Expr, row: Expr, column: Expr
    ) -> tuple[Stmt, ...]:  # fmt: skip
        out, i = self.split.out, var("pair", 2)

        def put(c: Expr, *body: Stmt) -> tuple[Stmt, ...]:
            inside = self._inside(row, c, self.ragged)
            return body if inside.is_const else (If(inside, body),)

        if not self.split.neighbours(2):
            e = self.split.element(sums[held + i], batch, row, column + i)
            return (loop(i, put(column + i, Store(out, e.at, e.value)), "unroll"),)
        word = Local("word", self.s.held, (2,))
        e = self.split.element(sums[held + i], batch, row, column)
        filled = loop(i, (Set(word, (i,), e.value),), "unroll")
        store = Call("store_vector", (out, e.at, word, index(0), 2))
        return Declare(word), *put(column, filled, store)


class Boxes(Results):
    """Panels are staged in shared memory and copied from there. A group has room for two or three,
    if tiles take as many or a multiple: others are then copied while one is filled."""

    def __init__(self, graph: Graph, p: Product, s: Shape, buffers: Buffers) -> None:
        super().__init__(graph, p, s, buffers)
        found = p.boxes(TILE)
        assert found is not None
        dims, steps, box = found
        size = self.kind.dtype.bytes
        self.tensor = TensorMap("results", self.out, (p.n, *dims), tuple(x * size for x in steps),
                                (PANEL, *box))  # fmt: skip
        self.maps = (self.tensor,)
        count = s.tiles * s.n // PANEL
        self.slots = next((k for k in (2, 3) if count % k == 0), 1)
        self.staged = Local("staged", self.kind.dtype, (s.groups * self.slots * PANEL * TILE,),
                            shared=True, align=1024)  # fmt: skip
        self.shared = (self.staged,)
        read = frozenset[Expr]().union(*(x.free for x in buffer_loads(self.value)))
        self.needed = (  # of what is beyond the result, nothing exists that could be read
            self.ragged[0] and not read.isdisjoint(p.rows),
            self.ragged[1] and not read.isdisjoint(p.columns),
        )
        self.panel = Local("row", self.kind.dtype, (PANEL // 2,))

    def registers(self) -> tuple[Stmt, ...]:
        return (Declare(self.panel),)

    def ended(self, thread: Expr) -> tuple[Stmt, ...]:
        return (If(compare("eq", thread, 0), (Call("tma_wait", (0,)),)),)

    def stored(
        self, sums: Local, thread: Expr, group: Expr, batch: Expr, row: Expr, column: Expr
    ) -> tuple[Stmt, ...]:
        across = self.s.n // PANEL
        tile, panel = var("tile_row", self.s.tiles), var("panel", across)
        first = row + (group * self.s.tiles + tile) * TILE
        left = column + panel * PANEL
        slot = (group * self.slots + (tile * across + panel) % self.slots) * (PANEL * TILE)
        held = tile * (self.s.n // 2) + panel * (PANEL // 2)
        zero = const(0, self.kind.dtype)

        def put(at: Expr, r: Expr, c: Expr) -> tuple[Stmt, ...]:
            value = self.element(sums[at], batch, r, c).value
            value = select(self._inside(r, c, self.needed), value, zero)
            return (Set(self.panel, (at - held,), value),)

        is_first = compare("eq", thread, 0)
        meet = Call("barrier_of", (group + 1, GROUP))
        where = [left, *self.p.box_at(batch, first)]
        rank = len(self.tensor.dims)
        copy = Call(f"tma_store_{rank}d", (self.tensor, self.staged, slot, *where))
        body = (
            If(is_first, (Call("tma_wait", (self.slots - 1,)),)),
            meet,
            *_fragment(PANEL // 8, held, thread, first, left, put),
            Call("stmatrix", (self.staged, slot + thread // 32 * (16 * PANEL), self.panel, PANEL)),
            Call("proxy_fence"),
            meet,
            If(is_first, (copy, Call("tma_commit"))),
        )
        return (loop(tile, (loop(panel, body, "unroll"),), "unroll"),)
