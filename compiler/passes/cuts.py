"""Operators that take a contiguous stretch of one axis: slices and splits, by what they compute."""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.expr import Expr, index, linear, var
from ...ops.operator import Injective, TensorArg
from ...ops.types import Layout
from ..graph.ir import Graph, Op


@dataclass(frozen=True, slots=True)
class Cut:
    """The indices from `start` on along an axis."""

    axis: int
    start: int


def cuts(graph: Graph, op: Op) -> tuple[Cut, ...] | None:
    """What each output is of input 0, or None where an output is anything but one stretch of it."""
    if not op.has(Injective) or op.definition.compute is None or len(op.reads) != 1:
        return None
    x, outs = graph.type(op.reads[0]), graph.output_types(op)
    if any(t.rank != x.rank or t.dtype is not x.dtype or not t.size for t in outs):
        return None
    made = op.definition.compute(
        outs if len(outs) > 1 else outs[0], TensorArg(op.reads[0], x), **op.attributes
    )
    found = []
    for t, fn in zip(outs, made if isinstance(made, tuple) else (made,), strict=True):
        at = tuple(var(f"i{k}", d) if d > 1 else index(0) for k, d in enumerate(t.dims))
        cut = _cut(fn(*at), op.reads[0], at, t.dims, x.dims)
        if cut is None:
            return None
        found.append(cut)
    return tuple(found)


def _cut(
    value: Expr, blob: str, at: tuple[Expr, ...], dims: tuple[int, ...], whole: tuple[int, ...]
) -> Cut | None:
    if value.op != "load" or value.payload != blob:
        return None
    axes = [k for k, (d, w) in enumerate(zip(dims, whole, strict=True)) if d != w]
    if len(axes) != 1:
        return None
    start = 0
    for k, (i, read) in enumerate(zip(at, value.args, strict=True)):
        terms, constant = linear(read - i)
        if terms or (constant and k != axes[0]):
            return None
        start += constant
    return Cut(axes[0], start)


def holds_whole_blocks(layout: Layout, axis: int, start: int, extent: int, whole: int) -> bool:
    """Whether a stretch of an axis begins at a block and ends at one, or where the axis ends."""
    if not layout.is_blocked or axis != layout.axis:
        return True
    return start % layout.block == 0 and (extent % layout.block == 0 or start + extent == whole)
