"""What convolution kernels must compute: perhaps a choice of input channels, a convolution, and the
pointwise ops behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, floordiv, index, minimum, var
from ...ops.operator import Contraction
from ...ops.traverse import substitute
from ...ops.types import DType, TensorType, f32, f64, row_major_strides
from ...ops.windows import WINDOW_ATTRS, Window, slide
from ..graph.ir import Graph, Op
from ..passes.convolutions import is_channel_choice
from .address import offset
from .compose import Indices
from .edges import Axis, axes
from .epilogue import Params, Result, results
from .ir import Buffer
from .packing import Stage, Weights, room, staged, write
from .recipe import prepared, recipe

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ConvGroup:
    """A convolution group: x * w + bias, and pointwise ops.

    chosen: an op that picks the channels of x from another blob.
    """

    graph: Graph
    chosen: Op | None
    anchor: Op
    after: tuple[Op, ...]
    outputs: tuple[str, ...]
    window: Window
    group: int

    @property
    def result(self) -> str:
        return self.anchor.outputs[0]

    @property
    def source(self) -> str:
        """The blob that input elements are read from."""
        return (self.anchor if self.chosen is None else self.chosen).reads[0]

    @property
    def x(self) -> TensorType:
        return self.graph.type(self.source)

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
        return self.graph.type(self.anchor.reads[1]).dims[1]

    @property
    def has_whole_groups(self) -> bool:
        """Whether every group reads and makes whole blocks of channels, in the order of memory."""
        inside = self.depth % max(self.x.layout.block, 1), self.channels // self.group % self.block
        return self.chosen is None and (self.group == 1 or not any(inside))

    @property
    def is_flat(self) -> bool:
        if not self.window.is_pointwise:
            return False
        steps, dims = self.x.strides[2 : self.x.rank], self.x.dims[2:]
        return all(s == t * d for s, t, d in zip(steps, steps[1:], dims[1:], strict=False))

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
    def axes(self) -> tuple[Axis, ...]:
        """The window along the axes of places: outer axes but the image, rows, columns."""
        _, rows, columns = self.places
        if self.is_flat:
            return Axis(rows, rows), Axis(columns, columns)
        found = axes(self.window)
        return found if len(found) > 1 else (Axis(1, 1), *found)

    @property
    def flops(self) -> int:
        """Two per tap inside the input; what falls on padding is no work."""
        taps = prod(a.taps for a in self.axes)
        return 2 * self.y.dims[0] * self.channels * self.depth * taps


def _outer_type(p: ConvGroup) -> TensorType:
    return p.graph.type(p.outputs[0])


def conv_group(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup | None:
    """What a group of ops has to compute if it is a convolution group with constant weights."""
    key = conv_group, tuple(ops), tuple(outputs)  # every template asks, some several times
    if key not in graph.derived:
        graph.derived[key] = _conv_group(graph, ops, outputs)
    found: ConvGroup | None = graph.derived[key]
    return found


def _conv_group(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup | None:
    chosen = ops[0] if len(ops) > 1 and is_channel_choice(graph, ops[0]) else None
    anchor, *after = ops if chosen is None else ops[1:]
    trait = anchor.definition.trait(Contraction)
    if trait is None or trait.kind != "conv" or not outputs:
        return None
    if chosen is not None and anchor.reads[0] != chosen.outputs[0]:
        return None
    attrs = anchor.attributes
    group = attrs["group"]
    x, w = (graph.type(n) for n in anchor.reads[:2])
    window = slide(x.dims[2:], w.dims[2:], **{k: attrs[k] for k in WINDOW_ATTRS})
    p = ConvGroup(graph, chosen, anchor, tuple(after), tuple(outputs), window, group)
    fits = (
        x.dtype in (f32, f64)
        and graph.is_constant(anchor.inputs[1])
        and (p.bias is None or graph.is_constant(p.bias))
        and p.y.size > 0
        and p.depth > 0
        and all(_is_blocked(graph.type(o)) for o in outputs)
        and len({graph.type(o).layout.order for o in outputs}) == 1
    )
    if not fits or (p.x.layout.is_blocked and p.x.layout.axis != 1):
        return None
    return p if conv_results(p) is not None else None


def _is_blocked(kind: TensorType) -> bool:
    return kind.layout.is_blocked and kind.layout.axis == 1


# --------------------------------------------------------------------------- what is stored


@dataclass(frozen=True, slots=True)
class Place:
    """The variables that an output element's indices are made of. Those of extent 1 are constants;
    the channel runs to the end of the last block."""

    outer: Indices
    channel: Expr
    row: Expr
    column: Expr
    at: Indices


def formal(p: ConvGroup) -> Place:
    """Variables for the indices of the result. Flat places are split into spatial indices here,
    before tiles come in: offsets then join them again."""
    outer, rows, columns = p.places
    n, *lead = (_variable(f"o{k}", d) for k, d in enumerate(outer))
    channel = var("c", -(-p.channels // p.block) * p.block)
    row, column = _variable("h", rows), _variable("w", columns)
    where = [*lead, row, column][-(p.y.rank - 2) :]
    if p.is_flat:
        space = p.y.dims[2:]
        where = [floordiv(column, s) if d > 1 else index(0)
                 for d, s in zip(space, row_major_strides(space), strict=True)]  # fmt: skip
        where = [i % d for i, d in zip(where, space, strict=True)]
    return Place((n, *lead), channel, row, column, (n, channel, *where))


def _variable(name: str, extent: int) -> Expr:
    return var(name, extent) if extent > 1 else index(0)


def conv_results(p: ConvGroup) -> list[Result] | None:
    """The outputs over the formal indices of the result."""
    at = formal(p).at
    found = results(p.graph, p.after, p.result, p.outputs, at)
    if found is None:
        return None
    for r in found:
        if p.graph.type(r.blob).dims != p.y.dims or any(
            i is not j for i, j, d in zip(r.at, at, p.y.dims, strict=True) if d > 1
        ):
            return None
    return [Result(r.blob, at, r.value) for r in found]


class Operands:
    """How values other than the input and the weights are read when channels do not fill the last
    block: the lanes past the last channel must stay inside the operand's memory."""

    def __init__(self, p: ConvGroup, params: Params, channel: Expr) -> None:
        self.p, self.params, self.channel = p, params, channel
        self.padded = -(-p.channels // p.block) * p.block

    def __call__(self, blob: str, at: Indices) -> Expr | None:
        kind = self.p.graph.type(blob)
        c = self.channel
        if self.padded == self.p.channels or not any(c in i.free for i in at):
            return None
        if _is_blocked(kind) and at[1] is c:
            return None
        if self.p.graph.is_constant(blob) and kind.size == self.p.channels and c in at:
            return self.vector(blob)[c]
        inside = {c: minimum(c, self.p.channels - 1)}
        return self.params.read(blob)[offset(kind, tuple(substitute(i, inside) for i in at))]

    def vector(self, blob: str) -> Buffer:
        """A constant with one value per channel, zeros behind the last."""
        if self.padded == self.p.channels:
            return self.params.read(blob)
        more = self.padded - self.p.channels
        made = prepared((blob,), "channels", more=more)
        return self.params.prepared(made, self.p.graph.type(blob).dtype, self.padded)


@recipe("channels")
def _padded(v: Array, more: int) -> Array:
    """One value per channel, `more` zeros behind the last."""
    return np.pad(v.reshape(-1), (0, more))


@recipe("conv", in_parts=True, into=True)
def pack_weights(
    w: Weights, lanes: int, blocks: int, vectors: int, block: int, out: Array | None = None
) -> Array:
    """Weights [O, C, taps...] as panels of `blocks` vectors of output channels, then one of the
    vectors that remain; in each, steps of the reduction in the micro-kernel's order. block: input
    channels per block, 0 for row-major inputs."""
    o, c, *space = w.shape
    taps, end = prod(space), vectors * lanes
    whole = c // block * block if block else 0
    out = room(out, end * c * taps, w.dtype)
    most = min(blocks, vectors) * lanes
    together = staged(most, c * taps, w.dtype.itemsize)  # panels
    step = staged(most, taps, w.dtype.itemsize, block or c)  # channels, if not all of a panel
    parts = [(k, min(k + step, whole)) for k in range(0, whole, step)]
    parts += [(whole, c)] if whole < c else []
    stage = Stage(together * most, max(hi - lo for lo, hi in parts) * taps, w.dtype)
    first = 0
    while first < end:
        width = min(most, end - first)
        count = min(together, (end - first) // width)
        last = first + count * width
        panels = out[first * c * taps : last * c * taps].reshape(count, c * taps, width)
        n = min(max(o - first, 0), last - first)
        for lo, hi in parts:
            rows = stage.rows(last - first, hi - lo, taps)
            write(w, rows[:n].reshape(n, hi - lo, *space), slice(first, first + n), slice(lo, hi))
            rows[n:] = 0
            size = block if lo < whole else hi - lo
            into = panels[:, lo * taps : hi * taps].reshape(count, -1, taps, size, width)
            into[...] = rows.reshape(count, width, -1, size, taps).transpose(0, 2, 4, 3, 1)
        first = last
    return out
