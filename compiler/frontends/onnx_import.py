"""Turning the nodes of an ONNX model into a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ...ops.errors import OperatorError
from ...ops.types import TensorType, bf16
from ..errors import GraphError, ModelError, TilewrightError, UnsupportedOperator
from ..graph.builder import GraphBuilder, Value
from ..graph.evaluate import evaluate_op, narrow
from ..graph.ir import Blob, Graph
from . import (  # noqa: F401  register their converters
    onnx_compute,
    onnx_microsoft,
    onnx_movement,
    onnx_quantized,
)
from .onnx_attributes import read_attributes, read_attributes_of
from .onnx_call import (
    CONVERTERS,
    Call,
    Converter,
    Result,
    Unknown,
    Unsupported,
    find_operator,
    lift,
)
from .onnx_functions import functions_by_key, may_have_definition, schema_function
from .onnx_proto import Message, domain_of
from .onnx_reports import Report, explain
from .onnx_scope import Node, Scope, Slot, read_nodes, schedule
from .onnx_signatures import TYPE_ONLY
from .onnx_tensors import ExternalFiles, Known, decode_all

FOLD_LIMIT: Final = 1 << 16  # elements; larger results are left to the pass that folds constants
_MAX_DEPTH: Final = 64  # of functions and branches inside each other
_OPERATORS: Final = (__package__ or "").partition(".compiler.")[0] + ".ops."


class _Builder(GraphBuilder):
    """Makes up names that no value of the model has."""

    def __init__(self, name: str, reserved: Iterable[str]) -> None:
        super().__init__(name)
        self.reserved = frozenset(reserved)

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
        self.functions = functions_by_key(model, label)
        self.reports: list[Report] = []
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
        made = {name for node in nodes for name in node.outputs}
        self.builder = _Builder(graph.name or "graph", {*inputs, *constants, *outputs, *made})
        self._outputs = frozenset(outputs)
        scope = Scope(opsets=self.opsets)
        for name, kind in inputs.items():
            slot = scope.declare(name)
            if isinstance(kind, str):
                slot.foreign = kind
            else:
                slot.value = self.builder.input(name, kind.dims, kind.dtype)
        _declare_constants(scope, constants)
        self._run_body(nodes, scope, outputs, self.label)
        if self.reports:
            raise UnsupportedOperator(explain(self.reports, len(nodes)))
        for name, kind in inputs.items():
            if isinstance(kind, str):
                raise ModelError(f"{self.label}: input {name!r} is a {kind}, not a tensor of "
                                 "numbers")  # fmt: skip
        for k, name in enumerate(outputs):
            self._mark_output(k, name, scope)
        return self.builder.build()

    def _mark_output(self, k: int, name: str, scope: Scope) -> None:
        """Outputs keep their names; one that is an input, a constant or another name of a value
        gets an identity op. (An output that *is* an input cannot have its name twice.)"""
        slot = scope.find(name)
        assert slot is not None
        if slot.foreign is not None:
            raise ModelError(f"{self.label}: output {name!r} is no tensor of numbers")
        value = self._lift(slot)
        made = value.name == name and value.name not in self.builder.inputs
        if not made:
            free = name not in self.builder.blobs
            out = name if free else self.builder.fresh(f"{name}.output")
            value = self.builder.op("identity", value, name=f"Output_{k}", out=(out,))
        self.builder.output(value)

    # ---------------------------------------------------------------- bodies

    def _run_body(
        self, nodes: Sequence[Node], scope: Scope, wanted: Sequence[str], label: str
    ) -> None:
        """Convert the nodes of a graph, branch or function that `wanted` values need."""
        made = {name for n in nodes for name in n.outputs}
        for name in wanted:
            if name not in made and scope.find(name) is None:
                raise ModelError(f"{label}: the output {name!r} is not made by any node, nor is it "
                                 "an input or initializer")  # fmt: skip
        order = schedule(nodes, scope.slots, wanted, scope.parent, label)
        read = {*wanted, *(name for n in order for name in n.reads)}
        for node in order:
            slots = [scope.find(n) if n else None for n in node.inputs]
            wants = tuple(n if n in read else "" for n in node.outputs)
            for name in filter(None, node.outputs):
                scope.declare(name).foreign = ""
            if any(s is not None and s.foreign == "" for s in slots):
                # An unsupported node stands before this one: its types are not known, but whether
                # there is such an operator is.
                self._check_name(node, scope, slots)
                continue
            try:
                self._run_node(node, scope, slots, wants)
            except Unsupported as e:
                types = tuple("-" if s is None else s.foreign or str(_type(s)) for s in slots)
                cut = tuple(s.value.name for s in slots if s and s.value and not s.known
                            and s.value.name not in self.builder.inputs)  # fmt: skip
                self.reports.append(Report(node.op_type, node.label, types, str(e), cut))

    def _check_name(self, node: Node, scope: Scope, slots: Sequence[Slot | None]) -> None:
        """Report a node that could not be compiled whatever its inputs were."""
        key = (node.domain, node.op_type, getattr(node.proto, "overload", ""))
        known = key in self.functions or key[:2] == ("", "If") or key[:2] in CONVERTERS
        version = self._version(node, scope)
        if known or _is_registered(node) or may_have_definition(node, version):
            return
        types = tuple("-" if s is None or s.foreign == "" else s.foreign or str(_type(s))
                      for s in slots)  # fmt: skip
        self.reports.append(Report(node.op_type, node.label, types, _unknown(node, version), ()))

    def _run_node(
        self, node: Node, scope: Scope, slots: Sequence[Slot | None], wants: tuple[str, ...]
    ) -> None:
        attrs = read_attributes(node.proto, self.files, node.where, scope.outer_attributes)
        for s in slots:
            if s is not None and s.foreign:
                what = "strings" if "string" in s.foreign else f"inputs of type {s.foreign}"
                raise Unsupported(f"{what} are not supported")
        key = (node.domain, node.op_type, getattr(node.proto, "overload", ""))
        if key in self.functions:
            self._inline(self.functions[key], node, scope, slots, attrs, wants)
        elif key[:2] == ("", "If"):
            self._branch(node, scope, slots, attrs, wants)
        else:
            call = Call(
                builder=self.builder,
                op_type=node.op_type,
                label=node.label,
                where=node.where,
                version=self._version(node, scope),
                inputs=tuple(None if s is None else s.known or s.value for s in slots),
                attrs=attrs,
                outputs=wants,
                lift_input=lambda k: self._lift(slots[k]),
                out_names=tuple(self._blob_name(scope, n) for n in _trimmed(wants)),
            )
            self._run_call(node, scope, slots, call)

    def _run_call(self, node: Node, scope: Scope, slots: Sequence[Slot | None], call: Call) -> None:
        try:
            result = _convert(node, call)
        except Unknown:
            if not self._run_definition(node, scope, slots, call):
                raise
            return
        results = result if isinstance(result, tuple) else (result,)
        for k, name in enumerate(call.outputs):
            r = results[k] if k < len(results) else None
            if name and r is None:
                raise Unsupported(f"its output {k} ({name!r}) cannot be computed")
            if name:
                slot = scope.slots[name]
                slot.foreign = None
                slot.known, slot.value = (r, None) if isinstance(r, Known) else (None, r)

    def _run_definition(
        self, node: Node, scope: Scope, slots: Sequence[Slot | None], call: Call
    ) -> bool:
        """Import what the ONNX standard gives as the definition of an operator, if it does."""
        function = schema_function(node, call)
        if function is None:
            return False
        before = len(self.reports)
        self._inline(function, node, scope, slots, call.attrs, call.outputs)
        inner = self.reports[before:]
        del self.reports[before:]
        if inner:
            raise Unsupported(f"is made of {inner[0].op_type}: {inner[0].reason}")
        return True

    def _version(self, node: Node, scope: Scope) -> int:
        if node.domain in scope.opsets:
            return scope.opsets[node.domain]
        if node.domain == "":
            raise ModelError(f"{self.label}: {node.where} is of the ONNX domain, but the model "
                             "imports no version of that (opset_import)")  # fmt: skip
        return 1

    def _blob_name(self, scope: Scope, name: str) -> str:
        if not name:
            return ""
        blob = scope.slots[name].name
        return blob if blob in self.builder.reserved else self.builder.fresh(blob)

    def _lift(self, slot: Slot | None) -> Value:
        """The value of a slot; a known array becomes a constant of the graph on first use."""
        assert slot is not None
        if slot.value is None:
            assert slot.known is not None
            taken = slot.name in self._outputs or slot.name in self.builder.blobs
            name = self.builder.fresh(f"{slot.name}.value") if taken else slot.name
            slot.value = lift(self.builder, slot.known, name)
        return slot.value

    # ---------------------------------------------------------------- functions and branches

    def _inline(
        self, function: Message, node: Node, scope: Scope, slots: Sequence[Slot | None],
        attrs: Mapping[str, Any], wants: tuple[str, ...],
    ) -> None:  # fmt: skip
        """Import the body of an ONNX function in place of the node that calls it."""
        if len(slots) > len(function.input) or len(wants) > len(function.output):
            raise ModelError(f"{node.where} has {len(slots)} inputs and {len(wants)} outputs, but "
                             f"its function has {len(function.input)} and "
                             f"{len(function.output)}")  # fmt: skip
        defaults = read_attributes_of(function.attribute_proto, self.files, node.where)
        opsets = {domain_of(o.domain): o.version for o in function.opset_import}
        inner = self._inner(node, scope, function.output, wants,
                            opsets={**scope.opsets, **opsets}, parent=None,
                            outer_attributes={**defaults, **attrs})  # fmt: skip
        for k, name in enumerate(function.input):
            slot = slots[k] if k < len(slots) else None
            inner.slots[name] = slot or Slot(name)  # an empty slot: an absent input
        nodes = read_nodes(function.node, inner.prefix)
        self._finish(node, scope, inner, nodes, list(function.output), wants)

    def _branch(
        self, node: Node, scope: Scope, slots: Sequence[Slot | None], attrs: Mapping[str, Any],
        wants: tuple[str, ...],
    ) -> None:  # fmt: skip
        """Import the branch of an If that a constant condition takes."""
        condition = slots[0].known if slots and slots[0] else None
        if condition is None or condition.array.size != 1:
            raise Unsupported("its condition depends on the model's inputs")
        key = "then_branch" if condition.array.reshape(-1)[0] else "else_branch"
        if not hasattr(attrs.get(key), "node"):
            raise ModelError(f"{node.where} has no {key}")
        graph = attrs[key]
        outputs = [o.name for o in graph.output]
        if len(wants) > len(outputs):
            raise ModelError(f"{node.where}: its {key} has only {len(outputs)} outputs")
        inner = self._inner(node, scope, outputs, wants, opsets=scope.opsets, parent=scope,
                            outer_attributes=scope.outer_attributes)  # fmt: skip
        _declare_constants(inner, decode_all(graph, self.files, node.where))
        nodes = read_nodes(graph.node, inner.prefix)
        self._finish(node, scope, inner, nodes, outputs, wants)

    def _inner(
        self, node: Node, scope: Scope, outputs: Sequence[str], wants: Sequence[str], **fields: Any
    ) -> Scope:
        if scope.depth >= _MAX_DEPTH:
            raise ModelError(f"{node.where}: functions are nested more than {_MAX_DEPTH} deep; "
                             "does one call itself?")  # fmt: skip
        names = {o: self._blob_name(scope, w) for o, w in zip(outputs, wants, strict=False) if w}
        return Scope(f"{node.label}/", blob_names=names, depth=scope.depth + 1, **fields)

    def _finish(
        self, node: Node, scope: Scope, inner: Scope, nodes: Sequence[Node],
        outputs: Sequence[str], wants: Sequence[str],
    ) -> None:  # fmt: skip
        pairs = [(o, w) for o, w in zip(outputs, wants, strict=False) if w]
        self._run_body(nodes, inner, [o for o, _ in pairs], node.where)
        for o, w in pairs:
            made = inner.find(o)
            assert made is not None
            slot = scope.slots[w]
            slot.known, slot.value, slot.foreign = made.known, made.value, made.foreign


def _convert(node: Node, call: Call) -> Result:
    converter = CONVERTERS.get((node.domain, node.op_type))
    if converter is None:
        if not _is_registered(node):
            raise Unknown(_unknown(node, call.version))
        converter = Call.forward
    try:
        folded = _fold(call, converter)
        return converter(call) if folded is None else folded
    except TilewrightError:
        raise
    except OperatorError as e:
        why = str(e)
    except (ArithmeticError, LookupError, TypeError, ValueError) as e:
        # A converter met attributes or constants of a kind that its operator does not have.
        why = f"its attributes or constant inputs do not fit ({type(e).__name__}: {e})"
    types = ", ".join("-" if v is None else str(v.type) for v in call.inputs)
    raise GraphError(f"{node.where} of ({types}): {why}")


def _unknown(node: Node, version: int) -> str:
    where = f"domain {node.domain}, opset {version}" if node.domain else f"opset {version}"
    return f"there is no such operator here ({where})"


def _is_registered(node: Node) -> bool:
    """The operators of this package are ONNX's; those of other domains come from users."""
    operator = find_operator(node.op_type)
    if operator is None:
        return False
    own = operator.infer.__module__.startswith(_OPERATORS)
    return not own or node.domain == ""


def _fold(call: Call, converter: Converter) -> Result | None:
    """The outputs of a node whose inputs are all known and small; None if it is not of that kind.

    The references compute in float64 and round once per operator.
    """
    unread = TYPE_ONLY.get(call.op_type, frozenset())
    arrays = [v for k, v in enumerate(call.inputs) if v is not None and k not in unread]
    if not all(isinstance(v, Known) and _is_small(v.type) for v in arrays):
        return None
    scratch = GraphBuilder("fold")

    def lift_input(k: int) -> Value:
        value = call.inputs[k]
        assert isinstance(value, Known)
        return lift(scratch, value, scratch.fresh("c"))

    inputs = tuple(
        scratch.add_blob(Blob(scratch.fresh("x"), v.type)) if isinstance(v, Value) else v
        for v in call.inputs
    )
    made = replace(call, builder=scratch, inputs=inputs, lift_input=lift_input, out_names=())
    result = converter(made)
    results = result if isinstance(result, tuple) else (result,)
    if all(r is None or isinstance(r, Known) for r in results):
        return result
    if not all(_is_small(b.type) for b in scratch.blobs.values()):
        return None
    values = {n: b.value for n, b in scratch.blobs.items() if b.value is not None}
    try:
        for op in scratch.ops:
            outs = evaluate_op(op, [None if n is None else values[n] for n in op.inputs])
            for n, y in zip(op.outputs, outs, strict=True):
                values[n] = narrow(y, scratch.blobs[n].type.dtype)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None  # what the compiled op does with such values is its own affair
    return tuple(
        Known(values[r.name], r.type.dtype) if isinstance(r, Value) else r for r in results
    )


def _is_small(t: TensorType) -> bool:
    return t.size <= FOLD_LIMIT and t.dtype is not bf16


def _type(slot: Slot) -> TensorType | str:
    v = slot.known or slot.value
    return "-" if v is None else v.type


def _trimmed(names: tuple[str, ...]) -> tuple[str, ...]:
    while names and not names[-1]:
        names = names[:-1]
    return names


def _declare_constants(scope: Scope, constants: Mapping[str, Known | str]) -> None:
    for name, value in constants.items():
        slot = scope.declare(name)
        if isinstance(value, str):
            slot.foreign = value
        else:
            slot.known = value
