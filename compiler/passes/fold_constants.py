"""Computes at compile time what depends on constants only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops.operator import Injective, View
from ..graph.builder import Value
from ..graph.evaluate import evaluate_op, floats, narrow
from ..graph.ir import Array, Blob, Graph, Op, Role
from .base import UNLIMITED, Fuel, OptionalPass
from .rewrite import SourceRewriter, dense

_MiB = 1 << 20


@dataclass(frozen=True)
class FoldConstants(OptionalPass):
    """Ops over constants and parameters become constants.

    Arithmetic is done in float64 by the operators' references and rounded once to the result's
    element type. A result of more than `max_bytes` is not stored unless its inputs were as large,
    or it is one element repeated: that is kept as a view of the element, of up to `max_splat` bytes
    were it written out. What the reference refuses (an index out of range, say) is left to the
    kernel.
    """

    max_bytes: int = 16 * _MiB
    max_splat: int = 1024 * _MiB

    def run(self, graph: Graph, fuel: Fuel = UNLIMITED) -> Graph:
        rewriter = SourceRewriter(graph)

        def rewrite(op: Op, inputs: tuple[Value | None, ...]) -> Any:
            # a copy of a constant that gives an output its name would come back at once
            if op.has(View) and not set(op.outputs).isdisjoint(graph.outputs):
                return None
            if not all(v is None or rewriter.is_constant(v) for v in inputs):
                return None
            arrays = [rewriter.array(v) for v in inputs]
            results = self._results(graph, op, arrays)
            if results is None or not fuel.take(f"fold_constants: {op.operator} {op.outputs[0]!r}"):
                return None
            return tuple(
                _constant(rewriter, graph, n, x) for n, x in zip(op.outputs, results, strict=True)
            )

        return rewriter.run(rewrite)

    def _results(self, graph: Graph, op: Op, inputs: list[Array | None]) -> list[Array] | None:
        types = graph.output_types(op)
        size = sum(t.nbytes for t in types)
        given = sum(x.nbytes for x in inputs if x is not None)
        limit = self.max_bytes if inputs else self.max_splat
        if size > max(limit, given) or any(t.layout.is_blocked for t in types):
            return None
        # copies need no precision, and widening large weights takes time
        exact = op.has(Injective) or op.has(View)
        if not exact:
            kinds = (*graph.input_types(op), *(None for _ in inputs))
            inputs = [x if x is None or t is None else floats(x, t.dtype)
                      for x, t in zip(inputs, kinds, strict=False)]  # fmt: skip
        try:
            values = evaluate_op(op, inputs, wide=not exact)
        except (ValueError, IndexError, TypeError, ArithmeticError):
            return None
        folded = [_compact(narrow(y, t.dtype)) for y, t in zip(values, types, strict=True)]
        too_large = size > max(self.max_bytes, given) and not all(map(_is_splat, folded))
        return None if too_large else folded


SMALL = 4096  # bytes up to which a repeated element may as well be written out


def _compact(x: Array) -> Array:
    """x row-major; as a view of one element where it repeats that one.

    Large transposed weights stay a view: who packs them for a kernel reads them in any order, and
    once, while a transposed copy takes longer than everything else in compiling does.
    """
    if x.nbytes > SMALL and _is_splat(x):
        return np.broadcast_to(x.reshape(-1)[:1].copy().reshape((1,) * x.ndim), x.shape)
    whole = getattr(x.base, "nbytes", 0) <= 2 * x.nbytes  # keeps little else in memory
    return x if x.nbytes > _MiB and x.base is not None and whole else dense(x)


def _is_splat(x: Array) -> bool:
    """One bit pattern everywhere."""
    if not any(x.strides) or not x.size:
        return True
    few = x.flat[:: max(1, x.size // 16)]  # mostly these settle it
    return _repeats(few) and _repeats(dense(x).reshape(-1))


def _repeats(flat: Array) -> bool:
    bits = flat.view(np.uint8).reshape(flat.size, -1)
    return bool((bits == bits[:1]).all())


def _constant(rewriter: SourceRewriter, graph: Graph, name: str, value: Array) -> Value:
    """The value as a constant blob, under the name of the blob that it replaces where that is free:
    an output of the graph must be written by an op."""
    value = value.view()
    value.flags.writeable = False
    if name in graph.outputs:
        return rewriter.constant(value, name, graph.type(name).dtype)
    return rewriter.add_blob(Blob(name, graph.type(name), Role.CONSTANT, value))
