"""Moves scales and shifts per channel into the weights and bias of the contraction before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...ops.operator import Contraction
from ...ops.types import HALF, DType, bf16, f16, f32, f64
from ..graph.builder import Value
from ..graph.evaluate import floats, narrow
from ..graph.ir import Array, Blob, Deferred, Graph, Op, Role
from ..graph.scaled import Vector, scaled
from .base import UNLIMITED, Fuel, OptionalPass
from .dce import DeadCode
from .rewrite import SourceRewriter

_PART: Final = 1 << 16
"""Weights looked at in one go, few enough to stay in the second cache."""


_RANGE: Final = {f16: (2.0**-14, 65504.0), bf16: (2.0**-126, (2 - 2.0**-7) * 2.0**127)}
"""The smallest normal and the largest number of a half float."""


@dataclass(frozen=True)
class FoldScales(OptionalPass):
    """Batch normalisation, and + - * / by constants per channel, after a convolution or matrix
    product with constant weights: y = (w x + b) s + t becomes y = (s w) x + (s b + t).

    The whole chain is worked out in float64 and rounded once. Links of a chain are results that one
    op reads and that are no outputs of the graph. A convolution gains a bias where it had none; a
    matrix product keeps one addition behind it, in float32 where its elements are bf16. Batch
    normalisation behind anything else becomes one multiplication and one addition, in float32 where
    its elements are half floats. Behind a contraction of half floats, casts to float32 and back are
    links as well.
    """

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        heads: dict[str, _Chain] = {}
        taken: set[str] = set()  # results of links
        for op in graph.ops:
            # a batch normalisation that is a link starts no chain of its own
            c = None if op.outputs[0] in taken else _chain(graph, op)
            if c is not None and fuel.take(f"fold_scales: {op.operator} {op.outputs[0]!r}"):
                heads[op.outputs[0]] = c
                taken |= {link.outputs[0] for link in c.links}
        if not heads:
            return graph
        rewriter = SourceRewriter(graph)
        whole: dict[str, Value] = {}

        def rewrite(op: Op, inputs: tuple[Value | None, ...]) -> Any:
            c = heads.get(op.outputs[0])
            if c is not None and inputs[0] is not None:
                whole[c.result] = _emit(rewriter, c, inputs[0])
                return whole[c.result]
            return whole.get(op.outputs[0])  # what is between the two nobody reads any more

        return DeadCode().run(rewriter.run(rewrite))


@dataclass(frozen=True, slots=True)
class _Head:
    """What a chain starts with: a contraction with constant weights, or a batch normalisation.

    kind: "conv", "matmul" or "norm", which has no weights. axis: of the channels in the result.
    scale, shift: its own, per channel.
    """

    kind: str
    axis: int
    scale: Vector
    shift: Vector
    weights: Blob | None = None


@dataclass(frozen=True, slots=True)
class _Chain:
    """An op and the ops behind it that scale and shift its channels.

    scale, shift: of the whole chain, in the
    element type of constants, of which bf16 is bits. weights: scaled.
    """

    kind: str
    op: Op
    links: tuple[Op, ...]
    scale: Array
    shift: Array
    weights: Deferred | None

    @property
    def result(self) -> str:
        return (self.links or (self.op,))[-1].outputs[0]

    @property
    def source(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s for op in (self.op, *self.links) for s in op.source))


# --------------------------------------------------------------------------- finding


def _array(graph: Graph, blob: str | None) -> Array | None:
    """The numbers of a constant or parameter."""
    b = graph.blobs[blob] if blob is not None else None
    if b is None or b.role not in (Role.CONSTANT, Role.PARAMETER):
        return None
    return floats(b.value, b.type.dtype)


def _chain(graph: Graph, op: Op) -> _Chain | None:
    """The chain that starts with an op, if there is one and rewriting it saves something."""
    t = graph.type(op.outputs[0])
    if t.dtype not in (f32, f64, *HALF) or t.layout.is_blocked or op.group is not None:
        return None
    head = _head(graph, op)
    if head is None:
        return None
    scale, shift, links = _followed(graph, op, head)
    # a matrix product keeps an addition
    needed = int(head.kind == "matmul" and bool(shift.any()))
    if head.kind != "norm" and sum(link.operator != "cast" for link in links) <= needed:
        return None
    # what no convolution takes up is added, or multiplied with, in float32
    wide = (head.kind == "norm" and t.dtype in HALF) or (head.kind == "matmul" and t.dtype is bf16)
    constants = f32 if wide else t.dtype
    with np.errstate(all="ignore"):
        rounded = [narrow(x, constants) for x in (scale, shift)]
    if not all(np.isfinite(floats(x, constants)).all() for x in rounded):
        return None
    weights = None
    if head.weights is not None:
        axis = 0 if head.kind == "conv" else head.weights.type.rank - 1
        if not _keeps_digits(head.weights, scale, axis):
            return None
        weights = scaled(head.weights, scale, axis)
    return _Chain(head.kind, op, links, rounded[0], rounded[1], weights)


def _followed(graph: Graph, op: Op, head: _Head) -> tuple[Vector, Vector, tuple[Op, ...]]:
    """Scale, shift and links of the longest chain whose result has the type that it began with."""
    t = graph.type(op.outputs[0])
    kinds, n = (t.dtype, f32) if t.dtype in HALF else (t.dtype,), t.dims[head.axis]
    scale, shift = head.scale, head.shift
    links: list[Op] = []
    longest = scale, shift, 0
    at = op.outputs[0]
    while at not in graph.outputs and len(graph.consumers[at]) == 1:
        link = graph.consumers[at][0]
        out = graph.output_types(link)[0]
        same = (out.shape, out.layout) == (t.shape, t.layout) and len(link.outputs) == 1
        if not same or out.dtype not in kinds or link.group is not None:
            break
        if link.operator == "cast":
            affine: tuple[Vector, Vector] | None = np.ones(n), np.zeros(n)
        else:
            affine = _affine(graph, link, at, head.axis)
        if affine is None:
            break
        with np.errstate(all="ignore"):
            scale, shift = scale * affine[0], shift * affine[0] + affine[1]
        links.append(link)
        at = link.outputs[0]
        if out.dtype is t.dtype:
            longest = scale, shift, len(links)
    scale, shift, count = longest
    return scale, shift, tuple(links[:count])


def _head(graph: Graph, op: Op) -> _Head | None:
    if op.operator == "batch_normalization":
        affine = _affine(graph, op, op.reads[0], 1)
        return None if affine is None else _Head("norm", 1, *affine)
    contraction = op.definition.trait(Contraction)
    if contraction is None or op.inputs[1] is None:
        return None
    weights = graph.blobs[op.inputs[1]]
    if weights.role not in (Role.CONSTANT, Role.PARAMETER) or weights.type.rank < 2:
        return None
    if contraction.kind == "matmul":
        n = weights.type.dims[-1]
        axis = graph.type(op.outputs[0]).rank - 1
        return _Head("matmul", axis, np.ones(n), np.zeros(n), weights)
    if contraction.kind == "conv":
        n = weights.type.dims[0]
        shift: Vector | None = np.zeros(n)
        if len(op.inputs) > 2:
            bias = _array(graph, op.inputs[2])
            shift = None if bias is None else bias.astype(np.float64)
        return None if shift is None else _Head("conv", 1, np.ones(n), shift, weights)
    return None


def _affine(graph: Graph, op: Op, x: str, axis: int) -> tuple[Vector, Vector] | None:
    """(s, d) when op computes x * s + d, per channel of x."""
    t = graph.type(x)
    if op.inputs.count(x) != 1 or axis >= t.rank:
        return None
    n = t.dims[axis]
    if op.operator == "batch_normalization":
        return _normalization(graph, op) if op.inputs[0] == x and axis == 1 else None
    if op.operator not in ("add", "sub", "mul", "div"):
        return None
    k = op.inputs.index(x)
    c = _per_channel(_array(graph, op.inputs[1 - k]), t.rank, axis, n)
    if c is None or (op.operator == "div" and k == 1):
        return None
    one, zero = np.ones(n), np.zeros(n)
    if op.operator == "add":
        return one, c
    if op.operator == "sub":
        return (one, -c) if k == 0 else (-one, c)
    if op.operator == "mul":
        return c, zero
    with np.errstate(all="ignore"):
        return 1 / c, zero


def _normalization(graph: Graph, op: Op) -> tuple[Vector, Vector] | None:
    """Scale and shift of a batch normalisation with constant statistics."""
    params = [_array(graph, p) for p in op.inputs[1:5]]
    scale, b, mean, var = (None if p is None else p.astype(np.float64) for p in params)
    if scale is None or b is None or mean is None or var is None:
        return None
    with np.errstate(all="ignore"):
        s = scale / np.sqrt(var + op.attr("epsilon"))
        return s, b - mean * s


def _per_channel(x: Array | None, rank: int, axis: int, n: int) -> Vector | None:
    """A constant that broadcasts along all axes but the channels', as a vector."""
    if x is None or x.ndim > rank:
        return None
    shape = (1,) * (rank - x.ndim) + x.shape
    if any(d != 1 and k != axis for k, d in enumerate(shape)) or shape[axis] not in (1, n):
        return None
    return np.broadcast_to(x.reshape(-1).astype(np.float64), (n,))


def _keeps_digits(weights: Blob, scale: Vector, axis: int) -> bool:
    """Whether weights times scale can be written. In half floats, the largest of every channel has
    to be a normal number as well, so that no weight is off by more than half a unit in the last
    place of it."""
    kind = weights.type.dtype
    if kind not in HALF:
        return _stays_finite(weights, scale)
    w = np.abs(floats(weights.value, kind))
    most = w.max(tuple(k for k in range(w.ndim) if k != axis), initial=0) * np.abs(scale)
    normal, largest = _RANGE[kind]
    return bool(((most == 0) | (normal <= most) & (most <= largest)).all())


def _stays_finite(weights: Blob, scale: Vector) -> bool:
    """Whether no product can overflow. Factors up to 1 make none, whatever the weights are."""
    factor = np.abs(scale).max(initial=0)
    w = weights.value
    if factor <= 1 or w is None or not w.size:
        return True
    most = float(np.finfo(w.dtype).max) / factor
    # 1: the squares of what is much smaller may be zero
    if most >= 1 and 2 * sum(_squares(w)) ** 0.5 <= most:
        return True
    return max(float(w.max()), -float(w.min())) <= most  # false if one is not a number


def _squares(w: Array) -> Iterator[float]:
    """Sums of squares of parts of an array: at least the largest square in them, rounded or not. It
    is read once, and part by part copied from where a file has it, on any byte."""
    flat, part = w.reshape(-1), np.empty(_PART, w.dtype)
    with np.errstate(all="ignore"):
        for k in range(0, w.size, _PART):
            here = part[: w.size - k]
            here[...] = flat[k : k + _PART]
            yield float(np.dot(here, here))


# --------------------------------------------------------------------------- rewriting


def _emit(b: SourceRewriter, c: _Chain, x: Value) -> Value:
    """The ops that compute the whole chain. The last one takes the name of the chain's result."""
    named: dict[str, Any] = {"name": c.op.name, "source": c.source}
    last: dict[str, Any] = {**named, "out": (c.result,)}
    operator, attrs = c.op.operator, c.op.attributes

    kind = x.type.dtype

    def constant(value: Array | Deferred, name: str, dtype: DType = kind) -> Value:
        return b.constant(value, f"{c.result}.{name}", dtype)

    out: Value
    if c.kind == "norm":
        return _normalized(b, c, x)
    assert c.weights is not None
    w = constant(c.weights, "weights")
    if c.kind == "conv":
        out = b.op(operator, x, w, constant(c.shift, "bias"), **last, **attrs)
    elif c.shift.any():
        y = b.op(operator, x, w, **named, **attrs)
        if kind is bf16:
            y = b.op("cast", y, to="f32", **named)
            total = b.op("add", y, constant(c.shift, "shift", f32), **named)
            out = b.op("cast", total, to="bf16", **last)
        else:
            out = b.op("add", y, constant(c.shift, "shift"), **last)
    else:
        out = b.op(operator, x, w, **last, **attrs)
    return out


def _normalized(b: SourceRewriter, c: _Chain, x: Value) -> Value:
    """x scale + shift; half floats in float32 meanwhile."""
    named: dict[str, Any] = {"name": c.op.name, "source": c.source}
    last: dict[str, Any] = {**named, "out": (c.result,)}
    kind, column = x.type.dtype, (-1, *(1,) * (x.type.rank - 2))
    scale, shift = (
        b.constant(v.reshape(column), f"{c.result}.{n}")
        for v, n in ((c.scale, "scale"), (c.shift, "shift"))
    )
    half = kind in HALF
    y = b.op("mul", b.op("cast", x, to="f32", **named) if half else x, scale, **named)
    y = b.op("add", y, shift, **(named if half else last))
    out: Value = b.op("cast", y, to=kind.name, **last) if half else y
    return out
