"""Direct convolution on channel-blocked tensors.

Rows of the register tile are output places (`th` rows of `tw` neighbours), its lanes are output
channels, and the reduction walks (channel block, taps, channel) of the input where it lies. Weights
are packed once, in exactly the order in which the micro-kernel reads them. A pointwise convolution
is the same kernel on flattened places. Few-channel inputs are read from row-major memory.

Padding is never read: tiles at the edges of the input leave out the taps that fall on it
(`edges.py`). What these would add is zero times a weight, so results are those of the padded sum,
but for the sign of a zero and for weights that are infinite or NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

from ...ops.expr import Expr, compare, const, index, load, minimum, var
from ...ops.traverse import substitute, walk
from ...ops.types import row_major_strides
from ..graph.ir import Graph, Op
from .compose import Indices
from .conv_group import ConvGroup, Operands, conv_group, conv_results, formal
from .conv_sharing import Costs, Cut, few_items, shared, units_of
from .conv_tiles import Vectors, tiles, whole_panels
from .device import Device
from .edges import Axis, Run, Taps, runs
from .epilogue import Params, inplace, lowered, place
from .ir import (
    Buffer,
    If,
    Kernel,
    Launch,
    Phase,
    Prefetch,
    Stmt,
    Store,
    loop,
    seq,
)
from .microkernel import LINE, Level, MicroKernel, Panel, Rows, Segment, Then, bind
from .recipe import prepared
from .template import Config, required

PARTIAL = 300  # terms of a partial sum, about; errors grow with the root of it
FEW_TILES = 32  # tiles per visit of a panel; behind more, asking for it costs more than waiting
FEW_STEPS = 200  # of a reduction: up to so many, what is done behind them deserves care
MEMORY_LINE = 8  # multiply-add slots in which one core gets a cache line of a stream from memory


Inside = tuple[Indices, Expr, Sequence[Taps] | None, Sequence[Taps]]
"""Outer indices and row of a tile, and the taps inside along its rows (None for tiles of one row,
where they follow from the place) and its columns."""


class ConvWriter:
    """Writes the kernel of one problem for one config."""

    template = "direct_conv"
    version = 8

    def __init__(self, p: ConvGroup, device: Device, config: Config) -> None:
        self.p, self.config = p, config
        held = Vectors.of(p, device)
        self.lanes, self.together, self.vectors = held.lanes, held.unit, held.count
        self.outer, self.rows, self.columns = p.places
        self.axes = p.axes
        self.th, self.tw = config["th"], config["tw"]
        self.down = runs(self.axes[-2], self.th) if self.th > 1 else (Run(0, self.rows, 1, ()),)
        self.right = runs(self.axes[-1], self.tw)
        self.blocks = config["nb"]
        self.panels, self.rest = divmod(self.vectors, self.blocks)
        self.narrow = int(self.rest > 0)  # panels of `rest` vectors behind the others
        self.steps = p.depth * p.window.taps
        self.params = Params(p.graph)
        self.form = formal(p)
        operands = Operands(p, self.params, self.form.channel)
        self.x = self.params.read(p.source)
        self.far = self.is_far(device)
        self.next = self.next_lines(device)
        self.w = self.weights()
        self.bias = None if p.bias is None else operands.vector(p.bias)
        found = conv_results(p)
        assert found is not None
        self.stores = lowered(self.params, found, p.result, operands)
        self.acc = load(p.result, self.form.at, p.dtype)
        self.count = 0

    # ---------------------------------------------------------------- the reduction

    def weights(self) -> Buffer:
        """The packed weights."""
        p = self.p
        packed = prepared((p.anchor.reads[1],), "conv", lanes=self.lanes, blocks=self.blocks,
                          vectors=self.vectors, block=p.x.layout.block)  # fmt: skip
        return self.params.prepared(packed, p.dtype, self.steps * self.vectors * self.lanes)

    def is_far(self, device: Device) -> bool:
        """Whether a panel does not stay in the first cache, or serves few tiles in it.

        Not where multiply-adds take less time than the weights need to arrive: a core that reads
        one stream and nothing else gets the most out of memory by itself, and hints disturb it.
        """
        p = self.p
        uses = p.flops / (2 * p.channels * p.depth * p.window.taps)
        if uses * self.lanes * p.dtype.bytes < MEMORY_LINE * LINE:
            return False
        panel = self.steps * self.blocks * self.lanes * self.p.dtype.bytes
        _, visit = units_of(self.p, self.config)
        if self.config["order"] == "oc":
            visit *= self.shares()[2]
        return panel > device.l1_bytes or visit <= FEW_TILES

    def next_lines(self, device: Device) -> int:
        """Elements from a tile's input to what is asked for meanwhile, where the input comes from
        beyond the second cache: a few lines of every channel block, which is more streams than the
        machine follows by itself. Pointwise it is the same lines of the next tile; where windows
        overlap or leave gaps, those of the next channel block. With one vector per place, no load
        slots are left for it."""
        large = self.p.x.span * self.p.dtype.bytes > device.l2_bytes
        if not (large and self.p.x.layout.block and self.blocks > 1):
            return 0
        if self.p.window.is_pointwise and {*self.p.window.strides} == {1}:
            return self.tw * self.input_strides()[-1]
        return self.input_strides()[1]

    def shares(self) -> tuple[int, int, int, int]:
        """(panels per part, parts, units of places per share, shares): an item is one of each."""
        units, panels = units_of(self.p, self.config)[0], self.panels + self.narrow
        return *shared(panels, self.config["parts"]), *shared(units, self.config["shares"])

    def first(self, panel: Expr) -> Expr:
        """The first output channel of a panel."""
        return panel * (self.blocks * self.lanes)

    def reduction(
        self, micro: MicroKernel, panel: Expr, base: Expr, moves: tuple[int, int], inside: Inside,
        finish: Then,
    ) -> tuple[Stmt, ...]:  # fmt: skip
        """Add up all products of a tile, and be done with them. base: the offset in x of its first
        place; moves: elements between neighbouring places; inside: what `taps` needs to know of the
        tile."""
        first = self.first(panel)
        if self.p.group > 1:
            each = self.p.channels // self.p.group
            per = self.p.depth // (self.p.x.layout.block or 1) * self.input_strides()[1]
            base = base + first // each * per
        a = Rows(self.x, base, moves, self.next)
        b = Panel(self.w, first * self.steps, micro.blocks * self.lanes, far=self.far)
        segments = self.segments(inside)
        if self.steps <= FEW_STEPS and all(x.is_covered for x in self.axes):
            return micro.accumulate(a, b, segments, then=finish)
        return (*micro.accumulate(a, b, segments), finish(()))

    def input_strides(self) -> tuple[int, ...]:
        """Elements between neighbours of x: image, channel (block), then the axes of places."""
        strides = self.p.x.strides[: self.p.x.rank]
        space = strides[2:]
        if self.p.is_flat or len(space) == 1:
            space = (0, space[-1])
        return (*strides[:2], *space)

    def segments(self, inside: Inside) -> list[Segment]:
        """The reduction of a tile: the taps that lie inside the input."""
        depth, block, taps = self.p.depth, self.p.x.layout.block, self.p.window.taps
        channel = self.input_strides()[1]
        if not block:
            return self.taps(Level(depth, channel), inside)
        full, rest = divmod(depth, block)
        found = []
        if full:
            inner = self.taps(Level(block, 1), inside)
            # Counted in taps of the whole window, so that all tiles add in the same order.
            partial = max(1, PARTIAL // (block * taps))
            found += [replace(s, partial=partial)
                      for s in around(Level(full, channel, block * taps), inner)]  # fmt: skip
        if rest:
            inner = self.taps(Level(rest, 1), inside)
            found += around(Level(1, 0), inner, full * channel, full * block * taps)
        return found

    def taps(self, step: Level, inside: Inside) -> list[Segment]:
        """All taps inside the input, around the loop over channels `step`."""
        lead, h0, rows, columns = inside
        gaps = [s * a.dilation for s, a in zip(self.input_strides()[2:], self.axes, strict=True)]
        *_, down, right = gaps
        each = step.count
        row = each * self.axes[-1].kernel

        def across(lo: int, hi: int) -> list[Segment]:
            return [
                Segment((Level(t.count, right, each), step), t.first * right, t.first * each,
                        rows=((lo, hi), (t.lo, t.hi)))
                for t in columns
            ]  # fmt: skip

        if rows is None:
            found = around(_taps_at(self.axes[-2], h0, down, row), across(0, 1))
        else:
            found = [
                s for t in rows
                for s in around(Level(t.count, down, row), across(t.lo, t.hi),
                                t.first * down, t.first * row)
            ]  # fmt: skip
        ahead = row * self.axes[-2].kernel
        for axis, at, gap in reversed(list(zip(self.axes, lead, gaps, strict=False))):
            found = around(_taps_at(axis, at, gap, ahead), found)
            ahead *= axis.kernel
        return found

    # ---------------------------------------------------------------- one tile

    def tile(
        self, panel: Expr, blocks: int, outer: Indices, h0: Expr, down: Run, w0: Expr, right: Run
    ) -> tuple[Stmt, ...]:
        """The tile of places from (h0, w0), for all channels of a panel. down, right: what is known
        of its rows and columns."""
        self.count += 1
        shape = (down.size, right.size)
        micro = MicroKernel(self.p.dtype, self.lanes, shape, blocks, self.together,
                            str(self.count))  # fmt: skip
        image, _, *space = self.input_strides()
        moves = [s * a.stride for s, a in zip(space, self.axes, strict=True)]
        base = outer[0] * image
        for i, m, s, axis in zip((*outer[1:], h0, w0), moves, space, self.axes, strict=True):
            base = base + (i * m - axis.begin * s)
        first = self.first(panel)
        rows = None if self.th == 1 else down.taps

        def where(r: Indices, j: Expr, lane: Expr) -> dict[Expr, Expr]:
            form = self.form
            actual = (*outer, first + j * self.lanes + lane, h0 + r[0], w0 + r[1])
            names = (*form.outer, form.channel, form.row, form.column)
            return {v: e for v, e in zip(names, actual, strict=True) if v.op == "var"}

        def start(r: Indices, j: Expr, lane: Expr) -> Expr:
            if self.bias is None:
                return const(0, self.p.dtype)
            return self.bias[first + j * self.lanes + lane]

        def finish(r: Indices, j: Expr, lane: Expr, value: Expr) -> list[Store]:
            swap = where(r, j, lane)
            return [place(s, {**swap, self.acc: value}) for s in self.stores]

        return seq(
            self.prefetch(micro, where), micro.start(start),
            self.reduction(micro, panel, base, (moves[-2], moves[-1]),
                           (outer[1:], h0, rows, right.taps),
                           lambda rows: micro.finish(finish, rows=rows)),
        )  # fmt: skip

    def prefetch(
        self, micro: MicroKernel, where: Callable[[Indices, Expr, Expr], dict[Expr, Expr]]
    ) -> tuple[Stmt, ...]:
        """Ask for the values that join the result, of its own size, before the reduction starts."""
        like = {
            n for s in self.stores for n in walk(s.value)
            if n.op == "load" and isinstance(n.payload, Buffer) and n.payload.role == "in"
            and n.payload.elements >= self.p.y.size
        }  # fmt: skip
        if not like:
            return ()

        def hints(r: Indices, j: Expr) -> list[Stmt]:
            swap = where(r, j, index(0))
            return [Prefetch(n.payload, substitute(n.args[0], swap))
                    for n in sorted(like, key=repr)]  # fmt: skip

        return (micro.each_row(
            lambda r: micro.each_block(lambda j: hints(r, j), micro.blocks)
        ),)  # fmt: skip

    # ---------------------------------------------------------------- loops around it

    def across(
        self, panel: Expr, blocks: int, outer: Indices, h0: Expr, down: Run
    ) -> tuple[Stmt, ...]:
        """All tiles of one row of tiles."""
        out: list[Stmt] = []
        for run in self.right:
            if run.count == 1:
                out += self.tile(panel, blocks, outer, h0, down, index(run.first * self.tw), run)
                continue
            v = var("x", run.count, run.first)
            out.append(loop(v, self.tile(panel, blocks, outer, h0, down, v * self.tw, run)))
        return tuple(out)

    def unit(self, panel: Expr, blocks: int, outer: Indices, s: Expr) -> tuple[Stmt, ...]:
        """What is shared out in space: a row of tiles, or one tile where there is one row."""
        if self.rows == 1:
            return choose(s, self.right, self.tw, lambda at, run: self.tile(
                panel, blocks, outer, index(0), self.down[0], at, run))  # fmt: skip
        return choose(s, self.down, self.th, lambda at, run: self.across(
            panel, blocks, outer, at, run))  # fmt: skip

    def phase(self) -> Phase:
        along = -(-self.columns // self.tw) if self.rows == 1 else -(-self.rows // self.th)
        units = prod(self.outer) * along
        panels = self.panels + self.narrow
        per_part, parts, per_share, shares = self.shares()
        item = var("item", parts * shares)
        g, u = var("g", panels), var("t", units)
        if self.config["items"] == "oc":
            part, share = item // shares, item % shares
        else:
            part, share = item % parts, item // parts
        g_lo, u_lo = part * per_part, share * per_share
        g_hi, u_hi = minimum(g_lo + per_part, panels), minimum(u_lo + per_share, units)

        def place_of(body: Callable[[Indices, Expr], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
            """Split a unit into the outer indices and the place along rows."""
            if prod(self.outer) == 1:
                return body(tuple(index(0) for _ in self.outer), u)
            out: list[Stmt] = []
            found = []
            for k, (d, step) in enumerate(
                zip(self.outer, row_major_strides(self.outer), strict=True)
            ):
                made, i = bind(f"o{k}", u // (step * along) % d)
                out += made
                found.append(i)
            made, s = bind("s", u % along)
            return seq(out, made, body(tuple(found), s))

        def panel_of(body: Callable[[Expr, int], tuple[Stmt, ...]]) -> tuple[Stmt, ...]:
            if not self.narrow:
                return body(g, self.blocks)
            last = body(g if self.narrow > 1 else index(self.panels), self.rest)
            if not self.panels:
                return last
            return (If(compare("lt", g, self.panels), body(g, self.blocks), last),)

        if self.config["order"] == "oc":
            body = loop(g, panel_of(lambda panel, blocks: (
                loop(u, place_of(lambda o, s: self.unit(panel, blocks, o, s)), lo=u_lo, hi=u_hi),
            )), lo=g_lo, hi=g_hi)  # fmt: skip
        else:
            body = loop(u, place_of(lambda o, s: (
                loop(g, panel_of(lambda panel, blocks: self.unit(panel, blocks, o, s)),
                     lo=g_lo, hi=g_hi),
            )), lo=u_lo, hi=u_hi)  # fmt: skip
        return Phase(item.payload[2], item, (body,))

    def launch(self) -> Launch:
        phase, params = self.phase(), self.params
        kernel = Kernel(
            self.template, self.version, tuple(sorted(self.config.items())),
            params.buffers, (phase,), self.p.flops, params.traffic,
            inplace(params, self.stores, (self.x,)),
        )  # fmt: skip
        return Launch(kernel, params.args, ())


def around(
    level: Level, inner: Sequence[Segment], a_start: int = 0, b_start: int = 0
) -> list[Segment]:
    """A loop around segments; none around none."""
    if len(inner) != 1:
        return [Segment((level,), a_start, b_start, tuple(inner))] if inner else []
    (s,) = inner
    return [replace(s, levels=(level, *s.levels), a_start=s.a_start + a_start,
                    b_start=s.b_start + b_start)]  # fmt: skip


def _taps_at(axis: Axis, place: Expr, gap: int, ahead: int) -> Level:
    """The loop over the taps of an axis that lie inside the input at one place. gap: elements
    between them; ahead: steps of the weights."""
    return Level(axis.kernel, gap, ahead, axis.span(place) if axis.is_padded else None)


def choose(
    tile: Expr, of: Sequence[Run], size: int, body: Callable[[Expr, Run], tuple[Stmt, ...]]
) -> tuple[Stmt, ...]:
    """body(start, run) of the tile with a number known only at run time."""
    run, *others = of
    made = body(index(run.first * size) if run.count == 1 else tile * size, run)
    if not others:
        return made
    inside = compare("lt", tile, run.first + run.count)
    return (If(inside, made, choose(tile, others, size, body)),)


# --------------------------------------------------------------------------- the template


class DirectConv:
    """Convolutions with constant weights into channel-blocked tensors, with the pointwise ops
    behind them.

    Config: th, tw (places per tile), nb (vectors of output channels per tile); parts, shares,
    items, order (as in `conv_sharing.Cut`).
    """

    name = ConvWriter.template
    version = ConvWriter.version

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        p = conv_group(graph, ops, outputs)
        return p is not None and p.has_whole_groups

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = _require(graph, ops, outputs)
        found = [self.default(graph, ops, outputs, device)]
        taken: dict[int, int] = {}
        for shape in _tiles(p, device):
            taken[shape["nb"]] = taken.get(shape["nb"], 0) + 1
            if taken[shape["nb"]] > 2:
                continue
            costs = _costs(p, device, shape)
            for cut in costs.some(few_items(p, device)):
                config = {**shape, **cut.config}
                if config not in found:
                    found.append(config)
        return found

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        p = _require(graph, ops, outputs)
        tile = _tiles(p, device)[0]
        return {**tile, **_costs(p, device, tile).best(few_items(p, device)).config}

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        return _costs(_require(graph, ops, outputs), device, config).cost(Cut.of(config))

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return ConvWriter(_require(graph, ops, outputs), device, config).launch()


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup:
    return required(conv_group(graph, ops, outputs), "direct convolution", ops)


def _tiles(p: ConvGroup, device: Device) -> list[Config]:
    return tiles(p, device, lambda nb: whole_panels(p, device, nb))


def _costs(p: ConvGroup, device: Device, tile: Config) -> Costs:
    return Costs.of(p, device, tile, whole_panels(p, device, tile["nb"]))
