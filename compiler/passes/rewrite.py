"""What rewriting passes share: a graph builder that knows where its ops come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import GraphError
from ..graph.builder import Rewriter, Value
from ..graph.ir import Array, Graph, Op, Role


class SourceRewriter(Rewriter):
    """A Rewriter whose new ops take the name and the sources of the op that they replace, and that
    finds the op behind a value of the new graph."""

    def __init__(self, old: Graph) -> None:
        super().__init__(old)
        self.current: Op | None = None
        self._made: dict[str, Op] = {}

    def op(self, operator: str, *inputs: Any, **kwargs: Any) -> Any:
        if self.current is not None and not kwargs.get("name") and not kwargs.get("source"):
            kwargs |= {"name": self.current.name, "source": self.current.source}
        result = super().op(operator, *inputs, **kwargs)
        self._note(self.ops[-1])
        return result

    def _unchanged(self, op: Op, ins: tuple[Value | None, ...]) -> Any:
        result = super()._unchanged(op, ins)
        self._note(self.ops[-1])
        return result

    def _note(self, op: Op) -> None:
        for n in op.outputs:
            self._made[n] = op

    def producer(self, value: Value | None) -> Op | None:
        """The new op that makes a value; None for inputs and constants."""
        return None if value is None else self._made.get(value.name)

    def array(self, value: Value | None) -> Array | None:
        """The array of a constant or parameter, None for anything else."""
        if value is None:
            return None
        blob = self.blobs[value.name]
        return blob.value if blob.role in (Role.CONSTANT, Role.PARAMETER) else None

    def is_constant(self, value: Value | None) -> bool:
        """Whether `array` has an array, without computing it."""
        return value is not None and self.blobs[value.name].role in (Role.CONSTANT, Role.PARAMETER)

    def handle(self, name: str) -> Value:
        """A handle to a blob of the new graph."""
        return Value(self, name)

    def run(self, rewrite: Callable[[Op, tuple[Value | None, ...]], Any]) -> Graph:
        """As Rewriter.run. Raises GraphError where a replacement has another type than the result
        that it replaces."""

        def checked(op: Op, inputs: tuple[Value | None, ...]) -> Any:
            self.current = op
            result = rewrite(op, inputs)
            self.current = None
            if result is None:
                return None
            values = result if isinstance(result, tuple) else (result,)
            for v, wanted in zip(values, self.old.output_types(op), strict=True):
                if v is not None and (v.type.dtype, v.type.shape) != (wanted.dtype, wanted.shape):
                    raise GraphError(
                        f"{op.operator} (node {op.name!r}): its replacement has the type {v.type}, "
                        f"not {wanted}"
                    )
            return result

        return super().run(checked)


def dense(x: Array) -> Array:
    """The array row-major in memory, of the same rank (np.ascontiguousarray makes 0-d ones 1-d)."""
    return np.asarray(x, order="C")
