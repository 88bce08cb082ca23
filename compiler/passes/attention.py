"""What attention looks like in a graph: weighted sums of rows, with weights from a softmax.

    scores = q @ k, then pointwise ops (a scale, a mask)
    weights = softmax(scores), decomposed, over the last axis
    result = weights @ v, then pointwise ops, a transpose, a reshape that joins axes

No intermediate result has other readers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.operator import Contraction, Elementwise
from ...ops.types import TensorType
from ..graph.ir import Graph, Op


@dataclass(frozen=True, slots=True)
class Softmax:
    """A softmax over the last axis of a blob: its ops, and what they make."""

    scores: str
    ops: tuple[Op, ...]
    weights: str


@dataclass(frozen=True, slots=True)
class Attention:
    """The ops between the two products, those included, in order."""

    first: Op
    pointwise: tuple[Op, ...]
    softmax: Softmax
    second: Op


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
    second = _only(graph, found.weights)
    if second is None or not _is_product(second) or second.reads[0] != found.weights:
        return None
    return Attention(first, tuple(pointwise), found, second) if _fit(graph, first, second) else None


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
    return one.dims[:-1] == two.dims[:-1] and alone[0] == alone[1] and two.dims[-1] > 1


def _matrices(t: TensorType) -> int:
    return t.size // (t.dims[-1] * t.dims[-2])


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
