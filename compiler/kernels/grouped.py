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
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, index, var
from ...ops.types import i64
from ..graph.arrays import aligned_empty
from ..graph.ir import Graph, Op
from .conv import ConvWriter, Inside, tiles
from .conv_group import ConvGroup, conv_group
from .conv_sharing import evenly, few_items, units_of
from .device import Device
from .ir import Buffer, Launch, Prepared, Stmt, loop, seq
from .microkernel import Level, MicroKernel, Panel, Rows, bind
from .template import Config, required

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A panel: `vectors` vectors of output channels from block `first` on, and the groups that
    these belong to."""

    first: int
    vectors: int
    groups: range


def parts(p: ConvGroup, lanes: int, blocks: int) -> list[Part]:
    """The panels: of `blocks` vectors where that adds no groups to those of a single block of
    channels, then the others, of one block each."""
    each, unit = p.channels // p.group, p.block // lanes

    def groups(first: int, count: int) -> range:
        end = min((first + count) * p.block, p.channels)
        return range(first * p.block // each, -(-end // each))

    wide, narrow = [], []
    k, total, count = 0, -(-p.channels // p.block), blocks // unit
    while k < total:
        union = groups(k, count)
        if k + count <= total and all(groups(k + i, 1) == union for i in range(count)):
            wide.append(Part(k, blocks, union))
            k += count
        else:
            narrow.append(Part(k, unit, groups(k, 1)))
            k += 1
    return wide + narrow


class _Writer(ConvWriter):
    """The direct convolution with another reduction."""

    template = "grouped_conv"
    version = 3

    def weights(self) -> Buffer:
        p = self.p
        self.parts = parts(p, self.lanes, self.blocks)
        self.panels = sum(x.vectors == self.blocks for x in self.parts)
        self.narrow, self.rest = len(self.parts) - self.panels, p.block // self.lanes
        counts = [len(x.groups) * p.depth for x in self.parts]
        self.starts = [sum(counts[:k]) for k in range(len(counts) + 1)]
        space = p.x.dims[2:]
        shape = f"groups={p.group} lanes={self.lanes} blocks={self.blocks} block={p.block}"
        walk = Prepared(
            () if p.chosen is None else (p.chosen.reads[1],),
            f"channels of {shape} depth={p.depth} outputs={p.channels} of {p.x.dims[1]} "
            f"by {self.input_strides()[1]} of {space}",
            lambda *chosen: self.walk(chosen[0] if chosen else None),
        )
        head = len(self.starts) + len(self.parts)
        self.table = self.params.prepared(walk, i64, head + self.starts[-1])
        packed = Prepared((p.anchor.reads[1],), f"conv {shape}", self.pack)
        total = sum(c * x.vectors for c, x in zip(counts, self.parts, strict=True))
        return self.params.prepared(packed, p.dtype, total * self.lanes * p.window.taps)

    def walk(self, chosen: Array | None) -> Array:
        """Where the channels of each panel begin in the list behind; the first block of each; the
        offsets in x of the channels that they read."""
        p = self.p
        order = np.arange(p.group * p.depth) if chosen is None else chosen % p.x.dims[1]
        block = p.x.layout.block
        offsets = order // block * self.input_strides()[1] + order % block
        each = offsets.reshape(p.group, p.depth)
        found = [each[x.groups.start : x.groups.stop].reshape(-1) for x in self.parts]
        head = [*self.starts, *(x.first for x in self.parts)]
        return np.concatenate([np.array(head), *found]).astype(np.int64)

    def pack(self, w: Array) -> Array:
        """Weights [O, C / group, taps...] as panels; in each, for every channel that it reads and
        every tap, one row of output channels."""
        p = self.p
        each, taps = p.channels // p.group, p.window.taps
        w = w.reshape(p.channels, p.depth, taps)
        found = []
        for x in self.parts:
            first, width = x.first * p.block, x.vectors * self.lanes
            part = np.zeros((len(x.groups), p.depth, taps, width), w.dtype)
            for j, g in enumerate(x.groups):
                lo, hi = max(first, g * each), min(first + width, (g + 1) * each)
                part[j, :, :, lo - first : hi - first] = w[lo:hi].transpose(1, 2, 0)
            found.append(part.reshape(-1))
        out = aligned_empty((sum(x.size for x in found),), w.dtype)
        np.concatenate(found, out=out)
        return out

    def first(self, panel: Expr) -> Expr:
        return self.table[panel + len(self.starts)] * self.p.block

    def reduction(
        self, micro: MicroKernel, panel: Expr, base: Expr, moves: tuple[int, int], inside: Inside
    ) -> tuple[Stmt, ...]:
        taps, width = self.p.window.taps, micro.blocks * self.lanes
        k = var("k", self.starts[-1])
        held, at = bind(f"at{micro.tag}", self.table[k + len(self.starts) + len(self.parts)] + base)
        # wide panels come first: where the narrow ones begin counts in wide steps
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
        wanted = few_items(p, device)
        return [
            {**tile, **_cut(p, device, tile, order, n)}
            for tile in _tiles(p, device)[:4]
            for order in ("oc", "sp")
            for n in dict.fromkeys((wanted, max(1, wanted // 2)))
        ]

    def default(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device
    ) -> Config:
        p = _require(graph, ops, outputs)
        # channels in another order come from all over x: places outermost keep them near
        order = "oc" if p.chosen is None else "sp"
        tile = _tiles(p, device)[0]
        return {**tile, **_cut(p, device, tile, order, few_items(p, device))}

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return _Writer(_require(graph, ops, outputs), device, config).launch()


def _cut(p: ConvGroup, device: Device, tile: Config, order: str, wanted: int) -> Config:
    panels = len(parts(p, device.lanes(p.dtype), tile["nb"]))
    return evenly(order, panels, units_of(p, tile)[0], wanted).config


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup:
    return required(conv_group(graph, ops, outputs), "grouped convolution", ops)


def _tiles(p: ConvGroup, device: Device) -> list[Config]:
    """Where a panel reads channels from all over x, a tile's input has to fit the first cache."""
    lanes = device.lanes(p.dtype)

    def panels(nb: int) -> list[tuple[int, int, int]]:
        return [(1, x.vectors, len(x.groups) * p.depth) for x in parts(p, lanes, nb)]

    scattered = 0 if p.chosen is None else -(-p.x.dims[1] // p.block) * p.block * p.dtype.bytes
    return sorted(
        tiles(p, device, panels),
        key=lambda c: c["th"] * c["tw"] * scattered > device.l1_bytes,
    )
