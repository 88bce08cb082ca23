"""Channels last around convolutions that run on tensor cores, and around depthwise ones.

Those copy 16 bytes of channels at a time, and these read as many, so that all channels of a place
have to be neighbours: the blocked layout whose block is all of them, `f16[1,64,56,56]@1x64`.
Pointwise operators, windows and joins hand that on, and so do convolutions of single places,
whatever computes them: terms of their sums lie side by side then. Everything else is row-major. An
image of few channels is read as it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.operator import ChannelLocal, Contraction, Elementwise, Injective, Opaque
from ...ops.types import ROW_MAJOR, DType, Layout, TensorType
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import Pass
from .convolutions import is_channel_choice, is_depthwise
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
        blocked = x.type.layout.is_blocked
        out = self.old.type(op.outputs[0])
        group = op.attr("group")
        if group == x.type.dims[1] and group > 1:  # a window of each channel
            if blocked or (self._is_depthwise(op) and op.reads[0] not in self.old.inputs):
                return self.windowed(op, (self.to(x, last(x.type)), *inputs[1:]), last(out))
            return self.windowed(op, inputs, ROW_MAJOR)
        if out.dtype not in self.products or out.dims[1] // group < LEAST_CHANNELS:
            stays = blocked and self._is_pointwise(op)
            inputs = inputs if stays else (self.to(x, ROW_MAJOR), *inputs[1:])
            if stays or self._is_read_by_depthwise(op):
                return self.windowed(op, inputs, last(out))
            return self.emit(op, inputs, ROW_MAJOR)
        if x.type.dims[1] > PLANAR_CHANNELS:
            x = self.to(x, last(x.type))
        return self.windowed(op, (x, *inputs[1:]), last(out))

    def _is_depthwise(self, op: Op) -> bool:
        """Whether every channel has a window of its own, and there are channels enough."""
        trait = op.definition.trait(Contraction)
        if trait is None or trait.kind != "conv":
            return False
        x, w = op.reads[:2]
        channels = self.old.type(op.outputs[0]).dims[1]
        return (is_depthwise(self.old, op) and self.old.is_constant(w)
                and LEAST_CHANNELS <= channels == self.old.type(x).dims[1])  # fmt: skip

    def _is_read_by_depthwise(self, op: Op) -> bool:
        """Whether a depthwise convolution is all that reads a result, or what follows on it place
        by place: then it is stored as that wants it."""
        users = self.old.consumers[op.outputs[0]]
        while len(users) == 1 and users[0].has(Elementwise):
            users = self.old.consumers[users[0].outputs[0]]
        return len(users) == 1 and self._is_depthwise(users[0])

    def _is_pointwise(self, op: Op) -> bool:
        """Whether every place is made of the one in the same place."""
        x, w = (self.old.type(n) for n in op.reads[:2])
        return set(w.dims[2:]) == {1} and x.dims[2:] == self.old.type(op.outputs[0]).dims[2:]

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
            alone = len(op.reads) == 1 or is_channel_choice(self.old, op)
            fits = op.has(Injective) and x.rank == out.rank and alone
        return last(out) if fits else ROW_MAJOR
