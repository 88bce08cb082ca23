"""Convolutions whose groups share channel blocks, or whose input channels are picked from others.

The register tile and the loops around it are those of the direct convolution. What differs is the
walk over the input: a vector of output channels reads the channels of every group that it has lanes
in, each by its own offset, from a table. Weights of channels that a lane's group does not have are
zeros. So groups may begin anywhere, several small ones make one dense block, and a permutation of
the channels (a channel shuffle) costs nothing: it is in the table.

A zero weight times an infinity is not a number: where an input holds infinities, so may other
groups that share a vector with its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, index, var
from ...ops.types import i64
from ..errors import LoweringError
from ..graph.arrays import aligned_empty
from ..graph.ir import Graph, Op
from .conv import ITEM_FLOPS, MAX_ITEMS, ConvWriter, Inside, tiles
from .conv_group import ConvGroup, conv_group
from .device import Device
from .ir import Buffer, Launch, Prepared, Stmt, loop, seq
from .microkernel import Level, MicroKernel, Panel, Rows, bind
from .template import Config

Array = npt.NDArray[Any]


def reads(p: ConvGroup, lanes: int, blocks: int) -> list[range]:
    """The groups that every panel of `blocks` vectors of output channels has lanes in."""
    each = p.channels // p.group
    found = []
    for first in range(0, -(-p.channels // p.block) * p.block, blocks * lanes):
        end = min(first + blocks * lanes, p.channels)
        found.append(range(first // each, -(-end // each)) if first < end else range(0))
    return found


class _Writer(ConvWriter):
    """The direct convolution with another reduction."""

    template = "grouped_conv"
    version = 1

    def weights(self) -> Buffer:
        p = self.p
        self.groups = reads(p, self.lanes, self.blocks)
        counts = [len(g) * p.depth for g in self.groups]
        self.starts = [sum(counts[:k]) for k in range(len(counts) + 1)]
        space = p.x.dims[2:]
        shape = f"groups={p.group} lanes={self.lanes} blocks={self.blocks} block={p.block}"
        step = self.input_strides()[1]
        walk = Prepared(
            () if p.chosen is None else (p.chosen.reads[1],),
            f"channels of {shape} depth={p.depth} outputs={p.channels} of {p.x.dims[1]} "
            f"by {step} of {space}",
            lambda *chosen: self.walk(chosen[0] if chosen else None),
        )
        self.table = self.params.prepared(walk, i64, len(self.starts) + self.starts[-1])
        packed = Prepared((p.anchor.reads[1],), f"conv {shape}", self.pack)
        rest = self.starts[-1] - self.starts[self.panels]
        vectors = self.starts[self.panels] * self.blocks + rest * self.rest
        return self.params.prepared(packed, p.dtype, vectors * self.lanes * p.window.taps)

    def walk(self, chosen: Array | None) -> Array:
        """Where the channels of each panel begin, then the offsets in x of all of them."""
        p = self.p
        order = np.arange(p.group * p.depth) if chosen is None else chosen % p.x.dims[1]
        block = p.x.layout.block
        offsets = order // block * self.input_strides()[1] + order % block
        each = offsets.reshape(p.group, p.depth)
        parts = [each[g.start : g.stop].reshape(-1) for g in self.groups]
        return np.concatenate([np.array(self.starts), *parts]).astype(np.int64)

    def pack(self, w: Array) -> Array:
        """Weights [O, C / group, taps...] as panels; in each, for every channel that it reads and
        every tap, one row of output channels."""
        p = self.p
        each, taps = p.channels // p.group, p.window.taps
        w = w.reshape(p.channels, p.depth, taps)
        parts = []
        for k, groups in enumerate(self.groups):
            width = (self.blocks if k < self.panels else self.rest) * self.lanes
            first = k * self.blocks * self.lanes
            part = np.zeros((len(groups), p.depth, taps, width), w.dtype)
            for j, g in enumerate(groups):
                lo, hi = max(first, g * each), min(first + width, (g + 1) * each)
                part[j, :, :, lo - first : hi - first] = w[lo:hi].transpose(1, 2, 0)
            parts.append(part.reshape(-1))
        out = aligned_empty((sum(x.size for x in parts),), w.dtype)
        np.concatenate(parts, out=out)
        return out

    def reduction(
        self, micro: MicroKernel, panel: Expr, base: Expr, moves: tuple[int, int], inside: Inside
    ) -> tuple[Stmt, ...]:
        taps, width = self.p.window.taps, micro.blocks * self.lanes
        k = var("k", self.starts[-1])
        held, at = bind(f"at{micro.tag}", self.table[k + len(self.starts)] + base)
        # panels before the last, narrower one are full: where it begins counts in full steps
        before = self.starts[self.panels] * (self.blocks - micro.blocks) * self.lanes
        a = Rows(self.x, at, moves)
        b = Panel(self.w, index(before * taps) + k * (taps * width), width)
        one = micro.accumulate(a, b, self.taps(Level(1, 0), inside))
        lo, hi = self.table[panel], self.table[panel + 1]
        return (loop(k, seq(held, one), lo=lo, hi=hi),)


class GroupedConv:
    """Convolutions with constant weights between channel-blocked tensors, with any groups and any
    choice of input channels, with the pointwise ops behind them and a border of zeros.

    Config: as of the direct convolution.
    """

    name = _Writer.template
    version = _Writer.version

    def matches(self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
        p = conv_group(graph, ops, outputs)
        return p is not None and p.x.layout.is_blocked and not p.has_whole_groups

    def space(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> list[Config]:
        p = _require(graph, ops, outputs)
        items = _items(p)
        return [
            {**tile, "order": order, "items": n}
            for tile in _tiles(p, device)[:4]
            for order in ("oc", "sp")
            for n in dict.fromkeys((items, max(1, items // 2)))
        ]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        p = _require(graph, ops, outputs)
        # channels in another order come from all over x: places outermost keep them near
        order = "oc" if p.chosen is None else "sp"
        return {**_tiles(p, device)[0], "order": order, "items": _items(p)}

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return _Writer(_require(graph, ops, outputs), device, config).launch()


def _items(p: ConvGroup) -> int:
    return max(1, min(MAX_ITEMS, p.flops // ITEM_FLOPS))


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup:
    p = conv_group(graph, ops, outputs)
    if p is None:
        what = " + ".join(op.operator for op in ops)
        raise LoweringError(f"the grouped convolution kernel does not compute {what}")
    return p


def _tiles(p: ConvGroup, device: Device) -> list[Config]:
    """Wide panels share loads, but read the channels of more groups. Where a panel reads channels
    from all over x, a tile's input has to fit into the first cache."""
    lanes = device.lanes(p.dtype)
    vectors = -(-p.channels // p.block) * (p.block // lanes)

    def panels(nb: int) -> list[tuple[int, int, int]]:
        return [(1, min(nb, vectors - k * nb), len(g) * p.depth)
                for k, g in enumerate(reads(p, lanes, nb)) if g]  # fmt: skip

    scattered = 0 if p.chosen is None else -(-p.x.dims[1] // p.block) * p.block * p.dtype.bytes
    return sorted(
        tiles(p, device, panels),
        key=lambda c: c["th"] * c["tw"] * scattered > device.l1_bytes,
    )
