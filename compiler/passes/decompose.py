"""Replaces composite operators by the operators they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ops.operator import REGISTRY, Contraction, Opaque, Operator, Recurrence
from ..errors import GraphError
from ..graph.builder import Value
from ..graph.ir import Graph, Op
from .base import Pass
from .rewrite import SourceRewriter

_DEEPEST = 16


def is_composite(definition: Operator) -> bool:
    """Whether an operator can only be compiled as others: it says how it decomposes, and neither
    what an element is nor that a kernel template computes it."""
    templates = (Contraction, Recurrence, Opaque)
    return (
        definition.decompose is not None
        and definition.compute is None
        and not any(definition.has(t) for t in templates)
    )


@dataclass(frozen=True)
class Decompose(Pass):
    """Expands composite operators until none is left."""

    def run(self, graph: Graph) -> Graph:
        if not any(is_composite(op.definition) for op in graph.ops):
            return graph
        expander = _Expander(graph)
        return expander.run(expander.rewrite)


class _Expander(SourceRewriter):
    """Ops that a decomposition adds are themselves expanded as they are added."""

    depth = 0

    def op(self, operator: str, *inputs: Any, **kwargs: Any) -> Any:
        definition = REGISTRY.get(operator)
        if self.current is None or definition is None or not is_composite(definition):
            return super().op(operator, *inputs, **kwargs)
        if self.depth == _DEEPEST:
            raise GraphError(f"the operator {operator!r} decomposes without end")
        values = [v if v is None or isinstance(v, Value) else self.constant(v) for v in inputs]
        values += [None] * ((definition.max_inputs or len(values)) - len(values))
        attrs = {k: v for k, v in kwargs.items() if k in definition.attrs}
        self.depth += 1
        result = definition.decompose(self, *values, **definition.bind(attrs))  # type: ignore[misc]
        self.depth -= 1
        return tuple(result) if isinstance(result, (tuple, list)) else result

    def rewrite(self, op: Op, inputs: tuple[Value | None, ...]) -> Any:
        if not is_composite(op.definition):
            return None
        return self.op(op.operator, *inputs, **op.attributes)
