"""Direct convolution on channel-blocked tensors.

Rows of the register tile are output places (`th` rows of `tw` neighbours), its lanes are output
channels, and the reduction walks (channel block, taps, channel) of the input where it lies. Weights
are packed once, in exactly the order in which the micro-kernel reads them. A pointwise convolution
is the same kernel on flattened places. Few-channel inputs are read from row-major memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, binary, compare, const, floordiv, index, load, minimum, var
from ...ops.operator import Contraction
from ...ops.types import DType, TensorType, f32, f64, row_major_strides
from ...ops.windows import WINDOW_ATTRS, Window, slide
from ..graph.ir import Graph, Op
from .address import offset
from .compose import Indices, fresh
from .device import Device
from .epilogue import Params, Result, inplace, lowered, place, results
from .ir import (
    Buffer,
    For,
    If,
    Kernel,
    Launch,
    Phase,
    Prefetch,
    Prepared,
    Stmt,
    Store,
    loads,
    loop,
    seq,
)
from .microkernel import Level, MicroKernel, Panel, Rows, Segment, bind, issue_slots, most_rows
from .template import Config

Array = npt.NDArray[Any]
ITEM_FLOPS = 500_000  # an item takes at least about 5 microseconds
MAX_ITEMS = 16
FILL_ELEMENTS = 16_384  # border elements that one item sets to zero


@dataclass(frozen=True, slots=True)
class _Problem:
    """A convolution group: x * w + bias, pointwise ops, and perhaps a border of zeros."""

    graph: Graph
    anchor: Op
    after: tuple[Op, ...]
    pad: Op | None
    outputs: tuple[str, ...]
    window: Window
    group: int

    @property
    def result(self) -> str:
        return self.anchor.outputs[0]

    @property
    def x(self) -> TensorType:
        return self.graph.type(self.anchor.reads[0])

    @property
    def y(self) -> TensorType:
        return self.graph.type(self.result)

    @property
    def dtype(self) -> DType:
        return self.x.dtype

    @property
    def block(self) -> int:
        return _outer_type(self).layout.block

    @property
    def channels(self) -> int:
        return self.y.dims[1]

    @property
    def depth(self) -> int:
        """Input channels that one output channel reads."""
        return self.x.dims[1] // self.group

    @property
    def is_flat(self) -> bool:
        return self.window.is_pointwise and self.pad is None

    @property
    def bias(self) -> str | None:
        return self.anchor.inputs[2] if len(self.anchor.inputs) > 2 else None

    @property
    def places(self) -> tuple[tuple[int, ...], int, int]:
        """Output places as (outer axes, rows, columns); flat places are one row."""
        n, space = self.y.dims[0], self.y.dims[2:]
        if self.is_flat:
            return (n,), 1, prod(space)
        if len(space) == 1:
            return (n,), 1, space[0]
        return (n, *space[:-2]), space[-2], space[-1]

    @property
    def flops(self) -> int:
        return 2 * self.y.size * self.depth * self.window.taps


def _outer_type(p: _Problem) -> TensorType:
    return p.graph.type(p.outputs[0])


def _problem(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> _Problem | None:
    anchor, after = ops[0], list(ops[1:])
    trait = anchor.definition.trait(Contraction)
    if trait is None or trait.kind != "conv" or not outputs:
        return None
    attrs = anchor.attributes
    group = attrs["group"]
    x, w = (graph.type(n) for n in anchor.reads[:2])
    window = slide(x.dims[2:], w.dims[2:], **{k: attrs[k] for k in WINDOW_ATTRS})
    pad = None
    if after and after[-1].operator == "pad" and _is_border(graph, after[-1]):
        pad = after.pop()
    p = _Problem(graph, anchor, tuple(after), pad, tuple(outputs), window, group)
    fits = (
        x.dtype in (f32, f64)
        and graph.is_constant(anchor.inputs[1])
        and (p.bias is None or graph.is_constant(p.bias))
        and not any(window.begin)
        and not any(window.end)
        and p.y.size > 0
        and p.depth > 0
        and all(_is_blocked(graph.type(o)) for o in outputs)
        and len({graph.type(o).layout for o in outputs}) == 1
    )
    if not fits:
        return None
    if x.layout.is_blocked and (x.layout.axis != 1 or (group > 1 and p.depth % x.layout.block)):
        return None
    if group > 1 and (p.channels // group) % p.block:
        return None
    return p if _results(p) is not None else None


def _is_blocked(kind: TensorType) -> bool:
    return kind.layout.is_blocked and kind.layout.axis == 1


def _is_border(graph: Graph, op: Op) -> bool:
    """Whether the op adds zeros around spatial axes and does nothing else."""
    if op.attr("mode") != "constant" or op.attr("value") != 0:
        return False
    before, behind = _border(graph, op)
    return min(before + behind) >= 0 and not any(before[:2] + behind[:2])


def _border(graph: Graph, op: Op) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Elements that a pad op adds before and behind each axis."""
    rank = graph.type(op.outputs[0]).rank
    pads, axes = op.attr("pads"), op.attr("axes")
    along = range(rank) if axes is None else [a % rank for a in axes]
    before, behind = [0] * rank, [0] * rank
    for k, a in enumerate(along):
        before[a], behind[a] = pads[k], pads[k + len(pads) // 2]
    return tuple(before), tuple(behind)


# --------------------------------------------------------------------------- what is stored


def _formal(p: _Problem) -> tuple[Indices, Indices, Expr, Expr, Expr]:
    """(logical indices of the result, outer variables, channel, row, column). Flat places are
    split into spatial indices here, before tiles come in: offsets then join them again."""
    outer, rows, columns = p.places
    at = fresh(p.y.dims, "y")
    row, column = index(0), index(0)
    if p.is_flat:
        column = var("w", columns) if columns > 1 else index(0)
        strides = row_major_strides(p.y.dims[2:])
        where: list[Expr] = []
        for k, (d, s) in enumerate(zip(p.y.dims[2:], strides, strict=True)):
            i = floordiv(column, s)
            where.append(i % d if k else i)
        at = (*at[:2], *where)
    else:
        column = at[-1]
        row = at[-2] if len(outer) < len(p.y.dims) - 2 and p.y.rank > 3 else index(0)
    lead = at[:1] if p.is_flat else (at[0], *at[2 : 2 + len(outer) - 1])
    channel = var("c", -(-p.channels // p.block) * p.block)
    return (at[0], channel, *at[2:]), lead, channel, row, column


def _results(p: _Problem) -> list[Result] | None:
    """The outputs over the formal indices of the result; shifted where zeros surround it."""
    at = _formal(p)[0]
    inner = p.pad.inputs[0] if p.pad is not None else None
    names = [inner if p.pad is not None and o == p.pad.outputs[0] else o for o in p.outputs]
    found = results(p.graph, p.after, p.result, [n for n in names if n is not None], at)
    if found is None or any(r.at != at for r in found):
        return None
    if p.pad is None:
        return found
    before, _ = _border(p.graph, p.pad)
    there = tuple(i + b for i, b in zip(at, before, strict=True))
    return [r if r.blob == o else Result(o, there, r.value)
            for r, o in zip(found, p.outputs, strict=True)]  # fmt: skip
