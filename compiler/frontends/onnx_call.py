"""One ONNX node as its converter sees it, and the table of converters.

A converter takes a `Call` and returns what the node's outputs are: values of the graph (made with
`emit` or `op`) or `Known` arrays. Most operators need none: `forward` maps a node to the operator
of the same name, attribute by attribute, turning inputs into attributes where the operator declares
an attribute of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.operator import REGISTRY, Injective, Operator, View
from ...ops.types import TensorType, bf16, f32
from ..errors import ModelError
from ..graph.bfloat16 import bits_of
from ..graph.builder import GraphBuilder, Value
from ..graph.ir import Blob, Role
from .onnx_attributes import matching
from .onnx_signatures import FORMAL
from .onnx_tensors import ForeignType, Known

Result = Value | Known | tuple[Value | Known | None, ...]
Converter = Callable[["Call"], Result]
_TAKE_BF16: Final = ("cast", "matmul", "gemm", "conv")
CONVERTERS: Final[dict[tuple[str, str], Converter]] = {}


class Unsupported(Exception):
    """The node cannot be compiled, for this reason. Collected by the importer."""


class Unknown(Unsupported):
    """There is no operator of that name."""


def converts(*op_types: str, domain: str = "") -> Callable[[Converter], Converter]:
    """Register the converter of one or more ONNX operators."""

    def register(f: Converter) -> Converter:
        CONVERTERS.update({(domain, op_type): f for op_type in op_types})
        return f

    return register


def find_operator(op_type: str) -> Operator | None:
    """The operator of an ONNX name; `LayerNormalization` finds `layer_normalization`."""
    return _by_plain_name(len(REGISTRY)).get(op_type.lower())


@lru_cache(maxsize=1)
def _by_plain_name(size: int) -> Mapping[str, Operator]:
    """size: of the registry, to which users add operators at any time."""
    return {n.replace("_", ""): op for n, op in REGISTRY.items()}


@dataclass(frozen=True, slots=True)
class Call:
    """A node with its inputs resolved.

    where: how errors call the node. version: the opset of the node's domain. outputs: the value
    names wanted, "" for those nobody reads.
    """

    builder: GraphBuilder
    op_type: str
    label: str
    where: str
    version: int
    inputs: tuple[Value | Known | None, ...]
    attrs: Mapping[str, Any]
    outputs: tuple[str, ...]
    lift_input: Callable[[int], Value] = field(repr=False)  # a known input as a constant
    out_names: tuple[str, ...] = ()  # names of blobs to make; empty while folding

    # ---------------------------------------------------------------- inputs

    def has(self, k: int) -> bool:
        return k < len(self.inputs) and self.inputs[k] is not None

    def wants(self, k: int) -> bool:
        """Whether output k is read by anybody."""
        return k < len(self.outputs) and self.outputs[k] != ""

    def value(self, k: int) -> Value | None:
        """Input k as a value of the graph; None when absent. Known arrays become constants."""
        if not self.has(k):
            return None
        entry = self.inputs[k]
        return self.lift_input(k) if isinstance(entry, Known) else entry

    def need(self, k: int, what: str) -> Value:
        v = self.value(k)
        if v is None:
            raise ModelError(f"{self.where} lacks its input {k} ({what})")
        return v

    def values(self) -> tuple[Value | None, ...]:
        return tuple(self.value(k) for k in range(len(self.inputs)))

    def type(self, k: int) -> TensorType:
        if not self.has(k):
            raise ModelError(f"{self.where} lacks its input {k}")
        entry = self.inputs[k]
        assert entry is not None
        return entry.type

    def array(self, k: int, what: str) -> npt.NDArray[Any] | None:
        """The elements of an input that must be known at compile time; None when absent."""
        if not self.has(k):
            return None
        entry = self.inputs[k]
        if not isinstance(entry, Known):
            assert entry is not None
            raise Unsupported(
                f"its input {k} ({what!r}) must be known at compile time, but {entry.name!r} "
                "depends on the model's inputs"
            )
        return entry.array

    def ints(self, k: int, what: str) -> tuple[int, ...] | None:
        """A known input as a tuple of ints."""
        a = self.array(k, what)
        if a is None:
            return None
        if a.dtype.kind not in "iu" or a.ndim > 1:
            raise ModelError(
                f"{self.where}: input {k} ({what!r}) must be a list of integers, "
                f"it is {self.type(k)}"
            )
        return tuple(int(v) for v in a.reshape(-1))

    def scalar(self, k: int, what: str) -> Any:
        """A known input of one element as a Python number; None when absent."""
        a = self.array(k, what)
        if a is None:
            return None
        if a.size != 1:
            raise ModelError(
                f"{self.where}: input {k} ({what!r}) must have one element, it is {self.type(k)}"
            )
        return a.reshape(-1)[0].item()

    # ---------------------------------------------------------------- attributes

    def attr(self, name: str, default: Any) -> Any:
        """An attribute, checked against the type of its default. For one without a natural
        default, give None: any type passes."""
        value = self.attrs.get(name, default)
        if isinstance(value, ForeignType):
            raise Unsupported(str(value))
        return matching(value, default, name, self.where)

    # ---------------------------------------------------------------- results

    def constant(self, value: Known | npt.ArrayLike) -> Value:
        if isinstance(value, Known):
            return lift(self.builder, value, self.builder.fresh(f"{self.label}_constant"))
        return self.builder.constant(np.asarray(value), f"{self.label}_constant")

    def like(self, number: float, v: Value | TensorType) -> Value:
        """A constant scalar of the element type of v."""
        dtype = (v.type if isinstance(v, Value) else v).dtype
        if dtype is bf16:
            return self.constant(Known(bits_of(np.asarray(number)), bf16))
        return self.constant(np.asarray(number, dtype.numpy))

    def op(self, operator: str, *inputs: Any, **attrs: Any) -> Any:
        """An op whose results are intermediate: names are made up. Attributes that are None are
        left to their defaults."""
        return self._add((), operator, inputs, attrs)

    def emit(self, operator: str, *inputs: Any, **attrs: Any) -> Any:
        """The op that makes the node's outputs, under their own names."""
        return self._add(self.out_names, operator, inputs, attrs)

    def _add(
        self, names: tuple[str, ...], operator: str, inputs: tuple[Any, ...], attrs: dict[str, Any]
    ) -> Any:
        definition = REGISTRY[operator]
        given = {k: v for k, v in attrs.items() if v is not None}
        types = [None if v is None else v.type for v in inputs]
        if len(names) > 1:
            # Where inputs do not fit, the builder says why in better words.
            with suppress(ArithmeticError, LookupError, TypeError, ValueError):
                made = len(definition.infer_types(types, definition.bind(given)))
                if made < len(names):
                    raise Unsupported(f"its output {made} cannot be computed")
        takes = definition.has(Injective) or definition.has(View) or operator in _TAKE_BF16
        if not takes and any(t is not None and t.dtype is bf16 for t in types):
            return self._in_single(names, operator, inputs, given)
        return self._made(operator, inputs, names, given)

    def _made(
        self, operator: str, inputs: tuple[Any, ...], out: tuple[str, ...], attrs: dict[str, Any]
    ) -> Any:
        return self.builder.op(
            operator, *inputs, name=self.label, source=(self.label,), out=out, **attrs
        )

    def _in_single(
        self, names: tuple[str, ...], operator: str, inputs: tuple[Any, ...], attrs: dict[str, Any]
    ) -> Any:
        """The op on values of bf16: computed in f32, results rounded."""
        wide = tuple(
            self._made("cast", (v,), (), {"to": "f32"})
            if v is not None and v.type.dtype is bf16 else v for v in inputs
        )  # fmt: skip
        types = [None if v is None else v.type for v in wide]
        kinds = REGISTRY[operator].infer_types(types, REGISTRY[operator].bind(attrs))
        inner = tuple(self.builder.fresh(f"{n}_f32") if t.dtype is f32 else n
                      for n, t in zip(names, kinds, strict=False))  # fmt: skip
        made = self._made(operator, wide, inner, attrs)
        out = tuple(
            self._made("cast", (v,), names[k : k + 1], {"to": "bf16"})
            if v.type.dtype is f32 else v
            for k, v in enumerate(made if isinstance(made, tuple) else (made,))
        )  # fmt: skip
        return out if isinstance(made, tuple) else out[0]

    # ---------------------------------------------------------------- the common case

    def forward(self, operator: str = "", drop: tuple[str, ...] = (), **attrs: Any) -> Result:
        """Emit the operator of the node's name (or the given one), attributes and inputs mapped by
        name.

        attrs: replace attributes of the node. drop: attributes to leave out. Raises Unsupported for
        attributes that the operator does not have.
        """
        definition = REGISTRY.get(operator) if operator else find_operator(self.op_type)
        if definition is None:
            raise Unsupported("")
        leave_out = {*drop, *_HISTORIC}
        given = {
            k.lower(): self.attr(k, definition.attrs.get(k.lower()))
            for k in self.attrs
            if k not in leave_out and k.lower() not in attrs
        }
        ins: list[Value | None] = []
        for k in range(len(self.inputs)):
            names, is_list = FORMAL.get(self.op_type, {}).get(k, ((), False))
            name = next((n for n in names if n in definition.attrs), "")
            if not name:
                ins.append(self.value(k))
            elif self.has(k) and name not in attrs:
                a = self.array(k, name)
                assert a is not None
                given[name] = tuple(a.reshape(-1).tolist()) if is_list else self.scalar(k, name)
        for name in given:
            if name not in definition.attrs:
                raise Unsupported(f"its attribute {name!r} is not supported")
        result: Result = self.emit(definition.name, *ins, **{**given, **attrs})
        return result


def lift(builder: GraphBuilder, value: Known, name: str) -> Value:
    """Add a known array to a graph as a constant."""
    array = value.array.view()
    array.flags.writeable = False
    return builder.add_blob(Blob(name, value.type, Role.CONSTANT, array))


# Attributes that had a meaning in frameworks before ONNX 1.0 or say how to train.
_HISTORIC: Final = frozenset({"consumed_inputs", "is_test", "is_train"})
