"""What the direct convolution must compute: a convolution, pointwise ops, perhaps a border."""

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
from ..graph.arrays import aligned_empty
from ..graph.ir import Graph, Op
from .address import offset
from .compose import Indices
from .epilogue import Params, Result, results
from .ir import Buffer, Prepared

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ConvGroup:
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
        steps, dims = self.x.strides[2 : self.x.rank], self.x.dims[2:]
        even = all(s == t * d for s, t, d in zip(steps, steps[1:], dims[1:], strict=False))
        return self.window.is_pointwise and self.pad is None and even

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


def _outer_type(p: ConvGroup) -> TensorType:
    return p.graph.type(p.outputs[0])


def conv_group(graph: Graph, ops: Sequence[Op], outputs: Sequence[str]) -> ConvGroup | None:
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
    p = ConvGroup(graph, anchor, tuple(after), pad, tuple(outputs), window, group)
    fits = (
        x.dtype in (f32, f64)
        and graph.is_constant(anchor.inputs[1])
        and (p.bias is None or graph.is_constant(p.bias))
        and not any(window.begin)
        and not any(window.end)
        and p.y.size > 0
        and p.depth > 0
        and all(_is_blocked(graph.type(o)) for o in outputs)
        and len({graph.type(o).layout.order for o in outputs}) == 1
    )
    if not fits:
        return None
    if x.layout.is_blocked and (x.layout.axis != 1 or (group > 1 and p.depth % x.layout.block)):
        return None
    if group > 1 and (p.channels // group) % p.block:
        return None
    return p if conv_results(p) is not None else None


def _is_blocked(kind: TensorType) -> bool:
    return kind.layout.is_blocked and kind.layout.axis == 1


def _is_border(graph: Graph, op: Op) -> bool:
    """Whether the op adds zeros around spatial axes and does nothing else."""
    if op.attr("mode") != "constant" or op.attr("value") != 0:
        return False
    before, behind = border(graph, op)
    return min(before + behind) >= 0 and not any(before[:2] + behind[:2])


def border(graph: Graph, op: Op) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Elements that a pad op adds before and behind each axis."""
    rank = graph.type(op.outputs[0]).rank
    pads, axes = op.attr("pads"), op.attr("axes")
    along = range(rank) if axes is None else [a % rank for a in axes]
    before, behind = [0] * rank, [0] * rank
    for k, a in enumerate(along):
        before[a], behind[a] = pads[k], pads[k + len(pads) // 2]
    return tuple(before), tuple(behind)


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
    """The outputs over the formal indices of the result; shifted where zeros surround it."""
    at = formal(p).at
    inner = p.pad.inputs[0] if p.pad is not None else None
    names = [inner if p.pad is not None and o == p.pad.outputs[0] else o for o in p.outputs]
    found = results(p.graph, p.after, p.result, [n for n in names if n is not None], at)
    if found is None:
        return None
    for r in found:
        if p.graph.type(r.blob).dims != p.y.dims or any(
            i is not j for i, j, d in zip(r.at, at, p.y.dims, strict=True) if d > 1
        ):
            return None
    found = [Result(r.blob, at, r.value) for r in found]
    if p.pad is None:
        return found
    before, _ = border(p.graph, p.pad)
    there = tuple(i + b for i, b in zip(at, before, strict=True))
    return [r if r.blob == o else Result(o, there, r.value)
            for r, o in zip(found, p.outputs, strict=True)]  # fmt: skip


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
        made = Prepared((blob,), f"channels+{more}", lambda v: np.pad(v.reshape(-1), (0, more)))
        return self.params.prepared(made, self.p.graph.type(blob).dtype, self.padded)


def pack_weights(w: Array, lanes: int, blocks: int, vectors: int, block: int) -> Array:
    """Weights [O, C, taps...] as panels of `blocks` vectors of output channels, then one of the
    vectors that remain; in each, steps of the reduction in the micro-kernel's order. block: input
    channels per block, 0 for row-major inputs. Every weight is moved once."""
    o, c = w.shape[:2]
    w = w.reshape(o, c, -1)
    taps = w.shape[2]
    whole = c // block * block if block else 0
    out = aligned_empty((vectors * lanes * c * taps,), w.dtype)
    middle, end = vectors // blocks * blocks * lanes, vectors * lanes
    for first, last, width in ((0, middle, blocks * lanes), (middle, end, end - middle)):
        if first == last:
            continue
        part = w[first:last]
        if len(part) < last - first:
            part = np.pad(part, ((0, last - first - len(part)), (0, 0), (0, 0)))
        part = part.reshape(-1, width, c, taps)
        n = len(part)
        panels = out[first * c * taps : last * c * taps].reshape(n, c * taps, width)
        if whole:
            split = part[:, :, :whole].reshape(n, width, whole // block, block, taps)
            into = panels[:, : whole * taps].reshape(n, whole // block, taps, block, width)
            into[...] = split.transpose(0, 2, 4, 3, 1)
        if whole < c:
            rest = panels[:, whole * taps :].reshape(n, taps, c - whole, width)
            rest[...] = part[:, :, whole:].transpose(0, 3, 2, 1)
    return out
