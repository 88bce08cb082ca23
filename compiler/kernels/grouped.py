"""Convolutions whose groups share channel blocks, or whose input channels are picked from others.

The register tile and the loops around it are those of the direct convolution. What differs is the
walk over the input: a vector of output channels reads the channels of every group that it has lanes
in, each by its own offset, from a table. Weights of channels that a lane's group does not have are
zeros. So groups may begin anywhere, several small ones make one dense block, and a permutation of
the channels (a channel shuffle) costs nothing: it is in the table.

One multiply-add could serve both groups of a vector, if a mask put the input of one into the lanes
behind and of the other into those in front. But loads into some lanes are slow: on Zen 4 such a
step takes 2.4 cycles per vector, and two multiply-adds 2.05. So what limits these kernels is how
many lanes their groups fill: of 34 channels per group, 71 % of the multiply-adds count.

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
from .conv import ConvWriter, Inside
from .conv_group import ConvGroup, conv_group
from .conv_sharing import Costs, Cut, evenly, few_items, units_of
from .conv_tiles import Panels, tiles
from .device import Device
from .ir import Buffer, Launch, Stmt, loop, seq
from .microkernel import Level, MicroKernel, Panel, Rows, Then, bind
from .recipe import prepared, recipe
from .template import Config, required

Array = npt.NDArray[Any]

MISSES = 1.5  # times as long, about, where a tile's input does not stay in the first cache


@dataclass(frozen=True, slots=True)
class Part:
    """A panel: `vectors` vectors of output channels from block `first` on, and the groups that
    these belong to."""

    first: int
    vectors: int
    groups: range


def parts(channels: int, group: int, block: int, lanes: int, blocks: int) -> list[Part]:
    """The panels: of `blocks` vectors where that adds no groups to those of a single block of
    channels, then the others, of one block each."""
    each, unit = channels // group, block // lanes

    def groups(first: int, count: int) -> range:
        end = min((first + count) * block, channels)
        return range(first * block // each, -(-end // each))

    wide, narrow = [], []
    k, total, count = 0, -(-channels // block), blocks // unit
    while k < total:
        union = groups(k, count)
        if k + count <= total and all(groups(k + i, 1) == union for i in range(count)):
            wide.append(Part(k, blocks, union))
            k += count
        else:
            narrow.append(Part(k, unit, groups(k, 1)))
            k += 1
    return wide + narrow


def _parts(p: ConvGroup, lanes: int, blocks: int) -> list[Part]:
    return parts(p.channels, p.group, p.block, lanes, blocks)


@recipe("walk")
def _walk(
    *chosen: Array, channels: int, group: int, block: int, lanes: int, blocks: int, depth: int,
    inputs: int, input_block: int, step: int,
) -> Array:  # fmt: skip
    """Where the channels of each panel begin in the list behind; the first block of each; the
    offsets in x of the channels that they read. chosen: the picked channels, if any are; inputs:
    channels of x; step: elements between their blocks."""
    found = parts(channels, group, block, lanes, blocks)
    order = chosen[0] % inputs if chosen else np.arange(group * depth)
    offsets = order // input_block * step + order % input_block
    each = offsets.reshape(group, depth)
    walks = [each[x.groups.start : x.groups.stop].reshape(-1) for x in found]
    starts = np.cumsum([0, *map(len, walks)])
    return np.concatenate([starts, np.array([x.first for x in found]), *walks]).astype(np.int64)


@recipe("grouped")
def _pack(w: Array, group: int, block: int, lanes: int, blocks: int) -> Array:
    """Weights [O, C / group, taps...] as panels; in each, for every channel that it reads and
    every tap, one row of output channels."""
    channels, depth = w.shape[:2]
    each = channels // group
    w = w.reshape(channels, depth, -1)
    found = []
    for x in parts(channels, group, block, lanes, blocks):
        first, width = x.first * block, x.vectors * lanes
        part = np.zeros((len(x.groups), depth, w.shape[2], width), w.dtype)
        for j, g in enumerate(x.groups):
            lo, hi = max(first, g * each), min(first + width, (g + 1) * each)
            part[j, :, :, lo - first : hi - first] = w[lo:hi].transpose(1, 2, 0)
        found.append(part.reshape(-1))
    out = aligned_empty((sum(x.size for x in found),), w.dtype)
    np.concatenate(found, out=out)
    return out


class _Writer(ConvWriter):
    """The direct convolution with another reduction."""

    template = "grouped_conv"
    version = 3

    def weights(self) -> Buffer:
        p = self.p
        self.parts = _parts(p, self.lanes, self.blocks)
        self.panels = sum(x.vectors == self.blocks for x in self.parts)
        self.narrow, self.rest = len(self.parts) - self.panels, p.block // self.lanes
        counts = [len(x.groups) * p.depth for x in self.parts]
        self.starts = [sum(counts[:k]) for k in range(len(counts) + 1)]
        shape = {"group": p.group, "block": p.block, "lanes": self.lanes, "blocks": self.blocks}
        walk = prepared(
            () if p.chosen is None else (p.chosen.reads[1],), "walk", channels=p.channels, **shape,
            depth=p.depth, inputs=p.x.dims[1], input_block=p.x.layout.block,
            step=self.input_strides()[1],
        )  # fmt: skip
        head = len(self.starts) + len(self.parts)
        self.table = self.params.prepared(walk, i64, head + self.starts[-1])
        packed = prepared((p.anchor.reads[1],), "grouped", **shape)
        total = sum(c * x.vectors for c, x in zip(counts, self.parts, strict=True))
        return self.params.prepared(packed, p.dtype, total * self.lanes * p.window.taps)

    def first(self, panel: Expr) -> Expr:
        return self.table[panel + len(self.starts)] * self.p.block

    def reduction(
        self, micro: MicroKernel, panel: Expr, base: Expr, moves: tuple[int, int], inside: Inside,
        finish: Then,
    ) -> tuple[Stmt, ...]:  # fmt: skip
        taps, width = self.p.window.taps, micro.blocks * self.lanes
        k = var("k", self.starts[-1])
        held, at = bind(f"at{micro.tag}", self.table[k + len(self.starts) + len(self.parts)] + base)
        # wide panels come first: where the narrow ones begin counts in wide steps
        before = self.starts[self.panels] * (self.blocks - micro.blocks) * self.lanes
        a = Rows(self.x, at, moves)
        b = Panel(self.w, index(before * taps) + k * (taps * width), width)
        one = micro.accumulate(a, b, self.taps(Level(1, 0), inside))
        lo, hi = self.table[panel], self.table[panel + 1]
        return loop(k, seq(held, one), lo=lo, hi=hi), finish(())


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

    def estimate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> float:  # fmt: skip
        p = _require(graph, ops, outputs)
        costs = Costs.of(p, device, config, _panels(p, device, config["nb"]))
        return costs.cost(Cut.of(config)) * (MISSES if _is_scattered(p, device, config) else 1)

    def instantiate(
        self, graph: Graph, ops: Sequence[Op], outputs: Sequence[str], device: Device,
        config: Config,
    ) -> Launch:  # fmt: skip
        return _Writer(_require(graph, ops, outputs), device, config).launch()


def _cut(p: ConvGroup, device: Device, tile: Config, order: str, wanted: int) -> Config:
    panels = len(_parts(p, device.lanes(p.dtype), tile["nb"]))
    return evenly(order, panels, units_of(p, tile)[0], wanted).config


def _require(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup:
    return required(conv_group(graph, ops, outputs), "grouped convolution", ops)


def _panels(p: ConvGroup, device: Device, nb: int) -> Panels:
    found = _parts(p, device.lanes(p.dtype), nb)
    return [(1, x.vectors, len(x.groups) * p.depth) for x in found]


def _tiles(p: ConvGroup, device: Device) -> list[Config]:
    return sorted(
        tiles(p, device, lambda nb: _panels(p, device, nb)),
        key=lambda c: _is_scattered(p, device, c),
    )


def _is_scattered(p: ConvGroup, device: Device, tile: Config) -> bool:
    """Whether a panel reads channels from all over x, and the first cache does not hold what a tile
    finds there."""
    if p.chosen is None:
        return False
    each = -(-p.x.dims[1] // p.block) * p.block * p.dtype.bytes
    return bool(tile["th"] * tile["tw"] * each > device.l1_bytes)
