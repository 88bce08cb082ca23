"""What attention looks like in a graph: weighted sums of rows, with weights from a softmax.

    scores = q @ k, then pointwise ops (a scale, a mask)
    weights = softmax(scores), decomposed, over the last axis; perhaps a cast
    result = weights @ v, then pointwise ops, a transpose, a reshape that joins axes

No intermediate result has other readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...ops.operator import Contraction, Elementwise
from ...ops.types import HALF, DType, TensorType, f32, f64
from ..graph.ir import Graph, Op


@dataclass(frozen=True, slots=True)
class Softmax:
    """A softmax over the last axis of a blob: its ops, and what they make."""

    scores: str
    ops: tuple[Op, ...]
    weights: str


@dataclass(frozen=True, slots=True)
class Attention:
    """The ops between the two products, those included, in order. cast: of the weights to the type
    in which the second product is computed, if there is one."""

    first: Op
    pointwise: tuple[Op, ...]
    softmax: Softmax
    second: Op
    cast: Op | None = None

    @property
    def between(self) -> tuple[Op, ...]:
        cast = () if self.cast is None else (self.cast,)
        return (*self.pointwise, *self.softmax.ops, *cast)


@dataclass(frozen=True, slots=True)
class AttentionKernel:
    """What a target's kernel for whole attentions takes. types: of the operands of both products.
    least, most: terms of the first product and columns of the second. casts: whether the weights
    may be cast for the second product, as where softmax alone is computed in float32. scales:
    whether queries and keys in half floats may be multiplied by numbers on the way, which it does
    to their products instead: it has these in float32, where they don't overflow."""

    types: tuple[DType, ...] = (f32, f64)
    least: int = 1
    most: int = 1 << 62
    casts: bool = False
    scales: bool = False

    def takes(self, graph: Graph, found: Attention) -> bool:
        q, k = (graph.type(n) for n in found.first.reads)
        v = graph.type(found.second.reads[1])
        scores = graph.type(found.softmax.scores).dtype
        one = q.dtype is k.dtype is v.dtype and q.dtype in self.types
        one = one and (scores is q.dtype or (self.casts and scores is f32))
        fits = all(self.least <= width <= self.most for width in (q.dims[-1], v.dims[-1]))
        return one and fits and (found.cast is None or self.casts)


WHOLE: Final = AttentionKernel()
"""Of a kernel for any attention in one type."""


def softmax_of(graph: Graph, scores: str) -> Softmax | None:
    """The softmax that is all that reads a blob."""
    readers = {op.operator: op for op in graph.consumers[scores]}
    top, less = readers.get("reduce_max"), readers.get("sub")
    if len(graph.consumers[scores]) != 2 or top is None or less is None:
        return None
    power = _only(graph, less.outputs[0], "exp")
    if power is None or less.reads != (scores, top.outputs[0]):
        return None
    after = {op.operator: op for op in graph.consumers[power.outputs[0]]}
    total, share = after.get("reduce_sum"), after.get("div")
    if len(graph.consumers[power.outputs[0]]) != 2 or total is None or share is None:
        return None
    ops = (top, less, power, total, share)
    inner = [op.outputs[0] for op in ops[:-1]]
    rows = graph.type(scores).dims[:-1]
    whole = all(graph.type(op.outputs[0]).dims == (*rows, 1) for op in (top, total))
    alone = all(len(graph.consumers[o.outputs[0]]) == 1 for o in (top, total))
    if (
        share.reads != (power.outputs[0], total.outputs[0])
        or not (whole and alone and graph.type(scores).dims[-1] > 1)
        or any(o in graph.outputs for o in (scores, *inner))
    ):
        return None
    return Softmax(scores, ops, share.outputs[0])


def attention_from(graph: Graph, first: Op) -> Attention | None:
    """The attention that begins with a product."""
    if not _is_product(first):
        return None
    blob = first.outputs[0]
    pointwise: list[Op] = []
    while (found := softmax_of(graph, blob)) is None:
        op = _only(graph, blob)
        if op is None or not op.has(Elementwise) or len(op.outputs) != 1:
            return None
        if graph.type(op.outputs[0]).dims != graph.type(blob).dims:
            return None
        pointwise.append(op)
        blob = op.outputs[0]
    weights, second = found.weights, _only(graph, found.weights)
    cast = second if second is not None and second.operator == "cast" else None
    if cast is not None:
        weights, second = cast.outputs[0], _only(graph, cast.outputs[0])
    if second is None or not _is_product(second) or second.reads[0] != weights:
        return None
    if second.reads[1] == weights or not _fit(graph, first, second):
        return None
    return Attention(first, tuple(pointwise), found, second, cast)


def _only(graph: Graph, blob: str, operator: str | None = None) -> Op | None:
    """The one op that reads a blob, if it is of that operator."""
    readers = graph.consumers[blob]
    if len(readers) != 1 or blob in graph.outputs:
        return None
    return readers[0] if operator in (None, readers[0].operator) else None


def _is_product(op: Op) -> bool:
    trait = op.definition.trait(Contraction)
    return trait is not None and trait.kind == "matmul"


def _fit(graph: Graph, first: Op, second: Op) -> bool:
    """Whether both are products of stacks of matrices that differ in the same axes."""
    kinds = [graph.type(n) for op in (first, second) for n in op.reads]
    if len(kinds) != 4 or any(t.rank < 2 or t.size == 0 for t in kinds):
        return False
    one, two = graph.type(first.outputs[0]), graph.type(second.outputs[0])
    alone = [_matrices(t) == 1 for t in kinds[1::2]]
    return (one.dims[:-1] == two.dims[:-1] and alone[0] == alone[1] and two.dims[-1] > 1
            and _matched(kinds[1], kinds[3], two))  # fmt: skip


def _matched(keys: TensorType, values: TensorType, result: TensorType) -> bool:
    """Whether what shares a matrix of values shares its keys, too."""
    rank = result.rank
    k, v = ((*(1,) * (rank - t.rank), *t.dims)[:-2] for t in (keys, values))
    return all(b > 1 or a == 1 for a, b in zip(k, v, strict=True))


def _matrices(t: TensorType) -> int:
    return t.size // (t.dims[-1] * t.dims[-2])


def scaling(graph: Graph, op: Op) -> tuple[tuple[Op, ...], str] | None:
    """The ops that multiply a blob of half floats by one number and end with this one, in order,
    and that blob: in half floats, or in float32 between casts. None for anything else."""
    kind = graph.type(op.outputs[0]).dtype
    if kind not in HALF or len(op.outputs) != 1:
        return None
    if op.operator == "mul":
        x = _multiplied(graph, op)
        return None if x is None else ((op,), x)
    inner = graph.producer.get(op.reads[0]) if op.operator == "cast" else None
    x = None if inner is None or inner.operator != "mul" else _multiplied(graph, inner)
    first = None if x is None else graph.producer.get(x)
    if inner is None or first is None or first.operator != "cast":
        return None
    alone = all(_only(graph, o.outputs[0]) is not None for o in (first, inner))
    fits = alone and graph.type(first.reads[0]).dtype is kind
    return ((first, inner, op), first.reads[0]) if fits else None


def _multiplied(graph: Graph, op: Op) -> str | None:
    """What an op multiplies by one number of moderate size."""
    for x, s in (op.reads, op.reads[::-1]) if len(op.reads) == 2 else ():
        value = graph.blobs[s].value if graph.blobs[s].is_constant else None
        if value is None or value.size != 1 or value.dtype.kind != "f":
            continue
        same = graph.type(op.outputs[0]).dims == graph.type(x).dims
        if same and 2.0**-20 <= abs(value.item()) <= 2.0**20:
            return x
    return None


def moves_result(graph: Graph, op: Op) -> bool:
    """Whether an op puts every element of its one input in a place of its own that is easily told
    from where it was: a transpose, or a reshape that joins neighbouring axes."""
    if op.operator == "transpose":
        return True
    if op.operator != "reshape":
        return False
    before = [d for d in graph.type(op.reads[0]).dims if d != 1]
    for d in graph.type(op.outputs[0]).dims:
        while d > 1:
            if not before or d % before[0]:
                return False
            d //= before.pop(0)
    return not before
