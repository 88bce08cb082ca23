"""Direct convolution on channel-blocked tensors.

Rows of the register tile are output places (`th` rows of `tw` neighbours), its lanes are output
channels, and the reduction walks (channel block, taps, channel) of the input where it lies. Weights
are packed once, in exactly the order in which the micro-kernel reads them. A pointwise convolution
is the same kernel on flattened places. Few-channel inputs are read from row-major memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from ...ops.expr import Expr, compare, const, index, load, minimum, var
from ...ops.traverse import substitute, walk
from ...ops.types import TensorType, row_major_strides
from ..errors import LoweringError
from ..graph.ir import Graph, Op
from .compose import Indices
from .conv_group import ConvGroup, Operands, border, conv_group, conv_results, formal, pack_weights
from .device import Device
from .epilogue import Params, inplace, lowered, place
from .ir import (
    Buffer,
    For,
    If,
    Kernel,
    Launch,
    Phase,
    Prefetch,
    Prepared,
    Stmt,
    Store,
    loop,
    seq,
)
from .microkernel import Level, MicroKernel, Panel, Rows, Segment, bind, issue_slots, most_rows
from .template import Config

ITEM_FLOPS = 500_000  # an item takes at least about 5 microseconds
MAX_ITEMS = 16
FILL_ELEMENTS = 16_384  # border elements that one item sets to zero


class _Writer:
    """Writes the kernel of one problem for one config."""

    def __init__(self, p: ConvGroup, device: Device, config: Config) -> None:
        self.p, self.config = p, config
        self.lanes = device.lanes(p.dtype)
        self.outer, self.rows, self.columns = p.places
        self.th, self.tw = config["th"], config["tw"]
        self.blocks = config["nb"]
        self.vectors = -(-p.channels // p.block) * (p.block // self.lanes)
        self.panels, self.rest = divmod(self.vectors, self.blocks)
        self.steps = p.depth * p.window.taps
        self.params = Params(p.graph)
        self.form = formal(p)
        operands = Operands(p, self.params, self.form.channel)
        self.x = self.params.read(p.anchor.reads[0])
        weights = Prepared(
            (p.anchor.reads[1],),
            f"conv lanes={self.lanes} blocks={self.blocks} vectors={self.vectors} "
            f"block={p.x.layout.block}",
            lambda w: pack_weights(w, self.lanes, self.blocks, self.vectors, p.x.layout.block),
        )
        total = self.steps * self.vectors * self.lanes
        self.w = self.params.prepared(weights, p.dtype, total)
        self.bias = None if p.bias is None else operands.vector(p.bias)
        found = conv_results(p)
        assert found is not None
        self.stores = lowered(self.params, found, p.result, operands)
        self.acc = load(p.result, self.form.at, p.dtype)
        self.count = 0

    # ---------------------------------------------------------------- input

    def input_strides(self) -> tuple[int, ...]:
        """Elements between neighbours of x: image, channel (block), spatial axes."""
        return self.p.x.strides[: self.p.x.rank]

    def segments(self) -> list[Segment]:
        window, x, depth = self.p.window, self.p.x, self.p.depth
        _, channel, *space = self.input_strides()
        taps = tuple(
            Level(k, s * d) for k, s, d in zip(window.kernel, space, window.dilations, strict=True)
        )
        block = x.layout.block
        if not block:
            return [Segment((*taps, Level(depth, channel)))]
        full, rest = divmod(depth, block)
        found = []
        if full:
            found.append(Segment((Level(full, channel), *taps, Level(block, 1))))
        if rest:
            start = full * channel, full * block * window.taps
            found.append(Segment((*taps, Level(rest, 1)), *start))
        return found

    def moves(self) -> tuple[int, ...]:
        """Elements of x between neighbouring places: outer axes (image first), rows, columns."""
        image, _, *space = self.input_strides()
        if self.p.is_flat:
            return image, 0, space[-1]
        steps = [s * m for s, m in zip(space, self.p.window.strides, strict=True)]
        return (image, 0, *steps) if len(steps) == 1 else (image, *steps)

    # ---------------------------------------------------------------- one tile

    def tile(
        self, panel: Expr, blocks: int, outer: Indices, h0: Expr, th: int, w0: Expr, tw: int
    ) -> tuple[Stmt, ...]:
        """The tile of th x tw places from (h0, w0), for all channels of a panel."""
        self.count += 1
        group = self.p.block // self.lanes
        micro = MicroKernel(self.p.dtype, self.lanes, (th, tw), blocks, group, str(self.count))
        *leads, down, right = self.moves()
        base = h0 * down + w0 * right
        for i, m in zip(outer, leads, strict=True):
            base = base + i * m
        first = panel * (self.blocks * self.lanes)
        if self.p.group > 1:
            each = self.p.channels // self.p.group
            per = self.p.depth // (self.p.x.layout.block or 1) * self.input_strides()[1]
            base = base + first // each * per
        a = Rows(self.x, base, (down, right))
        b = Panel(self.w, first * self.steps, blocks * self.lanes)

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
            micro.accumulate(a, b, self.segments()), micro.finish(finish),
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
        self, panel: Expr, blocks: int, outer: Indices, h0: Expr, th: int
    ) -> tuple[Stmt, ...]:
        """All tiles of one row of tiles."""
        whole, rest = divmod(self.columns, self.tw)
        out: list[Stmt] = []
        if whole:
            v = var("x", whole)
            out.append(loop(v, self.tile(panel, blocks, outer, h0, th, v * self.tw, self.tw)))
        if rest:
            at = index(whole * self.tw)
            out += self.tile(panel, blocks, outer, h0, th, at, rest)
        return tuple(out)

    def unit(self, panel: Expr, blocks: int, outer: Indices, s: Expr) -> tuple[Stmt, ...]:
        """What is shared out in space: a row of tiles, or one tile where there is one row."""
        if self.rows == 1:
            return split(s, self.columns, self.tw, lambda at, tw: self.tile(
                panel, blocks, outer, index(0), 1, at, tw))  # fmt: skip
        return split(s, self.rows, self.th, lambda at, th: self.across(
            panel, blocks, outer, at, th))  # fmt: skip

    def phase(self) -> Phase:
        along = -(-self.columns // self.tw) if self.rows == 1 else -(-self.rows // self.th)
        units = prod(self.outer) * along
        panels = self.panels + (self.rest > 0)
        wanted = self.config["items"]
        if self.config["order"] == "oc":
            parts = min(panels, wanted)
            shares = min(units, -(-wanted // parts))
        else:
            shares = min(units, wanted)
            parts = min(panels, -(-wanted // shares))
        per_part, per_share = -(-panels // parts), -(-units // shares)
        parts, shares = -(-panels // per_part), -(-units // per_share)
        item = var("item", parts * shares)
        g, u = var("g", panels), var("t", units)
        g_lo, u_lo = item // shares * per_part, item % shares * per_share
        g_range = {"lo": g_lo, "hi": minimum(g_lo + per_part, panels)}
        u_range = {"lo": u_lo, "hi": minimum(u_lo + per_share, units)}

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
            if not self.rest:
                return body(g, self.blocks)
            last = body(index(self.panels), self.rest)
            if not self.panels:
                return last
            return (If(compare("lt", g, self.panels), body(g, self.blocks), last),)

        if self.config["order"] == "oc":
            body: For = loop(g, panel_of(lambda panel, blocks: (
                loop(u, place_of(lambda o, s: self.unit(panel, blocks, o, s)), **u_range),
            )), **g_range)  # fmt: skip
        else:
            body = loop(u, place_of(lambda o, s: (
                loop(g, panel_of(lambda panel, blocks: self.unit(panel, blocks, o, s)), **g_range),
            )), **u_range)  # fmt: skip
        return Phase(item.payload[2], item, (body,))

    def launch(self) -> Launch:
        phases = (self.phase(), *self.borders())
        params = self.params
        pairs = () if self.p.pad is not None else inplace(params, self.stores, (self.x,))
        kernel = Kernel(
            DirectConv.name, DirectConv.version, tuple(sorted(self.config.items())),
            params.buffers, phases, self.p.flops, params.traffic, pairs,
        )  # fmt: skip
        return Launch(kernel, params.args, ())

    # ---------------------------------------------------------------- zeros around the result

    def borders(self) -> list[Phase]:
        if self.p.pad is None:
            return []
        before, behind = border(self.p.graph, self.p.pad)
        name = self.p.pad.outputs[0]
        kind = self.p.graph.type(name)
        return [_frame(self.params.write(name), kind, before[2:], behind[2:])]


def split(
    tile: Expr, extent: int, size: int, body: Callable[[Expr, int], tuple[Stmt, ...]]
) -> tuple[Stmt, ...]:
    """body(start, size) of a tile by its number; the last tile may be smaller."""
    whole, rest = divmod(extent, size)
    if not rest:
        return body(tile * size, size)
    last = body(index(whole * size), rest)
    if not whole:
        return last
    return (If(compare("lt", tile, whole), body(tile * size, size), last),)


def _frame(y: Buffer, kind: TensorType, before: tuple[int, ...], behind: tuple[int, ...]) -> Phase:
    """Zeros in the outermost places of every plane of a blocked tensor. Along each axis two slabs:
    the axes before it run over the interior, those behind it over everything."""
    space = kind.physical_shape[2:]
    strides = row_major_strides(space)
    planes = prod(kind.physical_shape[:2])
    each = prod(space) - prod(
        d - b - e for d, b, e in zip(space, (*before, 0), (*behind, 0), strict=True)
    )
    share = max(1, min(planes, FILL_ELEMENTS // max(each, 1)))
    items = -(-planes // share)
    item, plane = var("item", items), var("p", planes)
    body: list[Stmt] = []
    for a in range(len(before)):
        for lo, hi in ((0, before[a]), (space[a] - behind[a], space[a])):
            if lo == hi:
                continue
            run = var("z", (hi - lo) * strides[a])
            at = plane * prod(space) + lo * strides[a] + run
            loops = []
            for k in range(a):
                v = var(f"q{k}", space[k] - behind[k], 0)
                at = at + v * strides[k]
                loops.append((v, before[k]))
            fill: Stmt = loop(
                run, (Store(y, at, const(0, y.dtype)),), "vector", lanes=kind.layout.block
            )
            for v, start in reversed(loops):
                fill = loop(v, (fill,), lo=start)
            body.append(fill)
    first = item * share
    return Phase(items, item, (
        loop(plane, body, lo=first, hi=minimum(first + share, planes)),
    ))  # fmt: skip


# --------------------------------------------------------------------------- the template


class DirectConv:
    """Convolutions with constant weights into channel-blocked tensors, with the pointwise ops
    behind them and a border of zeros around the result.

    Config: th, tw (places per tile), nb (vectors of output channels per tile), order ("oc": panels
    of weights outermost; "sp": places outermost), items.
    """

    name = "direct_conv"
    version = 1

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return conv_group(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = _require(graph, ops, outputs)
        found = [self.default(graph, ops, outputs, device)]
        taken: dict[int, int] = {}
        items = found[0]["items"]
        for shape in _tiles(p, device):
            taken[shape["nb"]] = taken.get(shape["nb"], 0) + 1
            if taken[shape["nb"]] > 2:
                continue
            for order in ("oc", "sp"):
                for n in dict.fromkeys((items, max(1, items // 2))):
                    config = {**shape, "order": order, "items": n}
                    if config not in found:
                        found.append(config)
        return found

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        p = _require(graph, ops, outputs)
        items = max(1, min(MAX_ITEMS, p.flops // ITEM_FLOPS))
        return {**_tiles(p, device)[0], "order": "oc", "items": items}

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return _Writer(_require(graph, ops, outputs), device, config).launch()


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup:
    p = conv_group(graph, ops, outputs)
    if p is None:
        what = " + ".join(op.operator for op in ops)
        raise LoweringError(f"the direct convolution kernel does not compute {what}")
    return p


def _tiles(p: ConvGroup, device: Device) -> list[Config]:
    """Register tiles, the one that takes the fewest issue slots first."""
    lanes = device.lanes(p.dtype)
    unit = p.block // lanes
    vectors = -(-p.channels // p.block) * unit
    each = p.channels // p.group // lanes
    each_vector = p.depth * p.window.taps * lanes * p.dtype.bytes
    _, rows, columns = p.places
    found: list[tuple[float, Config]] = []
    for nb in range(unit, min(vectors, 4 * max(unit, 1)) + 1, unit):
        limit = most_rows(nb, device.registers)
        if limit < 1 or (p.group > 1 and each % nb):
            continue
        for th, tw in _shapes(rows, columns, limit):
            full, rest = divmod(vectors, nb)
            slots = sum(
                panels * count * issue_slots(h * w, blocks, device, each_vector)
                for blocks, panels in ((nb, full), (rest, min(rest, 1)))
                for count, h, w in _covering(rows, columns, th, tw)
            )
            found.append((slots, {"th": th, "tw": tw, "nb": nb}))
    return [c for _, c in sorted(found, key=lambda f: (f[0], -f[1]["nb"], -f[1]["tw"]))]


def _shapes(rows: int, columns: int, limit: int) -> list[tuple[int, int]]:
    """(th, tw) of at most `limit` places: widths that divide the columns or fill the registers."""
    found = []
    for tw in range(min(columns, limit), 0, -1):
        if columns % tw == 0 or tw >= limit - 3:
            found.append((1, tw))
        found += [(th, tw) for th in range(2, min(rows, limit // tw) + 1)
                  if columns % tw == 0 and (tw == columns or rows % th == 0)]  # fmt: skip
    return found


def _covering(rows: int, columns: int, th: int, tw: int) -> list[tuple[int, int, int]]:
    """(how many, height, width) of the tiles that cover all places."""
    down = [(rows // th, th), (min(rows % th, 1), rows % th)]
    right = [(columns // tw, tw), (min(columns % tw, 1), columns % tw)]
    return [(m * n, h, w) for m, h in down for n, w in right if m * n]
