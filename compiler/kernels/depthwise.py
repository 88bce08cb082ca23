"""Depthwise convolution on channel-blocked tensors: every channel has a window of its own.

A tile is `tw` neighbouring places of one vector of channels, whose sums stay in registers. Taps of
outer axes are loops; along columns all taps and places are written out, so that an input vector is
loaded once for all taps that read it. Padding is never read: the loops over outer taps run over
those inside, and tiles at the ends of a row leave out single products (`edges.py`). Each sum adds
its products in row-major order of the taps, whatever the tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, apply, const, index, load, minimum, var
from ...ops.types import row_major_strides
from ..graph.ir import Graph, Op
from ..passes.convolutions import is_depthwise
from .compose import Indices
from .conv_group import ConvGroup, Operands, conv_group, conv_results, formal
from .device import Device
from .edges import Run, runs
from .epilogue import Params, inplace, lowered, place
from .ir import Declare, Kernel, Launch, Local, Phase, Prefetch, Set, Stmt, loop, seq
from .microkernel import LINE, bind
from .recipe import prepared, recipe
from .template import Config, required

WIDEST = 64  # most taps along columns: all of them are written out
INPUT = 1  # registers beside a tile's sums and a row of weights
PRODUCTS = 256  # most products that are written out per tile
LOOKAHEAD = 14  # most places of a part of a row: two tiles are what a core has under way
FAR = 4  # second caches' bytes from which an input comes from memory
ROWS_AHEAD = 2  # rows of results between those that are computed and those whose input is asked for
ITEM_FLOPS = 250_000  # an item takes at least about 2 microseconds
MAX_ITEMS = 32
LOOP, ITEM = 4.0, 500.0  # multiply-add slots of a step of a loop, and to take an item


class _Writer:
    """Writes the kernel of one problem for one config."""

    def __init__(self, p: ConvGroup, device: Device, config: Config) -> None:
        self.p, self.config = p, config
        self.lanes = device.lanes(p.dtype)
        self.outer, self.rows, self.columns = p.places
        self.axes = p.axes
        self.right = runs(self.axes[-1], config["tw"])
        self.params = Params(p.graph)
        self.form = formal(p)
        operands = Operands(p, self.params, self.form.channel)
        self.x = self.params.read(p.source)
        taps, block = p.window.taps, p.block
        self.blocks = -(-p.channels // block)
        packed = prepared((p.anchor.reads[1],), "depthwise", block=block)
        self.w = self.params.prepared(packed, p.dtype, self.blocks * taps * block)
        self.bias = None if p.bias is None else operands.vector(p.bias)
        found = conv_results(p)
        assert found is not None
        self.stores = lowered(self.params, found, p.result, operands)
        self.acc = load(p.result, self.form.at, p.dtype)
        self.count = 0
        rows_apart = self.axes[-2].stride if len(self.axes) > 1 else 1
        self.far = rows_apart > 1 and self.x.nbytes > FAR * device.l2_bytes

    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours of x: image, block, then the axes of places."""
        image, block, *space = self.p.x.strides[: self.p.x.rank]
        if self.p.is_flat or len(space) == 1:
            space = [0, space[-1]]
        return (image, block, *space)

    def tile(
        self, cb: Expr, half: int, outer: Indices, row: Expr, w0: Expr, run: Run
    ) -> list[Stmt]:
        """Places w0.. of a row, for one vector of a channel block."""
        self.count += 1
        tag, dtype, lanes = str(self.count), self.p.dtype, self.lanes
        acc = Local(f"acc{tag}", dtype, (run.size,), lanes)
        held = Local(f"w{tag}", dtype, (self.axes[-1].kernel,), lanes)
        lane, r, t = var("l", lanes), var("r", run.size), var("t", held.shape[0])
        image, block, *space = self.strides()
        *leads, column = self.axes
        base = outer[0] * image + cb * block + half * lanes
        weights = cb * (self.p.window.taps * self.p.block) + half * lanes
        each = self.p.block * column.kernel
        loops: list[tuple[Expr, tuple[Expr, Expr]]] = []
        for k, (axis, o, s) in enumerate(zip(leads, (*outer[1:], row), space, strict=False)):
            v = var(f"k{k}", axis.kernel) if axis.kernel > 1 else index(0)
            base = base + (o * axis.stride + v * axis.dilation - axis.begin) * s
            weights = weights + v * (each * prod(a.kernel for a in leads[k + 1 :]))
            if v.op == "var" or axis.is_padded:
                loops.append((v if v.op == "var" else var(f"k{k}", 1), axis.span(o)))
        step = space[-1]
        declare_x, x_at = bind(f"px{tag}", base + (w0 * column.stride - column.begin) * step)
        declare_w, w_at = bind(f"pw{tag}", weights)

        def vector(*body: Stmt) -> Stmt:
            return loop(lane, body, "vector", lanes=lanes)

        def product(at: Expr, tap: Expr) -> Set:
            x = self.x[x_at + at * (column.stride * step) + tap * (column.dilation * step) + lane]
            return Set(acc, (at,), apply("fma", (x, held[tap], acc[at]), dtype))

        body = [Declare(held), *declare_x, *declare_w]
        body.append(loop(t, (vector(Set(held, (t,), self.w[w_at + t * self.p.block + lane])),),
                         "unroll"))  # fmt: skip
        for places, taps in _products(run):
            at, tap = var("r", len(places), places.start), var("t", len(taps), taps.start)
            body.append(loop(at, (loop(tap, (vector(product(at, tap)),), "unroll"),), "unroll"))
        nest: list[Stmt] = body
        for v, (lo, hi) in reversed(loops):
            nest = [loop(v, nest, lo=lo, hi=hi)]

        channel = cb * self.p.block + (half * lanes + lane)
        bias = const(0, dtype) if self.bias is None else self.bias[channel]
        form = self.form
        names = (*form.outer, form.channel, form.row, form.column)
        actual = (*outer, channel, row, w0 + r)
        swap = {v: e for v, e in zip(names, actual, strict=True) if v.op == "var"}
        done = [place(s, {**swap, self.acc: acc[r]}) for s in self.stores]
        return [
            *(self.later_rows(outer, cb, row, w0, run.size) if half == 0 else ()),
            Declare(acc), loop(r, (vector(Set(acc, (r,), bias)),), "unroll"),
            *nest, loop(r, (vector(*done),), "unroll"),
        ]  # fmt: skip

    def later_rows(
        self, outer: Indices, cb: Expr, row: Expr, w0: Expr, size: int
    ) -> list[Stmt]:  # fmt: skip
        """Ask for what the row after the next reads first, at the places of one tile. Windows that
        move by single rows read no faster for that."""
        if not self.far:
            return []
        *leads, down, right = self.axes
        image, block, *space = self.strides()
        *others, height, width = space
        at = outer[0] * image + cb * block + (w0 * right.stride - right.begin) * width
        for axis, o, s in zip(leads, outer[1:], others, strict=True):
            at = at + (o * axis.stride - axis.begin) * s
        end = (row + ROWS_AHEAD) * down.stride + (down.kernel - 1) * down.dilation + 1 - down.begin
        declare, at = bind(f"later{self.count}", at + end * height)
        rows = range(1, min(down.stride, down.kernel) + 1)
        columns = range(0, size * right.stride * width, LINE // self.p.dtype.bytes)
        return [*declare, *(Prefetch(self.x, at - r * height + c, far=True)
                            for r in rows for c in columns)]  # fmt: skip

    def row(self, cb: Expr, outer: Indices, row: Expr) -> list[Stmt]:
        """All tiles of a row, for all vectors of a channel block."""
        tw = self.config["tw"]
        out = self.ahead(cb, row)
        for half in range(self.p.block // self.lanes):
            for run in self.right:
                if run.count == 1:
                    out += self.tile(cb, half, outer, row, index(run.first * tw), run)
                    continue
                v = var("x", run.count, run.first)
                out.append(loop(v, self.tile(cb, half, outer, row, v * tw, run)))
        return out

    def ahead(self, cb: Expr, row: Expr) -> list[Stmt]:
        """Ask for the weights of the next block, some with every row: they come from far away."""
        each = self.p.window.taps * self.p.block * self.p.dtype.bytes
        lines = -(-each // (LINE * self.rows))
        step = LINE // self.p.dtype.bytes
        at = (cb + 1) * (self.p.window.taps * self.p.block) + row * (lines * step)
        return [Prefetch(self.w, at + k * step) for k in range(lines)]

    def phase(self) -> Phase:
        n, *leads = self.outer
        extents = (n, self.blocks, *leads, self.rows)
        units = prod(extents)
        share = -(-units // min(units, self.config["items"]))
        items = -(-units // share)
        item, u = var("item", items), var("u", units)
        out: list[Stmt] = []
        at: list[Expr] = []
        for k, (d, s) in enumerate(zip(extents, row_major_strides(extents), strict=True)):
            made, i = bind(f"o{k}", u // s % d if k else u // s)
            out += made
            at.append(i)
        body = self.row(at[1], (at[0], *at[2:-1]), at[-1])
        first = item * share
        return Phase(items, item, (
            loop(u, seq(out, body), lo=first, hi=minimum(first + share, units)),
        ))  # fmt: skip

    def launch(self) -> Launch:
        phases = (self.phase(),)
        params = self.params
        kernel = Kernel(
            Depthwise.name, Depthwise.version, tuple(sorted(self.config.items())), params.buffers,
            phases, self.p.flops, params.traffic, inplace(params, self.stores, (self.x,)),
        )  # fmt: skip
        return Launch(kernel, params.args, ())


def _products(run: Run) -> Iterator[tuple[range, range]]:
    """(places, taps) of a tile: neighbouring places at which the same taps are inside."""
    taps = [
        [t for k in run.taps if k.lo <= r < k.hi for t in range(k.first, k.first + k.count)]
        for r in range(run.size)
    ]
    first = 0
    for r in range(1, run.size + 1):
        if r == run.size or taps[r] != taps[first]:
            if taps[first]:
                yield range(first, r), range(taps[first][0], taps[first][-1] + 1)
            first = r


@recipe("depthwise")
def _packed(w: npt.NDArray[Any], block: int) -> npt.NDArray[Any]:
    """Weights [C, 1, taps...] as [block of channels][tap][channel], zeros behind the last."""
    flat = w.reshape(len(w), -1)
    flat = np.pad(flat, ((0, -len(w) % block), (0, 0)))
    return np.ascontiguousarray(flat.reshape(-1, block, flat.shape[1]).swapaxes(1, 2))


# --------------------------------------------------------------------------- the template


class Depthwise:
    """Convolutions of one input and one output channel per group, with constant weights, between
    channel-blocked tensors, with the pointwise ops behind them.

    Config: tw (places per tile), items.
    """

    name = "depthwise_conv"
    version = 2

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return _group(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = _require(graph, ops, outputs)
        first = self.default(graph, ops, outputs, device)
        columns = p.places[2]
        widths = dict.fromkeys(
            w for w in (first["tw"], *(_even(columns, n) for n in (4, 8, 14, 20))) if w <= columns
        )
        items = dict.fromkeys((first["items"], max(1, first["items"] // 2)))
        return [{"tw": tw, "items": n} for tw in widths for n in items]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        p = _require(graph, ops, outputs)
        items = max(1, min(MAX_ITEMS, p.flops // ITEM_FLOPS))
        return {"tw": _width(p, device), "items": items}

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        return _estimate(_require(graph, ops, outputs), device, config)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return _Writer(_require(graph, ops, outputs), device, config).launch()


def _estimate(p: ConvGroup, device: Device, config: Config) -> float:
    """Slots until the last thread is done: products or loads, whichever are more, and what the loop
    over the outer taps costs; a tile of more sums than there are registers keeps some in memory."""
    lanes, column = device.lanes(p.dtype), p.axes[-1]
    slots = 0.0
    for run in runs(column, config["tw"]):
        products = sum(len(places) * len(taps) for places, taps in _products(run))
        loads = (run.size - 1) * column.stride + 2 * column.kernel
        spilled = max(0, run.size + column.kernel + INPUT - device.registers)
        per_row = max(products, loads) + LOOP + 2 * spilled * column.kernel
        leads = prod(a.kernel for a in p.axes[:-1])
        slots += run.count * (leads * per_row + run.size)
    vectors = -(-p.channels // p.block) * (p.block // lanes)
    units = prod(p.places[0]) * -(-p.channels // p.block) * p.places[1]
    share = -(-units // min(units, config["items"]))
    items = -(-units // share)
    busiest = min(1.0, share * -(-items // device.threads) / units)
    rows = vectors * prod(p.places[0]) * p.places[1]
    return slots * rows * busiest + ITEM * items / device.threads


def _width(p: ConvGroup, device: Device) -> int:
    """Places of a tile: a whole row where its sums leave registers for the weights and one input,
    as what is read and written then changes once per row. Longer rows are cut into parts short
    enough for a core to ask for the next one's input while it still computes this one."""
    taps, columns = p.window.kernel[-1], p.places[2]
    written_out = max(1, PRODUCTS // taps)
    if columns <= min(device.registers - INPUT - taps, written_out):
        return columns
    free = max(device.registers - 3 - taps, device.registers // 2)
    return _even(columns, min(free, LOOKAHEAD, written_out))


def _even(extent: int, limit: int) -> int:
    """The size of tiles of at most `limit` places that are as alike as can be."""
    return -(-extent // -(-extent // limit))


def _group(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup | None:
    p = conv_group(graph, ops, outputs)
    if p is None or p.chosen is not None:
        return None
    alike = p.channels == p.x.dims[1] and p.x.layout.order == p.y.layout.order
    fits = alike and is_depthwise(graph, p.anchor) and p.window.kernel[-1] <= WIDEST
    return p if fits else None


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup:
    return required(_group(graph, ops, outputs), "depthwise convolution", ops)
