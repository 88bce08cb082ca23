"""Which kernel a convolution is for, and the rewrite of those that become matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import prod

from ...ops.operator import Contraction
from ...ops.types import f32, f64
from ...ops.windows import WINDOW_ATTRS, slide
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import Pass
from .rewrite import SourceRewriter


class Algorithm(Enum):
    """How a convolution is computed."""

    DIRECT = "direct"  # blocked channels, constant weights, whole blocks per group
    GROUPED = "grouped"  # the same where groups share blocks
    DEPTHWISE = "depthwise"  # one channel per group: a window reduction along blocked channels
    PRODUCT = "product"  # unfolded windows times weights


def is_depthwise(graph: Graph, op: Op) -> bool:
    """Whether a convolution has groups of one input channel each."""
    return graph.type(op.reads[1]).dims[1] == 1 < graph.type(op.reads[0]).dims[1]


def algorithm(graph: Graph, op: Op, block: int) -> Algorithm | None:
    """The algorithm for a convolution on a target with `block` channels per block; None if the op
    is none, or only the general loop nest serves it."""
    trait = op.definition.trait(Contraction)
    if trait is None or trait.kind != "conv":
        return None
    x, w = graph.type(op.reads[0]), graph.type(op.reads[1])
    if x.dtype not in (f32, f64) or x.rank not in (3, 4, 5) or not x.size or not w.size:
        return None
    group = op.attr("group")
    per_in, per_out = w.dims[1], w.dims[0] // group
    constant = graph.is_constant(op.reads[1])
    if constant and (group == 1 or (per_in % block == 0 and per_out % block == 0)):
        return Algorithm.DIRECT
    if per_in == per_out == 1:
        return Algorithm.DEPTHWISE
    return Algorithm.GROUPED if constant else Algorithm.PRODUCT


def is_channel_choice(graph: Graph, op: Op) -> bool:
    """Whether an op picks channels by a constant list: channel c of the result is channel list[c]
    of its input."""
    if op.operator != "gather" or not graph.is_constant(op.reads[1]):
        return False
    x, chosen = (graph.type(n) for n in op.reads)
    return op.attr("axis") % x.rank == 1 and chosen.rank == 1 and chosen.size > 0


@dataclass(frozen=True, slots=True)
class UnfoldConvolutions(Pass):
    """Turn convolutions that no convolution kernel serves into unfold + matmul.

    block: channels per block of the target.
    """

    block: int

    def run(self, graph: Graph) -> Graph:
        rewriter = SourceRewriter(graph)

        def visit(op: Op, inputs: tuple[Value | None, ...]) -> Value | None:
            if algorithm(graph, op, self.block) is not Algorithm.PRODUCT:
                return None
            return _product(rewriter, op, inputs)

        return rewriter.run(visit)


def _product(b: SourceRewriter, op: Op, inputs: tuple[Value | None, ...]) -> Value:
    x, w = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    assert x is not None and w is not None
    attrs = op.attributes
    window = {k: attrs[k] for k in WINDOW_ATTRS}
    group = attrs["group"]
    win = slide(x.type.dims[2:], w.type.dims[2:], **window)
    n, out = x.type.dims[0], w.type.dims[0]
    depth = w.type.dims[1] * win.taps

    if win.is_pointwise:
        columns = b.op("reshape", x, shape=(n, group, depth, prod(win.output)))
    else:
        columns = b.op("unfold", x, kernel_shape=win.kernel, group=group, **window)
    rows = b.op("reshape", w, shape=(1, group, out // group, depth))
    y = b.op("reshape", b.op("matmul", rows, columns), shape=(n, out, *win.output))
    if bias is None:
        return y
    flat = b.op("reshape", bias, shape=(out, *(1 for _ in win.output)))
    total: Value = b.op("add", y, flat)
    return total
