"""Winograd convolution F(m x m, 3 x 3) on channel-blocked tensors.

The result is cut into tiles of m x m places, counted through all images. With a = m + 2, a tile
reads a x a inputs, and three steps compute it (`winograd_transforms.py` has the matrices):

    V[xi, tile, c] = B^T d B           xi: one of the a * a places in the transformed tile
    M[xi, tile, o] = sum_c V[xi, tile, c] * U[xi, c, o]
    y = A^T M A                        plus bias and what else the group does

The middle step is a * a matrix products by the micro-kernel that all contractions share; it takes
(m + 2)^2 / (9 m^2) of the multiply-adds of a direct sum. The others are additions along lanes; what
they read and write is asked for while products run, which leave most of the memory's time free.
V, M and U do not all fit into a cache. Where tiles are many, one phase takes some of them through
all steps, so that V and M stay in the second cache (`phases` 1). Where they are few, weights are
what takes time: every step is a phase of its own, and U is read once (`phases` 3).

Padding is never read: tiles at the edges are gathered with zeros around what there is of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy.typing as npt

from ...ops.expr import Expr, compare, const, index, load, logical_and, minimum, var
from ...ops.traverse import substitute
from ...ops.types import boolean, f32
from ..graph.ir import Graph, Op
from .compose import Indices
from .conv_group import ConvGroup, Operands, conv_group, conv_results, formal
from .device import Device
from .epilogue import Params, inplace, lowered, place
from .ir import (
    Declare,
    If,
    Kernel,
    Launch,
    Local,
    Phase,
    Prefetch,
    Set,
    Stmt,
    Store,
    loop,
    seq,
)
from .microkernel import Level, MicroKernel, Panel, Rows, Segment, bind
from .packing import Stage, Weights, room, staged, write
from .recipe import prepared, recipe
from .template import Config, required
from .winograd_configs import Tiles, estimate, lean, ranked, shares, steps, vectors_of
from .winograd_transforms import applied, transformed_weights, transforms

Array = npt.NDArray[Any]

REGISTERS: Final = 16
"""Places of a tile that are transformed at once without going through memory."""

PARTIAL: Final = 64
"""Terms of a partial sum of products, about: roundings of the transformed values are several times
as large as a result's, so that these sums are shorter than those of a direct convolution."""

TAPS: Final = 9
PRODUCT: Final = 1 << 18
"""Multiply-adds in one product of matrices while packing: operands stay in the cache, and it is too
small for numpy's library to share it out among threads, of which packing has its own."""


class _Writer:
    """Writes the kernel of one problem for one config."""

    def __init__(self, p: ConvGroup, device: Device, config: Config) -> None:
        self.p, self.config = p, config
        self.m: int = config["m"]
        self.maps = transforms(self.m)
        self.a = self.maps.size
        self.points = self.a * self.a
        self.all = Tiles.of(p, self.m)
        self.lanes = device.lanes(p.dtype)
        self.in_block = p.x.layout.block
        self.in_blocks = -(-p.depth // self.in_block)
        self.vectors = vectors_of(p, self.lanes)
        self.nb, self.mr = config["nb"], config["mr"]
        self.tiles = config["tiles"]  # taken through all steps together
        self.share = config["vectors"]  # vectors of results that M holds
        self.groups = self.vectors // self.share
        self.panels, self.rest = divmod(self.share, self.nb)
        self.params = Params(p.graph)
        self.form = formal(p)
        operands = Operands(p, self.params, self.form.channel)
        self.x = self.params.read(p.anchor.reads[0])
        m, lanes, nb, share = self.m, self.lanes, self.nb, self.share
        weights = prepared((p.anchor.reads[1],), "winograd", m=m, lanes=lanes, blocks=nb,
                           share=share, vectors=self.vectors)  # fmt: skip
        self.u = self.params.prepared(
            weights, p.dtype, self.points * p.depth * self.vectors * lanes
        )
        self.bias = None if p.bias is None else operands.vector(p.bias)
        found = conv_results(p)
        assert found is not None
        self.stores = lowered(self.params, found, p.result, operands)
        self.acc = load(p.result, self.form.at, p.dtype)
        self.v_block = self.tiles * self.in_block
        self.v_step, self.m_step = steps(p, lanes, self.tiles)
        self.m_vector = self.points * self.m_step
        self.v_each = self.points * self.v_step
        self.m_each = self.share * self.m_vector
        workers = self.shares if config["phases"] == 1 else 1
        self.v = self.params.scratch(p.dtype, workers * self.v_each)
        self.mm = self.params.scratch(p.dtype, workers * self.m_each)

    # ---------------------------------------------------------------- inputs to V

    def gather(self, v_base: Expr, block: Expr, tile: Expr, into: Expr) -> tuple[Stmt, ...]:
        """V of one tile and one block of channels. tile: its number; into: its place in V."""
        a, x, lanes = self.a, self.p.x, self.lanes
        image_step, block_step, row_step, step = x.strides[:4]
        height = x.dims[2]
        top, left = self.p.window.begin
        located, image, row, column = self.all.locate(tile)
        row, column = row - top, column - left
        bound, base = bind("from", image * image_step + block * block_step
                           + row * row_step + column * step)  # fmt: skip
        lane = var("l", self.in_block)
        line = Local("d", self.p.dtype, (a,), lanes)
        half = Local("h", self.p.dtype, (a, a), lanes)
        rows_inside = all_of(compare("le", 0, row), compare("le", row, height - a))
        to = v_base + block * self.v_block + into * self.in_block
        body: list[Stmt] = [Declare(half), Declare(line)]
        for part in self.data_parts():
            for c in range(a):
                body.append(self.column(line, rows_inside, row, column + c, base + c * step, lane))
                held = Held(f"p{part[0]}_{c}", self.p.dtype, lanes)
                done = applied(self.maps.data, [line[r] for r in range(a)], held, part)
                body += held.stmts
                body += [Set(half, (index(r), index(c)), e)
                         for r, e in zip(part, done, strict=True)]  # fmt: skip
            for r in part:
                held = Held(f"q{r}", self.p.dtype, lanes)
                done = applied(self.maps.data, [half[r, c] for c in range(a)], held)
                body += held.stmts
                body += [Store(self.v, to + (r * a + c) * self.v_step + lane, e)
                         for c, e in enumerate(done)]  # fmt: skip
        return (*located, *bound, loop(lane, body, "vector", lanes=lanes))

    def data_parts(self) -> tuple[tuple[int, ...], ...]:
        """Rows of the first step that are taken through the second before the others are made, so
        that no more than half a tile is in registers. Rows that share sums stay together."""
        if self.a * self.a <= REGISTERS:
            return (tuple(range(self.a)),)
        return tuple(range(self.a // 2)), tuple(range(self.a // 2, self.a))

    def column(
        self, line: Local, rows_inside: Expr, row: Expr, column: Expr, base: Expr, lane: Expr
    ) -> Stmt:
        """Set `line` to a column of the tile from `row` on, with zeros for what is padding."""
        height, width = self.p.x.dims[2:]
        row_step = self.p.x.strides[2]
        zero = const(0, self.p.dtype)
        here = [Set(line, (index(r),), self.x[base + r * row_step + lane]) for r in range(self.a)]
        none = [Set(line, (index(r),), zero) for r in range(self.a)]
        some = [
            If(all_of(compare("le", 0, row + r), compare("lt", row + r, height)), (s,), (z,))
            for r, (s, z) in enumerate(zip(here, none, strict=True))
        ]
        inside = all_of(compare("le", 0, column), compare("lt", column, width))
        return If(inside, (If(rows_inside, tuple(here), tuple(some)),), tuple(none))

    # ---------------------------------------------------------------- V and U to M

    def multiply(
        self, v_base: Expr, m_base: Expr, group: Expr, xi: Expr, panel: Expr, rows: Expr
    ) -> tuple[Stmt, ...]:
        """M at one point for all tiles and one panel of results. rows: register tiles of tiles."""
        if not self.rest:
            return self.panel(v_base, m_base, group, xi, panel, self.nb, rows)
        last = self.panel(v_base, m_base, group, xi, index(self.panels), self.rest, rows)
        if not self.panels:
            return last
        return (If(compare("lt", panel, self.panels),
                   self.panel(v_base, m_base, group, xi, panel, self.nb, rows), last),)  # fmt: skip

    def panel(
        self, v_base: Expr, m_base: Expr, group: Expr, xi: Expr, panel: Expr, blocks: int,
        rows: Expr,
    ) -> tuple[Stmt, ...]:  # fmt: skip
        depth, lanes, block = self.p.depth, self.lanes, self.in_block
        micro = MicroKernel(self.p.dtype, lanes, (self.mr,), blocks, tag=str(blocks))
        q = var("q", self.tiles // self.mr)
        full, rest = divmod(depth, block)
        segments = []
        if full:
            levels = Level(full, self.v_block), Level(block, 1)
            segments.append(Segment(levels, partial=max(1, PARTIAL // block)))
        if rest:
            segments.append(Segment((Level(rest, 1),), full * self.v_block, full * block))
        a = Rows(self.v, v_base + xi * self.v_step + q * (self.mr * block), (block,))
        first = ((group * self.points + xi) * self.share + panel * self.nb) * (depth * lanes)
        b = Panel(self.u, first, blocks * lanes, far=True)
        to = m_base + panel * (self.nb * self.m_vector) + xi * self.m_step + q * (self.mr * lanes)

        def finish(r: Indices, j: Expr, lane: Expr, value: Expr) -> list[Store]:
            return [Store(self.mm, to + j * self.m_vector + r[0] * lanes + lane, value)]

        products = micro.accumulate(
            a, b, segments, then=lambda rows: micro.finish(finish, rows=rows)
        )
        tile = (*micro.start(), *products)
        return (loop(q, tile, hi=rows),)

    # ---------------------------------------------------------------- M to results

    def spread(
        self, m_base: Expr, group: Expr, vector: Expr, tile: Expr, at: Expr
    ) -> tuple[Stmt, ...]:
        """The results of one tile and one vector of channels. at: the tile's place in M."""
        a, m, lanes = self.a, self.m, self.lanes
        height, width = self.p.y.dims[2:]
        located, image, row, column = self.all.locate(tile)
        lane = var("l", lanes)
        channel = (group * self.share + vector) * lanes + lane
        bound, base = bind("of", m_base + vector * self.m_vector + at * lanes)
        half = Local("g", self.p.dtype, (m, a), lanes)
        out = Local("y", self.p.dtype, (m, m), lanes)
        cut = Local("z", self.p.dtype, (m, m), lanes)
        body: list[Stmt] = [Declare(half), Declare(out)]
        for c in range(a):
            held = Held(f"s{c}", self.p.dtype, lanes)
            source = [self.mm[base + (r * a + c) * self.m_step + lane] for r in range(a)]
            done = applied(self.maps.result, [held(e) for e in source], held)
            body += held.stmts
            body += [Set(half, (index(r), index(c)), e) for r, e in enumerate(done)]
        for r in range(m):
            held = Held(f"t{r}", self.p.dtype, lanes)
            done = applied(self.maps.result, [half[r, c] for c in range(a)], held)
            body += held.stmts
            body += [Set(out, (index(r), index(c)), e) for c, e in enumerate(done)]

        def stores(i: Expr, j: Expr, value: Expr) -> list[Stmt]:
            swap = self.where(image, channel, row + i, column + j)
            if self.bias is not None:
                value = value + self.bias[channel]
            return [place(s, {**swap, self.acc: value}) for s in self.stores]

        whole = all_of(compare("le", row, height - m), compare("le", column, width - m))
        each = [x for r in range(m) for c in range(m)
                for x in stores(index(r), index(c), out[r, c])]  # fmt: skip
        i, j = var("i", m), var("j", m)
        some: list[Stmt] = [Declare(cut)]
        some += [Set(cut, (index(r), index(c)), out[r, c]) for r in range(m) for c in range(m)]
        some.append(loop(i, (
            loop(j, stores(i, j, cut[i, j]), hi=minimum(width - column, m)),
        ), hi=minimum(height - row, m)))  # fmt: skip
        body.append(If(whole, tuple(each), tuple(some)))
        return (*located, *bound, loop(lane, body, "vector", lanes=lanes))

    def where(self, *actual: Expr) -> dict[Expr, Expr]:
        """The indices of a result for the variables that stores are written in."""
        form = self.form
        names = (*form.outer, form.channel, form.row, form.column)
        return {v: e for v, e in zip(names, actual, strict=True) if v.op == "var"}

    # ---------------------------------------------------------------- loops around it

    @property
    def batches(self) -> int:
        """Sets of tiles that go through all steps together."""
        return -(-self.all.count // self.tiles)

    @property
    def shares(self) -> int:
        """Items of the one phase, each with a V and an M of its own."""
        return shares(self.p, self.config)

    def together(self) -> list[Phase]:
        """One phase: an item takes its tiles, batch by batch, through all steps."""
        each = -(-self.batches // self.config["items"])
        item = var("item", self.shares)
        batch = var("s", self.batches)
        first = batch * self.tiles
        bound, count = bind("count", minimum(self.all.count - first, self.tiles))
        rounds, rows = bind("rows", (count + (self.mr - 1)) // self.mr)
        v_base, m_base = item * self.v_each, item * self.m_each
        t, block = var("t", self.tiles), var("c", self.in_blocks)
        g, xi, panel = var("g", self.groups), var("xi", self.points), var("p", self._panels)
        vector = var("v", self.share)
        step = g * self.points + xi
        body = seq(
            bound, rounds,
            loop(block, (loop(t, self.gather(v_base, block, first + t, t), hi=count),)),
            loop(g, (
                loop(xi, (
                    *(self.ask_inputs(first + self.tiles, step) if each > 1 else ()),
                    *self.ask_results(first, g, xi),
                    loop(panel, self.multiply(v_base, m_base, g, xi, panel, rows)),
                )),
                loop(vector, (
                    loop(t, self.spread(m_base, g, vector, first + t, t), hi=count),
                )),
            )),
        )  # fmt: skip
        lo = item * each
        return [Phase(item.payload[2], item, (
            loop(batch, body, lo=lo, hi=minimum(lo + each, self.batches)),
        ))]  # fmt: skip

    def ask_inputs(self, first: Expr, step: Expr) -> tuple[Stmt, ...]:
        """In each step of the products, ask for a part of the inputs of the next tiles, from
        `first` on. Lines that a tile shares with the one before are asked for with that one."""
        a, m, x = self.a, self.m, self.p.x
        image_step, block_step, row_step, column_step = x.strides[:4]
        top, left = self.p.window.begin

        def hints(at: Expr, block: Expr) -> tuple[Stmt, ...]:
            located, image, row, column = self.all.locate(at)
            corner = (row - top) * row_step + (column - left) * column_step
            bound, base = bind("ahead", image * image_step + block * block_step + corner)
            lines = (r * row_step + c * column_step for r in range(a) for c in range(a - m, a))
            return (*located, *bound, *(Prefetch(self.x, base + k, far=True) for k in lines))

        return self.some(first, self.in_blocks, step, self.groups * self.points, hints)

    def ask_results(self, first: Expr, group: Expr, step: Expr) -> tuple[Stmt, ...]:
        """In each step of the products, ask for a part of the places that their results go to:
        the processor reads a line before it writes to it."""

        def hints(at: Expr, vector: Expr) -> tuple[Stmt, ...]:
            located, image, row, column = self.all.locate(at)
            channel = (group * self.share + vector) * self.lanes
            swaps = [self.where(image, channel, row + i, column + j)
                     for i in range(self.m) for j in range(self.m)]  # fmt: skip
            return (*located, *(Prefetch(s.buffer, substitute(s.offset, swap))
                                for s in self.stores for swap in swaps))  # fmt: skip

        return self.some(first, self.share, step, self.points, hints)

    def some(
        self, first: Expr, vectors: int, step: Expr, steps: int,
        body: Callable[[Expr, Expr], tuple[Stmt, ...]],
    ) -> tuple[Stmt, ...]:  # fmt: skip
        """The part of one step: body(tile, vector) for some of the tiles from `first` on, for all
        vectors in all steps together."""
        units = self.tiles * vectors
        each = -(-units // steps)
        unit = var("a", units)
        tile, at = bind("at", minimum(first + unit % self.tiles, self.all.count - 1))
        lo = minimum(step * each, units)
        inner = (*tile, *body(at, unit // self.tiles))
        return (loop(unit, inner, lo=lo, hi=minimum(step * each + each, units)),)

    @property
    def _panels(self) -> int:
        return self.panels + (self.rest > 0)

    def apart(self) -> list[Phase]:
        """Three phases, each over all tiles."""
        zero, wanted = index(0), self.config["items"]
        t = var("t", self.all.count)
        block, vector = var("c", self.in_blocks), var("v", self.share)
        rows = index(-(-self.all.count // self.mr))
        unit = var("u", self.points * self._panels)
        each = -(-unit.payload[2] // wanted)
        item = var("item", -(-unit.payload[2] // each))
        products = loop(
            unit,
            self.multiply(zero, zero, zero, unit // self._panels, unit % self._panels, rows),
            lo=item * each, hi=minimum(item * each + each, unit.payload[2]),
        )  # fmt: skip
        return [
            _shared(block, t, wanted, self.gather(zero, block, t, t)),
            Phase(item.payload[2], item, (products,)),
            _shared(vector, t, wanted, self.spread(zero, zero, vector, t, t)),
        ]

    @property
    def products(self) -> int:
        """Operations of the multiply-adds; those of the transforms are not counted."""
        return 2 * self.points * self.all.count * self.p.depth * self.p.channels

    def launch(self) -> Launch:
        together = self.config["phases"] == 1
        phases = self.together() if together else self.apart()
        params = self.params
        busy, early = ((self.x,), ()) if together else ((), (self.x,))
        kernel = Kernel(
            Winograd.name, Winograd.version, tuple(sorted(self.config.items())),
            params.buffers, tuple(phases), self.p.flops, params.traffic,
            inplace(params, self.stores, busy, early), self.products,
        )  # fmt: skip
        return Launch(kernel, params.args, ())


class Held:
    """Collects values that are computed once, each in a local of its own."""

    def __init__(self, tag: str, dtype: Any, lanes: int) -> None:
        self.tag, self.dtype, self.lanes = tag, dtype, lanes
        self.stmts: list[Stmt] = []
        self._count = 0

    def __call__(self, value: Expr) -> Expr:
        if value.op == "load" and isinstance(value.payload, Local):
            return value
        self._count += 1
        local = Local(f"{self.tag}_{self._count}", self.dtype, (), self.lanes)
        self.stmts += [Declare(local), Set(local, (), value)]
        return local.value


def all_of(*conditions: Expr) -> Expr:
    """Whether all hold; true of none."""
    found = const(True, boolean)
    for c in conditions:
        found = logical_and(found, c)
    return found


def _shared(outer: Expr, inner: Expr, wanted: int, body: Sequence[Stmt]) -> Phase:
    """A phase of about `wanted` items that share two loops: first the outer, then the inner."""
    n, k = outer.payload[2], inner.payload[2]
    parts = min(n, wanted)
    per_part = -(-n // parts)
    parts = -(-n // per_part)
    slices = min(k, -(-wanted // parts))
    per_slice = -(-k // slices)
    slices = -(-k // per_slice)
    item = var("item", parts * slices)
    lo, start = item // slices * per_part, item % slices * per_slice
    return Phase(parts * slices, item, (
        loop(outer, (
            loop(inner, body, lo=start, hi=minimum(start + per_slice, k)),
        ), lo=lo, hi=minimum(lo + per_part, n)),
    ))  # fmt: skip


@recipe("winograd", in_parts=True, into=True)
def pack_transformed(
    w: Weights, m: int, lanes: int, blocks: int, share: int, vectors: int,
    out: Array | None = None,
) -> Array:  # fmt: skip
    """Transformed weights U of w [O, C, 3, 3] in the order in which they are read: groups of
    `share` vectors of results, in each the points, in each panels of `blocks` vectors (the last may
    have fewer), in each C steps. vectors: how many there are in all; lanes past the last channel
    are zero. Made panel by panel, as U is several times as large as w."""
    o, c = w.shape[:2]
    points = (m + 2) ** 2
    out = room(out, points * c * vectors * lanes, w.dtype)
    whole = out.reshape(vectors // share, points, c * share * lanes)
    for g in range(vectors // share):
        for first in range(0, share, blocks):
            width = min(blocks, share - first) * lanes
            start = (g * share + first) * lanes
            at, n = first * lanes * c, min(max(o - start, 0), width)
            into = whole[g, :, at : at + c * width].reshape(points, c, width)
            into[:, :, n:] = 0
            if not n:
                continue
            wide, step = staged(n, TAPS, w.dtype.itemsize), max(1, PRODUCT // (TAPS * points * n))
            stage = Stage(n, min(wide, c) * TAPS, w.dtype)
            for lo in range(0, c, wide):
                hi = min(lo + wide, c)
                part = stage.rows(n, hi - lo, 3, 3)
                write(w, part, slice(start, start + n), slice(lo, hi))
                for k in range(lo, hi, step):
                    some = part[:, k - lo : k - lo + step].swapaxes(0, 1)
                    into[:, k : min(k + step, hi), :n] = transformed_weights(some, m)
    return out


# --------------------------------------------------------------------------- the template


class Winograd:
    """Convolutions of 3x3 windows that a pass marked with the tile size of Winograd's algorithm, or
    that a config says it for, and the pointwise ops behind them.

    `flops` of its kernels is that of a direct sum, so that rates compare; `own_flops` says how many
    the products at the points take.

    Config: m (results per axis of one tile), tiles (that go through the steps together), mr, nb
    (tiles and vectors of results per register tile), vectors (of results that M holds), phases (1
    or 3), items.
    """

    name = "winograd"
    version = 5

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        p = _group(graph, ops, outputs)
        return p is not None and bool(p.anchor.attr("winograd"))

    def serves(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return _group(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return ranked(_require(graph, ops, outputs), device)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        return ranked(_require(graph, ops, outputs), device)[0]

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        return lean(_require(graph, ops, outputs), device)

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        return estimate(_require(graph, ops, outputs), device, config)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return _Writer(_require(graph, ops, outputs), device, config).launch()


def _group(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup | None:
    p = conv_group(graph, ops, outputs)
    if p is None or p.chosen is not None or p.group != 1 or p.window.kernel != (3, 3):
        return None
    if {*p.window.strides, *p.window.dilations} != {1}:
        return None
    return p if p.x.layout.is_blocked and p.dtype is f32 else None


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup:
    return required(_group(graph, ops, outputs), "Winograd", ops)
