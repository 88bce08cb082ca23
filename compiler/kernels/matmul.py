"""Matrix products: packed panels of the right operand, scalars of the left one where it lies.

The left operand is read in place when its offset is affine in row and column (any strides: views,
transposes and slices in front of the product cost nothing). The right operand is packed into panels
as wide as the register tile: once at link time when it is constant, in a phase of its own when it
is not, or not at all when few rows would use it. Batch axes of a left operand that meets one matrix
are rows. Blocks along K go through the output, which holds the running sums between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy.typing as npt

from ...ops.expr import Expr, compare, floordiv, index, load, minimum, var
from ...ops.traverse import substitute
from ..graph.ir import Graph, Op
from .compose import Indices
from .device import Device
from .epilogue import Params, inplace, lowered, place
from .ir import If, Kernel, Launch, Phase, Stmt, Store, loop, seq
from .matmul_group import (
    MatmulGroup,
    matmul_group,
    matmul_results,
)
from .matmul_operands import PAGE, Operands
from .microkernel import (
    Level,
    MicroKernel,
    Panel,
    Rows,
    Segment,
    Stream,
    issue_slots,
    most_rows,
)
from .template import Config, each_once, required

Array = npt.NDArray[Any]
ITEM_FLOPS = 500_000  # an item takes at least about 5 microseconds
MAX_ITEMS = 16
PACK_ROWS = 32  # fewer rows read a right operand that is not constant where it lies
MANY_ROWS = 128  # more rows read a panel often enough for blocks along K to pay
WIDE_BLOCKS = 8  # blocks of the widest tile, for few rows
DEPTH = 512  # steps of the reduction in one block of K
AHEAD = 4096  # bytes between what a lone tile reads and what it asks for
STREAMED = 4  # second caches' bytes from which a right operand comes from memory in every call
COLD_LINE = 9.0  # multiply-add slots in which one core gets a cache line of it
BURST = 0.4  # more to wait for each vector beside one in a panel: memory serves bursts worse
COLD_ROW = 0.65  # slots per row and step of the left operand, whose loads queue behind those
FAR_ROW = 0.15  # slots per row and step where the left operand does not stay in the second cache
CHAINS = 2  # vectors of sums that a row feeds at least; loads allow for hardly more
LONG = 64  # steps of a reduction that is worth more than one sum per element
# Slots: of a line of a packed operand from the second cache, and for making it; of a vector of sums
# that rests in the output between blocks of K; of an item.
NEAR_LINE, PACK_LINE, KEPT_SUM, ITEM = 0.8, 6.0, 3.0, 500.0
LINE = 64  # bytes per line of the caches
OTHER_WAYS = 2  # lines of a set that are left to what is not the left operand


@dataclass(frozen=True, slots=True)
class _Shares:
    """An item takes one of `outer` parts of the batches, one of `parts` of the panels and one of
    `shares` of the tiles; the field in front of each says how many that are."""

    per_batch: int
    outer: int
    per_part: int
    parts: int
    per_share: int
    shares: int

    @classmethod
    def of(cls, p: MatmulGroup, config: Config, lanes: int) -> _Shares:
        batches, tiles = prod(p.batch), -(-p.m // config["mr"])
        panels = -(-p.n // (config["nb"] * lanes))
        wanted = config["items"]
        outer = min(batches, wanted)
        left = -(-wanted // outer)
        by_panel = config["order"] == "n"
        first = min(panels if by_panel else tiles, left)
        second = min(tiles if by_panel else panels, -(-left // first))
        parts, shares = (first, second) if by_panel else (second, first)
        each = -(-batches // outer), -(-panels // parts), -(-tiles // shares)
        return cls(each[0], -(-batches // each[0]), each[1], -(-panels // each[1]),
                   each[2], -(-tiles // each[2]))  # fmt: skip


class _Writer(Operands):
    """Writes the kernel of one problem for one config."""

    def __init__(self, p: MatmulGroup, device: Device, config: Config) -> None:
        self.shares = _Shares.of(p, config, device.lanes(p.dtype))
        items = self.shares.outer * self.shares.parts * self.shares.shares
        super().__init__(p, device, config, Params(p.graph), item=var("item", items))
        self.mr = config["mr"]
        self.chains = _chains(p, device)
        self.count = 0
        busy = self.params.buffers
        found = matmul_results(p)
        assert found is not None
        self.stores = lowered(self.params, found, p.result)
        self.acc = load(p.result, p.result_at(self.q, self.m, self.n), p.dtype)
        self.chunk = self._chunk()
        self.pairs = () if self.chunk < p.k else inplace(self.params, self.stores, busy)

    def _chunk(self) -> int:
        """Steps of the reduction per block of K. Sums between blocks need an output to rest in."""
        whole = len(self.stores) > 1 or self.stores[0].buffer.dtype is not self.p.dtype
        whole = whole or self.chains > 1  # which of them a step feeds must not depend on the config
        return self.p.k if whole else min(self.config["kc"] or self.p.k, self.p.k)

    # ---------------------------------------------------------------- one tile

    def tile(
        self, g: Expr, blocks: int, tail: int, m0: Expr, rows: int, k0: Expr, depth: int, last: bool
    ) -> tuple[Stmt, ...]:
        """`rows` rows from m0 of a panel, over `depth` steps of the reduction from k0."""
        self.count += 1
        micro = MicroKernel(self.p.dtype, self.lanes, (rows,), blocks, tag=str(self.count),
                            chains=self.chains)  # fmt: skip
        a = Rows(self.left.buffer, self.left.base + m0 * self.left.row + k0 * self.left.step,
                 (self.left.row,))  # fmt: skip
        first = g * self.width
        if self.right.packed:
            step = blocks * self.lanes
            panel = index(0) if self.fill else first * self.p.k
            at = self.right.base + panel + k0 * step
            b = Panel(self.right.buffer, at, step)
        else:
            at = self.right.base + first + k0 * self.right.step
            b = Panel(self.right.buffer, at, self.right.step, tail)

        def where(r: Indices, j: Expr, lane: Expr) -> dict[Expr, Expr]:
            swap = {self.m: m0 + r[0], self.n: first + j * self.lanes + lane}
            return {v: e for v, e in swap.items() if v.op == "var"}

        def sums(r: Indices, j: Expr, lane: Expr) -> Expr:
            y = self.stores[0]
            return y.buffer[substitute(y.offset, where(r, j, lane))]

        def rest(r: Indices, j: Expr, lane: Expr, value: Expr) -> list[Store]:
            y = self.stores[0]
            return [Store(y.buffer, substitute(y.offset, where(r, j, lane)), value)]

        def finish(r: Indices, j: Expr, lane: Expr, value: Expr) -> list[Store]:
            swap = where(r, j, lane)
            return [place(s, {**swap, self.acc: value}) for s in self.stores]

        start: tuple[Stmt, ...] = micro.start()
        if last and depth < self.p.k:
            start = micro.start(sums, tail)
        elif not last:
            again = If(compare("lt", index(0), k0), (micro.restart(sums, tail),))
            start = (*start, again)
        segment = Segment((Level(depth, self.left.step),))
        return seq(start, micro.accumulate(a, b, [segment], self._soon(b, m0, depth)),
                   micro.finish(finish if last else rest, tail))  # fmt: skip

    def _soon(self, b: Panel, m0: Expr, depth: int) -> Stream | None:
        """What a tile brings into the caches: its part of the next panel, or, where one tile is all
        that a panel is read for, what comes a little later in the same."""
        tiles = -(-self.p.m // self.mr)
        if not self.right.packed or self.fill or (tiles > 1 and self.config["order"] != "n"):
            return None
        if tiles == 1:
            return Stream(b.buffer, b.base + AHEAD // self.p.dtype.bytes, b.step)
        part = -(-b.step // tiles)
        start = b.base + b.step * self.p.k + floordiv(m0, self.mr) * (part * depth)
        return Stream(b.buffer, start, part)

    def rows(
        self, g: Expr, blocks: int, tail: int, s: Expr, k0: Expr, depth: int, last: bool
    ) -> tuple[Stmt, ...]:
        """Tile number s of a panel; the last may have fewer rows."""
        whole, rest = divmod(self.p.m, self.mr)
        full = self.tile(g, blocks, tail, s * self.mr, self.mr, k0, depth, last) if whole else ()
        if not rest:
            return full
        less = self.tile(g, blocks, tail, index(whole * self.mr), rest, k0, depth, last)
        if not whole:
            return less
        return (If(compare("lt", s, whole), full, less),)

    # ---------------------------------------------------------------- loops around it

    def phase(self) -> Phase:
        each = self.shares
        batches, tiles = prod(self.p.batch), -(-self.p.m // self.mr)
        panels = self.panels + (self.rest_blocks > 0)
        item = self.item
        g, s = var("g", panels), var("t", tiles)
        g_lo = floordiv(item, each.shares) % each.parts * each.per_part
        s_lo = item % each.shares * each.per_share
        q_lo = floordiv(item, each.shares * each.parts) * each.per_batch

        def sweep(k0: Expr, depth: int, last: bool) -> tuple[Stmt, ...]:
            def columns(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
                packing = self.fill(self.q, g) if self.fill else ()
                return (loop(g, seq(packing, body), lo=g_lo,
                             hi=minimum(g_lo + each.per_part, panels)),)  # fmt: skip

            def down(body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
                return (loop(s, body, lo=s_lo, hi=minimum(s_lo + each.per_share, tiles)),)

            if self.config["order"] == "n":
                return columns(self.either(g, lambda panel, blocks, tail: down(
                    self.rows(panel, blocks, tail, s, k0, depth, last))))  # fmt: skip
            return down(columns(self.either(g, lambda panel, blocks, tail: self.rows(
                panel, blocks, tail, s, k0, depth, last))))  # fmt: skip

        body = self._blocks_of_k(sweep)
        if self.q.op == "var":
            hi = minimum(q_lo + each.per_batch, batches)
            body = (loop(self.q, body, lo=q_lo, hi=hi),)
        return Phase(item.payload[2], item, body)

    def _blocks_of_k(
        self, sweep: Callable[[Expr, int, bool], tuple[Stmt, ...]]
    ) -> tuple[Stmt, ...]:
        count = -(-self.p.k // self.chunk) - 1
        if count == 0:
            return sweep(index(0), self.p.k, True)
        kb = var("kb", count)
        start = count * self.chunk
        first = loop(kb, sweep(kb * self.chunk, self.chunk, False))
        return (first, *sweep(index(start), self.p.k - start, True))

    def launch(self) -> Launch:
        phases = (*self.packing, self.phase())
        params = self.params
        kernel = Kernel(
            Gemm.name, Gemm.version, tuple(sorted(self.config.items())), params.buffers, phases,
            self.p.flops, params.traffic, self.pairs,
        )  # fmt: skip
        return Launch(kernel, params.args, ())


# --------------------------------------------------------------------------- the template


class Gemm:
    """Matrix products with the ops around them.

    Config: mr, nb (rows and vectors per tile), kc (steps of the reduction per block, 0 for all),
    order ("n": panels outermost; "m": rows outermost), items, pack (of a right operand that is not
    constant, as in `Operands`).
    """

    name = "gemm"
    version = 4

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return matmul_group(graph, ops, outputs) is not None

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = _require(graph, ops, outputs)
        found = [_default(p, device)]
        items, pack = found[0]["items"], found[0]["pack"]
        one = p.k <= DEPTH or p.m < PACK_ROWS or _chains(p, device) > 1
        depths = [0] if one else [0, DEPTH // 2, DEPTH]
        for kc in depths:
            for shape in _tiles(p, device)[: 6 if kc == 0 else 2]:
                for order in ("n", "m") if _has_order(p, device, shape) else ("n",):
                    found.append({**shape, "kc": kc, "order": order, "items": items, "pack": pack})
        if items > 1:
            found.append({**found[0], "items": -(-items // 2)})
        if not p.constant:
            found.append({**found[0], "pack": not pack})
        return each_once(found)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        return _default(_require(graph, ops, outputs), device)

    def lean(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        """Without blocks of K results may take the place of operands. Of a right operand that
        changes, items pack one panel at a time, one item per thread, one in all; at last a narrow
        panel."""
        first = self.default(graph, ops, outputs, device)
        whole = {**first, "kc": 0}
        found = [whole]
        if first["pack"]:
            own = {**whole, "pack": "item", "items": min(first["items"], device.threads)}
            found += [{**first, "pack": False}, own, {**own, "items": 1},
                      {**own, "items": 1, "nb": 1}]  # fmt: skip
        return each_once([first, *found])[1:]

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


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> MatmulGroup:
    return required(matmul_group(graph, ops, outputs), "matrix product", ops)


def _has_order(p: MatmulGroup, device: Device, shape: Config) -> bool:
    """Whether there are several panels and several tiles of rows: otherwise orders are the same."""
    return p.m > shape["mr"] and p.n > shape["nb"] * device.lanes(p.dtype)


def _default(p: MatmulGroup, device: Device) -> Config:
    # few rows wait for memory, so that less arithmetic takes as long
    work = p.flops * max(1, 16 // p.m)
    return {
        **_tiles(p, device)[0],
        "kc": _depth(p),
        "order": "n",
        "items": max(1, min(MAX_ITEMS, work // ITEM_FLOPS)),
        "pack": not p.constant and p.m >= PACK_ROWS,
    }


def _chains(p: MatmulGroup, device: Device) -> int:
    """Sums per element: so many that one row alone feeds CHAINS of them. More rows would not need
    them, but a sample's result must not depend on how many others it comes with."""
    vectors = -(-p.n // device.lanes(p.dtype))
    return max(1, CHAINS // vectors) if p.k >= LONG else 1


def _depth(p: MatmulGroup) -> int:
    """Steps per block of K in the default config; 0 for all of them."""
    return DEPTH if p.k > 2 * DEPTH and p.m > MANY_ROWS else 0


def _tiles(p: MatmulGroup, device: Device) -> list[Config]:
    """Register tiles, the one that takes the fewest issue slots first; one per number of blocks."""
    vectors = -(-p.n // device.lanes(p.dtype))
    best: dict[int, tuple[float, Config]] = {}
    for nb in range(1, min(vectors, WIDE_BLOCKS) + 1):
        limit = min(most_rows(nb, device.registers, _chains(p, device)), p.m)
        for mr in range(limit, max(0, limit - 5), -1):
            slots = _tile_slots(p, device, mr, nb, _depth(p))
            if nb not in best or slots < best[nb][0]:
                best[nb] = slots, {"mr": mr, "nb": nb}
    return [c for _, c in sorted(best.values(), key=lambda f: (f[0], -f[1]["nb"]))]


def _tile_slots(p: MatmulGroup, device: Device, mr: int, nb: int, depth: int) -> float:
    """Multiply-add slots of all register tiles of one matrix. depth: steps per block of K."""
    lanes, chains = device.lanes(p.dtype), _chains(p, device)
    vectors = -(-p.n // lanes)
    each_vector = (depth or p.k) * lanes * p.dtype.bytes
    # rows that lie a multiple of a page apart compete for the same few sets of the first cache
    step = p.k * p.dtype.bytes
    distinct = max(1, PAGE // math.gcd(PAGE, step)) if step % LINE == 0 else PAGE
    far = FAR_ROW if 2 * p.m * step > device.l2_bytes else 0.0
    streamed = p.constant and p.n * step > STREAMED * device.l2_bytes

    def tile(rows: int, blocks: int, first: bool) -> float:
        if first and streamed:
            return cold_slots(rows, blocks, lanes * p.dtype.bytes / LINE)
        return issue_slots(rows, blocks, device, each_vector, chains) + far * rows

    whole, rest = divmod(p.m, mr)
    slots = p.k * sum(
        wide * (tile(mr, blocks, True) + (whole - 1) * tile(mr, blocks, False)
                + (tile(rest, blocks, False) if rest else 0.0))
        for wide, blocks in ((vectors // nb, nb), (min(vectors % nb, 1), vectors % nb))
    )  # fmt: skip
    return slots * (1.5 if mr > (device.l1_ways - OTHER_WAYS) * distinct else 1)


def cold_slots(rows: int, blocks: int, lines: float) -> float:
    """Multiply-add slots of one reduction step of the first tile on a panel that comes from memory,
    `lines` cache lines a vector: its work, and what it waits for the panel.

    So few rows want to be one tile, and very few of them panels of one vector. The weights were
    fitted to products of 1 to 16 rows on one core of a Zen 4, within 15 %.
    """
    work = rows * blocks + COLD_ROW * rows
    wait = max(0.0, COLD_LINE * lines * blocks - work)
    return work + wait * (1 + BURST * (blocks - 1))


def _estimate(p: MatmulGroup, device: Device, config: Config) -> float:
    """Slots until the last thread is done: arithmetic or the stream of the right operand, whichever
    takes longer, then what blocks along K, packing and the order of loops add."""
    lanes, size, threads = device.lanes(p.dtype), p.dtype.bytes, device.threads
    mr, nb, matrices = config["mr"], config["nb"], prod(p.batch)
    tiles, panels = -(-p.m // mr), -(-p.n // (nb * lanes))
    shares = _Shares.of(p, config, lanes)
    items = shares.outer * shares.parts * shares.shares
    each = (shares.per_batch / matrices) * (shares.per_part / panels) * (shares.per_share / tiles)
    busiest = min(1.0, each * -(-items // threads))
    right = p.k * -(-p.n // lanes) * lanes * size / LINE  # lines of one packed matrix
    # Panels outermost, each is read from far away once; rows outermost, once for every tile.
    again = config["order"] == "m" and right * LINE > device.l2_bytes
    stream = COLD_LINE * right * (shares.per_share if again else 1)
    slots = max(_tile_slots(p, device, mr, nb, config["kc"]), stream)
    if config["order"] == "m":
        slots += NEAR_LINE * right * tiles
    if config["kc"]:
        slots += KEPT_SUM * p.m * -(-p.n // lanes) * (-(-p.k // config["kc"]) - 1)
    if not p.constant and config["pack"]:
        slots += PACK_LINE * right
    return slots * matrices * busiest + ITEM * items / threads
