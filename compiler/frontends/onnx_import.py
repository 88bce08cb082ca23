"""Turning the nodes of an ONNX model into a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ...ops.errors import OperatorError
from ...ops.operator import REGISTRY, Operator
from ...ops.types import TensorType, bf16
from ..errors import GraphError, ModelError, UnsupportedOperator
from ..graph.builder import GraphBuilder, Value
from ..graph.evaluate import evaluate_op, narrow
from ..graph.ir import Graph
from . import onnx_compute, onnx_microsoft, onnx_movement, onnx_nets  # noqa: F401  converters
from .onnx_attributes import read_attributes
from .onnx_call import CONVERTERS, Call, Result, Unsupported, find_operator, lift
from .onnx_functions import functions_by_key, schema_function
from .onnx_proto import Message
from .onnx_scope import Node, Scope, Slot, read_nodes, schedule
from .onnx_tensors import ExternalFiles, ForeignType, Known, decode

FOLD_LIMIT: Final = 1 << 16  # elements; larger results are left to the pass that folds constants
_MAX_DEPTH: Final = 64  # of functions and branches inside each other
_OWN_PACKAGE: Final = (__package__ or "").partition(".compiler.")[0]


class _Builder(GraphBuilder):
    """Makes up names that no value of the model has."""

    def __init__(self, name: str, reserved: Iterable[str]) -> None:
        super().__init__(name)
        self.reserved = set(reserved)

    def fresh(self, stem: str) -> str:
        name = super().fresh(stem)
        k = 0
        while name in self.reserved:
            k += 1
            name = super().fresh(f"{stem}.{k}")
        return name


class Importer:
    """Builds one graph from one model whose input types are all bound."""

    def __init__(
        self, model: Message, label: str, files: ExternalFiles, opsets: Mapping[str, int]
    ) -> None:
        self.model = model
        self.label = label
        self.files = files
        self.opsets = opsets
        self.functions = functions_by_key(model)
        self.reports: list[tuple[str, str, str, str]] = []
        self.builder = _Builder("", ())
        self._outputs: frozenset[str] = frozenset()

    def run(
        self,
        inputs: Mapping[str, TensorType | str],
        constants: Mapping[str, Known | str],
        outputs: Sequence[str],
    ) -> Graph:
        """inputs and constants: types and arrays by name; text for a type that is no tensor."""
        graph = self.model.graph
        nodes = read_nodes(graph.node, "")
        reserved = {*inputs, *constants, *outputs, *(n for node in nodes for n in node.outputs)}
        self.builder = _Builder(graph.name or "graph", reserved)
        self._outputs = frozenset(outputs)
        scope = Scope(opsets=self.opsets)
        for name, kind in inputs.items():
            slot = scope.slots[name] = Slot(name)
            if isinstance(kind, str):
                slot.foreign = kind
            else:
                slot.value = self.builder.input(name, kind.dims, kind.dtype)
        for name, value in constants.items():
            slot = scope.slots[name] = Slot(name)
            if isinstance(value, str):
                slot.foreign = value
            else:
                slot.known = value
        self._run_body(nodes, scope, outputs, self.label)
        if self.reports:
            raise UnsupportedOperator(self._report(len(nodes)))
        for name in outputs:
            self._mark_output(name, scope)
        for name, kind in inputs.items():
            if isinstance(kind, str):
                raise ModelError(f"{self.label}: input {name!r} is a {kind}, not a tensor of "
                                 "numbers")  # fmt: skip
        return self.builder.build()

    # ---------------------------------------------------------------- bodies

    def _run_body(
        self, nodes: Sequence[Node], scope: Scope, wanted: Sequence[str], label: str
    ) -> None:
        for name in wanted:
            made = any(name in n.outputs for n in nodes)
            if not made and scope.find(name) is None:
                raise ModelError(f"{label}: the output {name!r} is not made by any node, nor is it "
                                 "an input or initializer")  # fmt: skip
        order = schedule(nodes, scope.slots, wanted, scope.parent, label)
        read = {*wanted, *(name for n in order for name in n.reads)}
        for node in order:
            slots = [scope.find(n) if n else None for n in node.inputs]
            out = tuple(n if n in read else "" for n in node.outputs)
            for name in filter(None, node.outputs):
                scope.slots[name] = Slot(name, foreign="")
            if not any(s is not None and s.foreign == "" for s in slots):
                try:
                    self._run_node(node, scope, slots, out)
                except Unsupported as e:
                    self._note(node, scope, slots, str(e))
            # Otherwise an unsupported node stands before this one, which says enough.

    def _run_node(
        self, node: Node, scope: Scope, slots: Sequence[Slot | None], outputs: tuple[str, ...]
    ) -> None:
        attrs = read_attributes(node.proto, self.files, node.where, scope.outer_attributes)
        for s in slots:
            if s is not None and s.foreign and node.op_type != "If":
                raise Unsupported(
                    "strings are not supported" if "string" in s.foreign
                    else f"its input {s.name!r} is a {s.foreign}"
                )  # fmt: skip
        key = (node.domain, node.op_type, getattr(node.proto, "overload", ""))
        if key in self.functions:
            self._inline(self.functions[key], node, scope, slots, attrs)
        elif (node.domain, node.op_type) == ("", "If"):
            self._branch(node, scope, slots, attrs)
        else:
            call = Call(
                builder=self.builder,
                op_type=node.op_type,
                label=node.label,
                where=node.where,
                version=self._version(node, scope),
                inputs=tuple(None if s is None else self._entry(s) for s in slots),
                attrs=attrs,
                outputs=_trimmed(outputs),
            )
            try:
                result = self._convert(node, scope, call)
            except Unsupported:
                function = schema_function(node.proto, call)
                if function is None:
                    raise
                self._inline(function, node, scope, slots, attrs)
                return
            self._bind(scope, call.outputs, result)

    def _entry(self, slot: Slot) -> Value | Known | None:
        return slot.value if slot.value is not None else slot.known

    def _version(self, node: Node, scope: Scope) -> int:
        if node.domain in scope.opsets:
            return scope.opsets[node.domain]
        if node.domain == "":
            raise ModelError(f"{self.label}: {node.where} is of the ONNX domain, but the model "
                             "imports no version of it (opset_import)")  # fmt: skip
        return 1

    def _bind(self, scope: Scope, outputs: tuple[str, ...], result: Result) -> None:
        results = result if isinstance(result, tuple) else (result,)
        for name, r in zip(outputs, results, strict=False):
            if name and r is not None:
                slot = scope.slots[name]
                slot.foreign = None
                if isinstance(r, Known):
                    slot.known = r
                else:
                    slot.value = r
        for k, name in enumerate(outputs):
            if name and (k >= len(results) or results[k] is None):
                raise Unsupported(f"its output {k} ({name!r}) cannot be computed")

    # ---------------------------------------------------------------- one node

    def _convert(self, node: Node, scope: Scope, call: Call) -> Result:
        converter = CONVERTERS.get((node.domain, node.op_type))
        if converter is None:
            operator = _registered(node)
            if operator is None:
                version = "" if node.domain == "" else f"domain {node.domain}, "
                raise Unsupported(f"{version}opset {call.version}")
            converter = Call.forward
        folded = self._fold(call, converter)
        if folded is not None:
            return folded
        names = tuple(self._blob_name(scope, n) for n in call.outputs)
        inputs = tuple(
            self._lift(scope.find(n)) if n and _is_large(e) else e
            for n, e in zip(node.inputs, call.inputs, strict=True)
        )
        made = replace(call, inputs=call.inputs, out_names=names, _lifted=self._lifted(scope, node))
        del inputs
        try:
            return converter(made)
        except OperatorError as e:
            types = ", ".join("-" if v is None else str(v.type) for v in call.inputs)
            raise GraphError(f"{node.where} of ({types}): {e}") from e

    def _report(self, total: int) -> str:
        return ""
