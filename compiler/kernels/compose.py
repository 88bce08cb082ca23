"""From a fusion group to one expression per output: declarations composed by substitution.

The expressions load from blobs at logical indices; `address.py` turns those into buffer offsets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...ops.expr import Expr, const, index, load, var
from ...ops.operator import Elementwise, TensorArg
from ...ops.traverse import substitute, transform
from ...ops.types import bf16
from ..errors import LoweringError
from ..graph.ir import Array, Blob, Deferred, Graph, Op

Indices = tuple[Expr, ...]


class Composer:
    """Composes the bodies of a set of ops of one graph; what they do not produce is loaded."""

    def __init__(self, graph: Graph, ops: Iterable[Op]) -> None:
        self.graph = graph
        self.inside = {o: op for op in ops for o in op.outputs}
        self._bodies: dict[str, tuple[Indices, Expr]] = {}
        self._elements: dict[tuple[str, Indices], Expr] = {}
        self._count = 0

    def element(self, blob: str, at: Indices) -> Expr:
        """The value of `blob` at logical indices `at`."""
        key = (blob, at)
        found = self._elements.get(key)
        if found is None:
            found = self._elements[key] = self._element(blob, at)
        return found

    def _element(self, blob: str, at: Indices) -> Expr:
        b = self.graph.blobs[blob]
        if blob not in self.inside:
            one = only_element(b)
            if one is not None and b.type.dtype is not bf16:
                return const(one.item(), b.type.dtype)
            return load(blob, at, b.type.dtype)
        formal, body = self._body(blob)
        return substitute(body, dict(zip(formal, at, strict=True)))

    def _body(self, blob: str) -> tuple[Indices, Expr]:
        if blob not in self._bodies:
            op = self.inside[blob]
            self._count += 1
            bodies = self._expand(op, f"{self._count}")
            for name, entry in zip(op.outputs, bodies, strict=True):
                self._bodies[name] = entry
        return self._bodies[blob]

    def _expand(self, op: Op, tag: str) -> list[tuple[Indices, Expr]]:
        """Every output of an op over fresh index variables."""
        g = self.graph
        definition = op.definition
        if definition.compute is None:
            raise LoweringError(f"{op.operator} (node {op.name!r}) declares no expression")
        outs = g.output_types(op)
        if definition.has(Elementwise):
            formal = fresh(outs[0].dims, tag)
            args = [None if n is None else self.element(n, broadcast(formal, g.type(n).dims))
                    for n in op.inputs]  # fmt: skip
            args += [None] * ((definition.max_inputs or len(args)) - len(args))
            body = definition.compute(*args, **op.attributes)
            return [(formal, e) for e in (body if isinstance(body, tuple) else (body,))]
        tensors: list[Any] = [None if n is None else TensorArg(n, g.type(n)) for n in op.inputs]
        tensors += [None] * ((definition.max_inputs or len(tensors)) - len(tensors))
        made = definition.compute(outs if len(outs) > 1 else outs[0], *tensors, **op.attributes)
        result = []
        for k, fn in enumerate(made if isinstance(made, tuple) else (made,)):
            formal = fresh(outs[k].dims, tag)  # outputs of one shape share what they compute
            result.append((formal, self._inline(_rename_bound(fn(*formal), tag))))
        return result

    def _inline(self, body: Expr) -> Expr:
        """Replace loads of blobs that this group makes, and of scalar constants."""

        def visit(n: Expr, args: tuple[Expr, ...]) -> Expr | None:
            return self.element(n.payload, args) if n.op == "load" else None

        return transform(body, visit)


def only_element(blob: Blob) -> Array | None:
    """What a constant has in all places, as an array of rank 0; None where that is not plain."""
    x = blob.content
    if x is None or not blob.type.size or isinstance(x, Deferred):
        return None
    return x[(0,) * x.ndim].reshape(()) if x.size == 1 or not any(x.strides) else None


def fresh(dims: tuple[int, ...], tag: str) -> Indices:
    """Index variables for a shape; extents of 1 are the constant 0."""
    return tuple(var(f"i{tag}_{k}", d) if d != 1 else index(0) for k, d in enumerate(dims))


def broadcast(at: Indices, dims: tuple[int, ...]) -> Indices:
    """Indices into a tensor that is broadcast to the shape that `at` indexes."""
    tail = at[len(at) - len(dims) :] if dims else ()
    return tuple(index(0) if d == 1 else e for e, d in zip(tail, dims, strict=True))


def _rename_bound(body: Expr, tag: str) -> Expr:
    """Make the reduction variables of one op unique, so that nesting ops cannot capture them; those
    with a single value become that value."""
    bound: dict[Expr, Expr] = {}
    for v in _bound(body):
        name, lo, end = v.payload
        bound[v] = index(lo) if end - lo == 1 else var(f"{name}_{tag}", end - lo, lo)
    return substitute(body, bound)


def _bound(body: Expr) -> set[Expr]:
    out: set[Expr] = set()
    seen: set[Expr] = set()

    def go(e: Expr) -> None:
        if e in seen:
            return
        seen.add(e)
        if e.op == "reduce":
            out.update(e.payload[1])
        for a in e.args:
            go(a)

    go(body)
    return out
