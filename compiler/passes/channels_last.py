"""Channels last around convolutions that run on tensor cores.

Those copy 16 bytes of channels at a time, so that all channels of a place have to be neighbours:
the blocked layout whose block is all of them, `f16[1,64,56,56]@1x64`. Pointwise operators, windows
and joins hand that on; everything else is row-major. An image of few channels is read as it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.operator import ChannelLocal, Elementwise, Injective, Opaque
from ...ops.types import ROW_MAJOR, DType, Layout, TensorType
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import Pass
from .layout import PLANAR_CHANNELS, Layouts

LEAST_CHANNELS = 8  # of a group's results, below which most of a tile would be empty


@dataclass(frozen=True, slots=True)
class ChannelsLast(Pass):
    """products: the element types that tensor cores multiply."""

    products: tuple[DType, ...]

    def run(self, graph: Graph) -> Graph:
        rewriter = _ChannelsLast(graph, self.products)
        return rewriter.run(rewriter.visit)


def last(kind: TensorType) -> Layout:
    """All channels as one block."""
    return Layout(1, kind.dims[1])


class _ChannelsLast(Layouts):
    def __init__(self, old: Graph, products: tuple[DType, ...]) -> None:
        super().__init__(old)
        self.products = products

    def convolution(self, op: Op, inputs: tuple[Value | None, ...]) -> Value | tuple[Value, ...]:
        x = inputs[0]
        assert x is not None
        out = self.old.type(op.outputs[0])
        group = op.attr("group")
        if group == x.type.dims[1] and group > 1:  # a window of each channel
            to = last(out) if x.type.layout.is_blocked else ROW_MAJOR
            return self.windowed(op, inputs, to)
        if out.dtype not in self.products or out.dims[1] // group < LEAST_CHANNELS:
            return self.emit(op, (self.to(x, ROW_MAJOR), *inputs[1:]), ROW_MAJOR)
        if x.type.dims[1] > PLANAR_CHANNELS:
            x = self.to(x, last(x.type))
        return self.windowed(op, (x, *inputs[1:]), last(out))

    def follow(self, op: Op, inputs: tuple[Value | None, ...]) -> Layout:
        outs = self.old.output_types(op)
        blocked = [v.type for v in inputs if v is not None and v.type.layout.is_blocked]
        if not blocked or len({t.dims for t in outs}) != 1 or outs[0].rank < 3:
            return ROW_MAJOR
        x, out = blocked[0], outs[0]
        if op.has(Elementwise):
            fits = any(t.dims == out.dims for t in blocked)
        elif op.has(Opaque):  # concat
            fits = op.attr("axis") % out.rank == 1 and len(blocked) == len(op.reads)
        elif op.has(ChannelLocal):
            fits = x.rank == out.rank and x.dims[1] == out.dims[1]
        else:
            fits = op.has(Injective) and x.rank == out.rank and len(op.reads) == 1
        return last(out) if fits else ROW_MAJOR
