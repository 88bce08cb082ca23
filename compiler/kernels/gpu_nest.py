"""The general template for GPUs: any group of operators with expressions, one thread per element.

A pointwise operator, a window or a plain contraction is a phase with one item per output element,
and its reductions are loops of that thread. Where elements share a reduction (a softmax, a
normalisation), or where few long ones have to be computed, threads share it, as memory lies: a
block takes a row whose elements are neighbours (`gpu_rows`), or some columns that are neighbours
themselves (`gpu_columns`). Very long ones to few results fall into parts (`gpu_partial`). What is
transposed goes through shared memory (`gpu_squares`).

A contraction that `gpu_tiles` has no tiles for, a product with a vector, say, comes out right, and
most below what the device could do: operands are read from the caches for every multiply-add.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Final

from ...ops.expr import Expr
from ..graph.ir import Graph, Op
from .device import Device
from .gpu_columns import Columns
from .gpu_model import WARP, chip_of
from .gpu_partial import in_steps, parts_of
from .gpu_rows import Rows
from .gpu_sharing import (
    FEW_THREADS,
    columns_each,
    good_each,
    item_loops,
    most_each,
    most_wide,
    shared_each,
    side,
)
from .gpu_squares import squares, transposed
from .gpu_traffic import nest_seconds
from .inplace import overwritable
from .ir import Kernel, Launch, Phase
from .pieces import Buffers, Piece, collapse, operations, pieces, trip_count
from .reductions import reduces
from .template import Config, each_once, traffic

VERSION = 3
THREADS = (32, 64, 128, 256, 512, 1024)  # of a block that computes a row
DOWN, ACROSS = (2, 8, 32), (8, 32)  # of one that computes columns
COLUMN_THREADS = 256
LEAST_LINE = 32  # bytes that threads side by side read at least
LEAST_DOWN, MOST_DOWN = 4, 64  # elements of a column of a thread; threads of a column
BLOCKS = 128  # that leave no multiprocessor idle
SHORT = 32  # rows up to which a thread does as well as a block
CHAIN = 128  # elements that a thread adds up one by one, however few threads there are
USUAL = 256  # threads of a row's block
LONG = 8  # elements of a thread from which a row is worth a larger block
MANY_THREADS = 1 << 16  # that keep a GPU busy with long chains

SQUARE: Final[Config] = {"per": "square", "each": 1}


class GpuNest:
    """Configs: `per`, what computes an item: a "thread"; a "block" of `threads`; a block for
    "columns", with threads `down` and `across` them; or one for a "square". `each`, elements of an
    item side by side; `wide`, neighbours that a thread of a row's block takes at once; `parts` of a
    long reduction.

    one_order: all configs add in the same order, which follows from one element's reduction and
    not from how many elements there are. They differ in who computes which elements.
    """

    name = "gpu_nest"
    version = VERSION

    def __init__(self, *, one_order: bool = False) -> None:
        self.one_order = one_order

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        return all(op.definition.compute is not None for op in ops)

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        whole = _pieces(graph, ops, outputs, Buffers(graph))
        parts = max((parts_of(p, self.one_order) for p in whole), default=1)
        return _with_parts(self._default(whole, parts), parts)

    def _default(self, whole: Sequence[Piece], parts: int) -> Config:
        largest = max(in_steps(whole, parts)[0], key=operations, default=None)
        if largest is None:
            return {"per": "thread", "each": 1}
        return _preferred(largest, self.one_order)

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        default = self.default(graph, ops, outputs, device)
        whole = _pieces(graph, ops, outputs, Buffers(graph))
        found = [default]
        for parts in sorted({1, default.get("parts", 1)}):
            steps, _ = in_steps(whole, parts)
            best = self._default(whole, parts)
            found += [_with_parts(c, parts) for c in (best, *_configs(steps, best))]
        if self.one_order:
            found = [c for c in found if _order(c) == _order(default)]
        return each_once(found)

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        """In seconds (see `gpu_traffic`)."""
        found = _pieces(graph, ops, outputs, _buffers(graph, config))
        return nest_seconds(chip_of(device), in_steps(found, config.get("parts", 1))[0], config)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        buffers = _buffers(graph, config)
        found = _pieces(graph, ops, outputs, buffers)
        steps, scratch = in_steps(found, config.get("parts", 1))
        phases = tuple(_phase(p, config) for p in steps if prod(map(trip_count, p.loops)))
        params, args = buffers.parameters()
        kernel = Kernel(
            self.name, VERSION, tuple(sorted(config.items())), (*params, *scratch), phases,
            sum(map(operations, found)), traffic(graph, params, args),
            overwritable(params, phases),
        )  # fmt: skip
        return Launch(kernel, (*args, *(None for _ in scratch)), ())


class _AlongSums(Buffers):
    """Constants lie as the threads of a block read them: side by side along a reduction."""

    def lower(self, value: Expr, lane: Expr | None) -> Expr:
        found = reduces([value])
        return super().lower(value, found[-1].payload[1][-1] if found else lane)


def _buffers(graph: Graph, config: Config) -> Buffers:
    return _AlongSums(graph) if config["per"] == "block" else Buffers(graph)


def _pieces(
    graph: Graph, ops: Sequence[Op], outputs: Sequence[str], buffers: Buffers
) -> list[Piece]:  # fmt: skip
    return [collapse(p) for p in pieces(graph, ops, outputs, buffers)]


def _phase(piece: Piece, config: Config) -> Phase:
    if config["per"] == "columns" and _outer(piece):
        return Columns(piece, config).phase()
    if config["per"] == "square" and transposed(piece):
        return squares(piece)
    return Rows(piece, config).phase()


# --------------------------------------------------------------------------- who computes what


def _with_parts(config: Config, parts: int) -> Config:
    return {**config, "parts": parts} if parts > 1 else config


def _order(config: Config) -> Config:
    """What decides in which order a config adds."""
    return {k: v for k, v in config.items() if k not in ("each", "across")}


def _outer(piece: Piece) -> list[Expr]:
    """The reductions that threads can share."""
    found = reduces(a.value for a in piece.assignments)
    return [r for r in found if r.free <= set(piece.loops)]


def _length(piece: Piece) -> int:
    """Of the longest of these."""
    return max((prod(map(trip_count, r.payload[1])) for r in _outer(piece)), default=0)


def _configs(found: Sequence[Piece], best: Config) -> list[Config]:
    """Whatever may be worth a try."""
    most = max(map(most_each, found), default=1)
    out: list[Config] = [{"per": "thread", "each": n} for n in sorted({1, 2, most}) if n <= most]
    out += [SQUARE] if any(map(transposed, found)) else []
    shared = [p for p in found if _outer(p)]
    if not shared:
        return out
    wide = sorted({1, *map(most_wide, shared)})
    each = sorted({1, *map(shared_each, shared)})
    length = max(map(_length, shared))
    blocks = [n for n in THREADS if n < 2 * max(length, THREADS[0])]
    out += [{"per": "block", "threads": n, "each": e, "wide": w}
            for n in blocks for e in each for w in wide]  # fmt: skip
    if any(side(p, _outer(p)) < 0 for p in shared):
        each = sorted({1, *map(columns_each, shared)})
        out += [{"per": "columns", "down": d, "across": a, "each": e}
                for d in sorted({*DOWN, best.get("down", 2)}) if d <= max(length, DOWN[0])
                for a in sorted({*ACROSS, best.get("across", 8)}) if WARP <= d * a <= 1024
                for e in each]  # fmt: skip
    return out


def _preferred(piece: Piece, one_order: bool) -> Config:
    """Threads share reductions that elements share, or that are few and long: as rows where
    neighbours along them are neighbours in memory, as columns where that is so across them.
    one_order: whatever their number, unless a thread would take very long."""
    outer = _outer(piece)
    alone = {"per": "thread", "each": good_each(piece)}
    if not outer:
        return SQUARE if transposed(piece) else alone
    count = prod(map(trip_count, item_loops(piece)))
    inside = prod(map(trip_count, piece.loops)) // max(count, 1)
    length, lies = _length(piece), side(piece, outer, one_order)
    if one_order:
        enough = length <= CHAIN
    else:
        length = max(length, inside)
        enough = inside == 1 and count >= (FEW_THREADS if length <= CHAIN else MANY_THREADS)
    short = length <= SHORT
    if short and lies < 0 and inside > 1 and columns_each(piece) > 1:
        short = one_order  # whether columns are neighbours depends on how many there are
    if short or (enough and lies <= 0):
        return alone
    if lies < 0:
        return _columns(piece, length, count, one_order)
    wide = most_wide(piece)
    loads = length // wide
    threads = max(n for n in THREADS if n == WARP or n <= min(loads, USUAL) or n * LONG <= loads)
    return {"per": "block", "threads": threads, "each": shared_each(piece), "wide": wide}


def _columns(piece: Piece, length: int, count: int, one_order: bool) -> Config:
    """As many threads down a column as keep the device busy, or as its length asks for."""
    each = columns_each(piece)
    while each > 1 and count // each * DOWN[-1] < FEW_THREADS:
        each //= 2
    wanted = DOWN[-1] if one_order else min(MANY_THREADS * each // max(count, 1), MOST_DOWN)
    down = _power(max(2, min(wanted, length // LEAST_DOWN)))
    size = each * piece.assignments[0].buffer.dtype.bytes
    least = max(WARP // down, LEAST_LINE // size)  # threads, of a warp or side by side
    across = min(_power(count // each // BLOCKS), COLUMN_THREADS // down)
    return {"per": "columns", "down": down, "across": max(across, least), "each": each}


def _power(n: int) -> int:
    """The largest power of two up to n."""
    return 1 << (max(n, 1).bit_length() - 1)
