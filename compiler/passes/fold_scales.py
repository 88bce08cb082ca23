"""Moves scales and shifts per channel into the weights and bias of the contraction before them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...ops.operator import Contraction
from ...ops.types import f32, f64
from ..graph.builder import Value
from ..graph.ir import Array, Blob, Deferred, Graph, Op, Role
from ..graph.scaled import Vector, scaled
from .base import UNLIMITED, Fuel, OptionalPass
from .dce import DeadCode
from .rewrite import SourceRewriter

_PART: Final = 1 << 16
"""Weights looked at in one go, few enough to stay in the second cache."""


@dataclass(frozen=True)
class FoldScales(OptionalPass):
    """Batch normalisation, and + - * / by constants per channel, after a convolution or matrix
    product with constant weights: y = (w x + b) s + t becomes y = (s w) x + (s b + t).

    The whole chain is worked out in float64 and rounded once. Links of a chain are results that one
    op reads and that are no outputs of the graph. A convolution gains a bias where it had none; a
    matrix product keeps one addition behind it. Batch normalisation behind anything else becomes
    one multiplication and one addition.
    """

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        heads: dict[str, _Chain] = {}
        place: dict[str, int] = {}  # result of a link -> which of its inputs is the chain
        for op in graph.ops:
            # a batch normalisation that is a link starts no chain of its own
            c = None if op.outputs[0] in place else _chain(graph, op)
            if c is not None and fuel.take(f"fold_scales: {op.operator} {op.outputs[0]!r}"):
                heads[op.outputs[0]] = c
                place |= {link.outputs[0]: k for link, k in zip(c.links, c.data, strict=True)}
        if not heads:
            return graph
        rewriter = SourceRewriter(graph)

        def rewrite(op: Op, inputs: tuple[Value | None, ...]) -> Any:
            n = op.outputs[0]
            if n in heads and inputs[0] is not None:
                return _emit(rewriter, heads[n], inputs[0])
            return inputs[place[n]] if n in place else None

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

    data: which input of each link is the link before. scale, shift: of the whole chain, in the
    element type of the graph. weights: scaled.
    """

    kind: str
    op: Op
    links: tuple[Op, ...]
    data: tuple[int, ...]
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
    """The array of a constant or parameter."""
    b = graph.blobs[blob] if blob is not None else None
    return b.value if b is not None and b.role in (Role.CONSTANT, Role.PARAMETER) else None


def _chain(graph: Graph, op: Op) -> _Chain | None:
    """The chain that starts with an op, if there is one and rewriting it saves something."""
    t = graph.type(op.outputs[0])
    if t.dtype not in (f32, f64) or t.layout.is_blocked or op.group is not None:
        return None
    head = _head(graph, op)
    if head is None:
        return None
    scale, shift = head.scale, head.shift
    links: list[Op] = []
    data: list[int] = []
    at = op.outputs[0]
    while at not in graph.outputs and len(graph.consumers[at]) == 1:
        link = graph.consumers[at][0]
        affine = _affine(graph, link, at, head.axis)
        if affine is None or graph.output_types(link) != (t,) or link.group is not None:
            break
        with np.errstate(all="ignore"):
            scale, shift = scale * affine[0], shift * affine[0] + affine[1]
        links.append(link)
        data.append(link.inputs.index(at))
        at = link.outputs[0]
    # a matrix product keeps an addition
    needed = int(head.kind == "matmul" and bool(shift.any()))
    if head.kind != "norm" and len(links) <= needed:
        return None
    with np.errstate(all="ignore"):
        rounded = [x.astype(t.dtype.numpy) for x in (scale, shift)]
    if not all(np.isfinite(x).all() for x in rounded):
        return None
    weights = None
    if head.weights is not None:
        axis = 0 if head.kind == "conv" else head.weights.type.rank - 1
        if not _stays_finite(head.weights, scale):
            return None
        weights = scaled(head.weights, scale, axis)
    return _Chain(head.kind, op, tuple(links), tuple(data), rounded[0], rounded[1], weights)


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

    def constant(value: Array | Deferred, name: str) -> Value:
        return b.constant(value, f"{c.result}.{name}")

    out: Value
    if c.kind == "norm":
        column = (-1, *(1,) * (x.type.rank - 2))
        y = b.op("mul", x, constant(c.scale.reshape(column), "scale"), **named)
        out = b.op("add", y, constant(c.shift.reshape(column), "shift"), **last)
        return out
    assert c.weights is not None
    w = constant(c.weights, "weights")
    if c.kind == "conv":
        out = b.op(operator, x, w, constant(c.shift, "bias"), **last, **attrs)
    elif c.shift.any():
        y = b.op(operator, x, w, **named, **attrs)
        out = b.op("add", y, constant(c.shift, "shift"), **last)
    else:
        out = b.op(operator, x, w, **last, **attrs)
    return out
