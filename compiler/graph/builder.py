"""Building graphs: the one mutable class of the package, behind imports, passes and users' code.

    g = tw.Graph("net")
    x = g.input("x", (1, 3, 224, 224))
    w = g.parameter("w", weights)
    g.output(g.relu(g.conv(x, w, pads=1)), name="y")

Every operator of `tilewright.ops` is a method. Types are inferred and checked as ops are added, so
a mistake is reported at the line that makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops import library as _library  # noqa: F401  registers every operator
from ...ops.errors import OperatorError
from ...ops.operator import REGISTRY
from ...ops.operator import get as get_operator
from ...ops.types import ROW_MAJOR, DType, Layout, TensorType, dtype_of, f32
from ..errors import GraphError
from .ir import Blob, Deferred, Graph, Inside, Op, Role


@dataclass(frozen=True, slots=True)
class Value:
    """A handle to a blob of a graph under construction. Arithmetic builds elementwise ops."""

    builder: GraphBuilder
    name: str

    __array_ufunc__ = None  # numpy leaves `array + value` to this class

    @property
    def type(self) -> TensorType:
        return self.builder.blobs[self.name].type

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.dims

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"

    def _with(self, op: str, other: Any, swap: bool = False) -> Value:
        o = other if isinstance(other, Value) else self.builder.constant(self._as_mine(op, other))
        out: Value = self.builder.op(op, *((o, self) if swap else (self, o)))
        return out

    def _as_mine(self, op: str, other: Any) -> npt.NDArray[Any]:
        """Numbers in the element type of this value, floats rounded. Raises GraphError for those
        that integers would cut off."""
        with np.errstate(all="ignore"):
            mine = np.asarray(np.asarray(other), self.dtype.numpy)
        if not self.dtype.is_float and not np.array_equal(mine, other):
            raise GraphError(f"{op} of {self!r} and {other!r}: {self.dtype} cannot hold that "
                             "number; cast the value first")  # fmt: skip
        return mine

    def __add__(self, other: Any) -> Value:
        return self._with("add", other)

    def __radd__(self, other: Any) -> Value:
        return self._with("add", other, True)

    def __sub__(self, other: Any) -> Value:
        return self._with("sub", other)

    def __rsub__(self, other: Any) -> Value:
        return self._with("sub", other, True)

    def __mul__(self, other: Any) -> Value:
        return self._with("mul", other)

    def __rmul__(self, other: Any) -> Value:
        return self._with("mul", other, True)

    def __truediv__(self, other: Any) -> Value:
        return self._with("div", other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._with("div", other, True)

    def __matmul__(self, other: Any) -> Value:
        return self._with("matmul", other)

    def __neg__(self) -> Value:
        out: Value = self.builder.op("neg", self)
        return out


class GraphBuilder:
    """Collects inputs, constants, ops and outputs; `build()` freezes them into a `Graph`."""

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.blobs: dict[str, Blob] = {}
        self.ops: list[Op] = []
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self._counter: dict[str, int] = {}

    # ---------------------------------------------------------------- blobs

    def fresh(self, stem: str) -> str:
        """A blob name not in use yet, `stem` itself if it is free."""
        if stem and stem not in self.blobs:
            return stem
        k = self._counter.get(stem, 0)
        while True:
            k += 1
            name = f"{stem or 'v'}_{k}"
            if name not in self.blobs:
                self._counter[stem] = k
                return name

    def add_blob(self, blob: Blob) -> Value:
        """Adopt a blob, e.g. of another graph. Raises GraphError if the name is taken."""
        if blob.name in self.blobs:
            raise GraphError(f"graph {self.name!r}: the blob name {blob.name!r} is used twice")
        self.blobs[blob.name] = blob
        return Value(self, blob.name)

    def input(
        self, name: str, shape: Iterable[int], dtype: npt.DTypeLike | DType | str = f32
    ) -> Value:
        """Declare an input of the graph; order of declaration is order of call arguments.

        Raises GraphError for a name that is taken, an unknown dtype, and sizes that are none: a
        graph's shapes are fixed.
        """
        try:
            kind = TensorType(dtype_of(dtype), tuple(map(index, shape)))
            _check_size(kind)
        except (OperatorError, TypeError) as e:
            raise GraphError(f"input {name!r} of shape {shape!r}: {e}") from e
        value = self.add_blob(Blob(name, kind, Role.INPUT))
        self.inputs.append(name)
        return value

    def constant(
        self, value: npt.ArrayLike | Deferred, name: str = "", dtype: DType | None = None
    ) -> Value:
        """A constant array; float64 Python numbers become float32 unless given as a numpy array.
        Arrays that may still be written to are copied. dtype: of the elements, where numpy's own
        type does not say it: bf16, of which arrays hold the bits."""
        if isinstance(value, Deferred):
            kind = TensorType(dtype or dtype_of(value.dtype), value.shape)
            return self.add_blob(Blob(self.fresh(name or "c"), kind, Role.CONSTANT, value))
        array = np.asarray(value)
        if not isinstance(value, (np.ndarray, np.generic)) and array.dtype == np.float64:
            array = array.astype(np.float32)
        kind = TensorType(dtype or dtype_of(array.dtype), array.shape)
        return self.add_blob(
            Blob(self.fresh(name or "c"), kind, Role.CONSTANT, self._frozen(array))
        )

    def parameter(self, name: str, value: npt.ArrayLike) -> Value:
        """A named constant that training may update later. Copied as `constant` does."""
        array = np.asarray(value)
        try:
            kind = TensorType(dtype_of(array.dtype), array.shape)
        except OperatorError as e:
            raise GraphError(f"parameter {name!r}: {e}") from e
        return self.add_blob(Blob(name, kind, Role.PARAMETER, self._frozen(array)))

    def output(self, value: Value, name: str = "") -> None:
        """Mark a value as output, under its own name or another one."""
        self._own(value, "output")
        if name and name != value.name:
            value = self.op("identity", value, out=(name,))
        self.outputs.append(value.name)

    # ---------------------------------------------------------------- ops

    def op(
        self,
        operator: str,
        *inputs: Value | npt.ArrayLike | None,
        name: str = "",
        source: tuple[str, ...] = (),
        out: tuple[str, ...] = (),
        fusion_group: int | None = None,
        layouts: tuple[Layout, ...] = (),
        **attrs: Any,
    ) -> Any:
        """Add an op; returns its value, or a tuple where the operator has several outputs.

        out: names for the outputs (made up when absent). layouts: how the outputs lie in memory
        (row-major when absent). Arrays given as inputs become constants.
        Raises GraphError naming the node, the operator, input types and the reason.
        """
        ins = [self._lift(v, operator) for v in inputs]
        while ins and ins[-1] is None:
            ins.pop()
        try:
            definition = get_operator(operator)
            bound = definition.bind(attrs)
            types = definition.infer_types(
                [None if v is None else self.blobs[v].type for v in ins], bound
            )
            for t in types:
                _check_size(t)
        except OperatorError as e:
            raise GraphError(self._explain(operator, ins, name, str(e))) from e
        except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError) as e:
            why = f"its attributes {attrs} do not fit ({type(e).__name__}: {e})"
            raise GraphError(self._explain(operator, ins, name, why)) from e
        if len(out) > len(types):
            why = f"it has {len(types)} outputs but {len(out)} names are given"
            raise GraphError(self._explain(operator, ins, name, why))
        stem = name or operator
        names = []
        for k, t in enumerate(types):
            given = out[k] if k < len(out) else ""
            n = given or self.fresh(stem)
            layout = layouts[k] if k < len(layouts) else ROW_MAJOR
            self.add_blob(Blob(n, t.with_layout(layout)))
            names.append(n)
        self.ops.append(
            Op(operator, tuple(ins), tuple(names), tuple(bound.items()), name,
               source or ((name,) if name else ()), fusion_group)
        )  # fmt: skip
        values = tuple(Value(self, n) for n in names)
        return values[0] if len(values) == 1 else values

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if operator.startswith("_") or operator not in REGISTRY:
            raise AttributeError(f"a graph has no method or operator {operator!r}")
        return lambda *inputs, **attrs: self.op(operator, *inputs, **attrs)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *REGISTRY})

    def build(self) -> Graph:
        """The immutable graph. Raises GraphError when nothing is marked as output."""
        if not self.outputs:
            raise GraphError(f"graph {self.name!r} has no outputs: call output() on a value")
        return Graph(self.name, tuple(self.inputs), tuple(self.outputs), tuple(self.ops),
                     dict(self.blobs))  # fmt: skip

    # ---------------------------------------------------------------- internals

    def _frozen(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return _freeze(_copy(array) if _is_shared(array) else array)

    def _own(self, value: Value, what: str) -> str:
        if not isinstance(value, Value):
            raise GraphError(f"{what} of graph {self.name!r}: {value!r} is no value of a graph")
        if value.builder is not self:
            raise GraphError(f"{what} of graph {self.name!r}: {value!r} belongs to another graph")
        return value.name

    def _lift(self, value: Value | npt.ArrayLike | None, operator: str) -> str | None:
        if value is None:
            return None
        if isinstance(value, Value):
            return self._own(value, f"an input of {operator}")
        return self.constant(value).name

    def _explain(self, operator: str, ins: list[str | None], name: str, why: str) -> str:
        types = ", ".join("-" if n is None else str(self.blobs[n].type) for n in ins)
        where = f"node {name!r}" if name else "unnamed node"
        return f"{operator} ({where}) of ({types}): {why}"


def _check_size(t: TensorType) -> None:
    limit = 1 << 46
    total = t.dtype.bytes
    for d in t.dims:
        if d < 0:
            raise OperatorError(f"{t} has a negative dimension")
        total *= max(d, 1)
    if total > limit:
        raise OperatorError(f"{t} would take {total} bytes, more than any machine has")


def _is_shared(array: npt.NDArray[Any]) -> bool:
    """Whether somebody could change the elements after this."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return True
        owner = owner.base
    return False


def _copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy; one repeated element stays one element in memory."""
    if array.size and array.ndim and not any(array.strides):
        return np.broadcast_to(array.reshape(-1)[:1].copy().reshape(()), array.shape)
    return array.copy()


def _freeze(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


class Rewriter(GraphBuilder):
    """Builds a new graph from an old one, op by op.

    `rewrite(self, op, inputs)` returns None to keep the op, or the value(s) that replace its
    outputs. Blob names survive where ops do, and the graph's outputs always keep their names.
    """

    def __init__(self, old: Graph) -> None:
        super().__init__(old.name)
        self.old = old
        self._map: dict[str, Value] = {}
        self._reserved = set(old.blobs)

    def _frozen(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return _freeze(array)  # passes hand over arrays of their own

    def fresh(self, stem: str) -> str:
        """A blob name that neither the old nor the new graph has."""
        name, k = stem, self._counter.get(stem, 0)
        while not name or name in self.blobs or name in self._reserved:
            k += 1
            name = f"{stem or 'v'}_{k}"
        self._counter[stem] = k
        return name

    def value(self, old: str) -> Value:
        """The new value of an old blob; inputs and constants are adopted when first asked for."""
        if old not in self._map:
            self._map[old] = self.add_blob(self.old.blobs[old])
        return self._map[old]

    def replace(self, old: str, new: Value) -> None:
        self._map[old] = new

    def keep(self, op: Op, inputs: tuple[Value | None, ...] | None = None) -> Any:
        """Copy an old op, with its names, over new inputs."""
        ins = self.inputs_of(op) if inputs is None else inputs
        layouts = tuple(t.layout for t in self.old.output_types(op))
        return self.op(op.operator, *ins, name=op.name, source=op.source, out=op.outputs,
                       fusion_group=op.group, layouts=layouts, **op.attributes)  # fmt: skip

    def _unchanged(self, op: Op, ins: tuple[Value | None, ...]) -> Any:
        """As `keep`; over inputs of the old types, results have theirs."""
        inputs = tuple(None if v is None else v.name for v in ins)
        old = self.old.blobs
        if inputs != op.inputs or any(self.blobs[n] is not old[n] for n in op.reads):
            types = tuple(None if n is None else self.blobs[n].type for n in inputs)
            if types != self.old.input_types(op):
                return self.keep(op, ins)
        values = tuple(self.add_blob(Blob(n, old[n].type)) for n in op.outputs)
        self.ops.append(op if inputs == op.inputs else replace(op, inputs=inputs))
        return values[0] if len(values) == 1 else values

    def inputs_of(self, op: Op) -> tuple[Value | None, ...]:
        return tuple(None if n is None else self.value(n) for n in op.inputs)

    def run(self, rewrite: Callable[[Op, tuple[Value | None, ...]], Any]) -> Graph:
        for n in self.old.inputs:
            self.value(n)
            self.inputs.append(n)
        for op in self.old.ops:
            ins = self.inputs_of(op)
            result = rewrite(op, ins)
            if result is None:
                result = self._unchanged(op, ins)
            new = result if isinstance(result, tuple) else (result,)
            for old_name, v in zip(op.outputs, new, strict=True):
                if v is not None:
                    self._map[old_name] = v
            self._share(op)
        return self.finish()

    def _share(self, op: Op) -> None:
        """Where an op was made anew as it was, the new graph has the old objects: what did not
        change need not be verified again."""
        if not self.ops or self.ops[-1] != op:
            return
        self.ops[-1] = op
        for n in op.outputs:
            old = self.old.blobs[n]
            if self.blobs[n].type == old.type and old.inside is None:
                self.blobs[n] = old

    def finish(self) -> Graph:
        """Mark the outputs, keeping their names; an alias of an input or constant, or a second
        use of one value, gets an identity op."""
        rename: dict[str, str] = {}
        for n in self.old.outputs:
            v = self.value(n)
            if v.name == n:
                continue
            made = any(v.name in op.outputs for op in self.ops)
            if made and v.name not in rename and v.name not in self.old.outputs:
                rename[v.name] = n
            else:
                self.op("identity", v, out=(n,))
        self.outputs = list(self.old.outputs)
        g = self.build()
        return rename_blobs(g, rename) if rename else g


def rename_blobs(g: Graph, names: Mapping[str, str]) -> Graph:
    """The same graph with some blobs renamed."""

    def new(n: str) -> str:
        return names.get(n, n)

    def renamed(op: Op) -> Op:
        if names.keys().isdisjoint((*op.reads, *op.outputs)):
            return op
        ins = tuple(None if n is None else new(n) for n in op.inputs)
        return replace(op, inputs=ins, outputs=tuple(map(new, op.outputs)))

    def moved(b: Blob) -> Blob:
        inside = b.inside
        if inside is not None and inside.blob in names:
            inside = Inside(new(inside.blob), inside.start)
        same = b.name not in names and inside is b.inside
        return b if same else replace(b, name=new(b.name), inside=inside)

    ops = tuple(map(renamed, g.ops))
    blobs = {new(n): moved(b) for n, b in g.blobs.items()}
    return Graph(g.name, tuple(map(new, g.inputs)), tuple(map(new, g.outputs)), ops, blobs)
