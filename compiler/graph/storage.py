"""Which blobs lie in another blob's memory, and where: views, and parts of a larger blob."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ops.operator import Relayout, View
from .ir import Graph, Op


@dataclass(frozen=True, slots=True)
class Alias:
    """A blob's memory as `rows` stretches of `bytes` bytes, `pitch` bytes apart, the first of them
    `offset` bytes behind the start of blob `of`."""

    of: str
    offset: int
    rows: int
    bytes: int
    pitch: int


def place_in(shared: Mapping[str, Alias], blob: str) -> tuple[str, int]:
    """The blob that a blob's memory is, and bytes from its start. shared: the graph's `aliases`."""
    inner = 0
    while blob in shared:
        blob, inner = shared[blob].of, inner + shared[blob].offset
    return blob, inner


def is_view(graph: Graph, op: Op) -> bool:
    """Whether the op's result is its input's memory under another shape."""
    if not (op.has(View) or op.has(Relayout)):
        return False
    source, out = op.inputs[0], op.outputs[0]
    if source is None or len(op.outputs) != 1 or out in graph.outputs:
        return False
    old, new = graph.blobs[source], graph.blobs[out]
    in_order = old.type.is_in_order and new.type.is_in_order
    return not old.is_constant and old.type.is_dense and in_order and new.inside is None


def needs_no_code(graph: Graph, ops: Sequence[Op]) -> bool:
    """Whether a group computes nothing: a view, a cut into parts of its input, or the join of parts
    that were written where they belong."""
    if len(ops) != 1:
        return False
    op = ops[0]
    return is_view(graph, op) or is_join(graph, op) or is_cut(graph, op)


def is_join(graph: Graph, op: Op) -> bool:
    """Whether every input is a part of the one output."""
    wholes = {_whole(graph, n) for n in op.reads}
    return len(op.outputs) == 1 and wholes == {op.outputs[0]}


def is_cut(graph: Graph, op: Op) -> bool:
    """Whether every output is a part of the one input."""
    wholes = {_whole(graph, n) for n in op.outputs}
    return len(op.reads) == 1 and wholes == {op.reads[0]}


def _whole(graph: Graph, blob: str) -> str | None:
    inside = graph.blobs[blob].inside
    return None if inside is None else inside.blob


def aliases(graph: Graph) -> dict[str, Alias]:
    """Every blob that has no memory of its own."""
    found = {}
    for ops in graph.groups:
        if len(ops) == 1 and is_view(graph, ops[0]):
            size = graph.type(ops[0].outputs[0]).nbytes
            found[ops[0].outputs[0]] = Alias(ops[0].reads[0], 0, 1, size, size)
    for n, b in graph.blobs.items():
        if b.inside is not None:
            at = b.type.position(b.type.layout.along, b.inside.start)
            rows, each, step = b.type.runs
            found[n] = Alias(b.inside.blob, at, rows, each, step)
    return found
