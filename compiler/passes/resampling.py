"""Interpolation along several axes, one axis after the other."""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.resize import one_by_one
from ...ops.types import f32, f64
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import UNLIMITED, Fuel, OptionalPass
from .rewrite import SourceRewriter


@dataclass(frozen=True, slots=True)
class SeparateAxes(OptionalPass):
    """Resample rows first, then across them, where rows are what lies side by side in memory.

    An element of a row is gathered from places that differ from lane to lane, while whole rows are
    read as vectors. In one step an enlarged image gathers all taps of both axes for each pixel; in
    two, those of one axis for each pixel of the small rows. The sums are the same, in the same
    order, so that no bit changes.

    Not where channels are the lanes (blocked, or the last axis), since nothing is gathered there;
    not where the second step leaves out much of what the first made; not for half floats, which the
    first step would round.
    """

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        rewriter = SourceRewriter(graph)

        def visit(op: Op, inputs: tuple[Value | None, ...]) -> Value | None:
            steps = _steps(graph, op)
            if len(steps) < 2 or not fuel.take("separate_axes: resize"):
                return None
            (x,) = inputs
            for attrs in steps[:-1]:
                x = rewriter.op(op.operator, x, **attrs)
            y: Value = rewriter.op(op.operator, x, out=op.outputs, **steps[-1])
            return y

        return rewriter.run(visit)


def _steps(graph: Graph, op: Op) -> list[dict[str, object]]:
    """The attributes of the ops that resample along one axis each; [] where one op is better."""
    if op.operator != "resize" or op.attr("mode") not in ("linear", "cubic"):
        return []
    (x,), (y,) = graph.input_types(op), graph.output_types(op)
    if x is None or x.dtype not in (f32, f64) or x.layout.is_blocked or y.layout.is_blocked:
        return []
    steps = one_by_one(x.dims, op.attributes)
    axes = [axis for axis, _ in steps]
    if not axes or axes[0] != x.rank - 1 or any(y.dims[k] < x.dims[k] for k in axes[1:]):
        return []
    return [attrs for _, attrs in steps]
