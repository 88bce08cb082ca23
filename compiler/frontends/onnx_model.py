"""A parsed ONNX model: its signature, and the graph for given input shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...ops.types import Dim, DType, SymDim, TensorType
from ..errors import ModelError, OptionError
from ..graph.ir import Graph
from .onnx_import import Importer
from .onnx_proto import Message, Parsed, Source, check_text, domain_of, parse
from .onnx_tensors import (
    ExternalFiles,
    ForeignType,
    Known,
    checked_size,
    decode_all,
    dtype_named,
)

OLDEST_OPSET: Final = 7
Shapes = Mapping[str, Sequence[int] | int]


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """A declared input or output of a model.

    dtype is None for what is no tensor of numbers (`kind` says what it is); dims is None when the
    model does not declare a rank. Dimensions of one name are equal; anonymous ones get a name made
    of the value's and the axis.
    """

    name: str
    dtype: DType | None
    dims: tuple[Dim, ...] | None
    kind: str = ""

    def __str__(self) -> str:
        if self.dtype is None:
            return self.kind or "unknown"
        shape = "..." if self.dims is None else ",".join(map(str, self.dims))
        return f"{self.dtype}[{shape}]"


@dataclass(frozen=True)
class OnnxModel:
    """A model that was read once and can be turned into a graph for any shapes of its inputs.

    inputs leaves out what has an initializer: those are constants.
    """

    name: str
    inputs: tuple[OnnxValue, ...]
    outputs: tuple[OnnxValue, ...]
    _parsed: Parsed = field(repr=False)
    _constants: Mapping[str, Known | str] = field(repr=False)
    _files: ExternalFiles = field(repr=False)
    _opsets: Mapping[str, int] = field(repr=False)

    @property
    def is_static(self) -> bool:
        """Whether every input declares its whole shape, so that no shapes need to be given."""
        return all(
            v.dims is not None and all(isinstance(d, int) for d in v.dims) for v in self.inputs
        )

    @property
    def is_one_file(self) -> bool:
        """Whether nothing was read of other files than the model's until now."""
        return not self._files.are_open

    def to_graph(self, shapes: Shapes | None = None, outputs: Sequence[str] | None = None) -> Graph:
        """The graph for given shapes.

        shapes: dimensions by name of the input; or an int by name of a symbolic dimension.
        outputs: names of values to compute instead of the declared outputs.
        Raises OptionError where shapes do not fit the signature, ModelError when dimensions stay
        unbound or the model is inconsistent, UnsupportedOperator with all nodes that cannot be
        compiled, GraphError naming the node whose inputs do not fit.
        """
        label = self._parsed.label
        if self._parsed.file is not None:
            self._parsed.file.check()
        self._files.check()
        types = bind(self.inputs, shapes or {}, label)
        importer = Importer(self._parsed.model, label, self._files, self._opsets)
        wanted = [v.name for v in self.outputs] if outputs is None else list(outputs)
        _check_names(wanted, label)
        graph = importer.run(types, self._constants, wanted)
        declared = {v.name: v for v in self.outputs}
        for wish, made in zip(wanted, graph.outputs, strict=True):
            if wish in declared:
                _check_output(declared[wish], graph.type(made), label)
        return graph


def load(source: Source) -> OnnxModel:
    """Read a model: a path, bytes or an onnx.ModelProto (not to be changed afterwards).

    Raises ModelError for a damaged or inconsistent model.
    """
    parsed = parse(source)
    model, label = parsed.model, parsed.label
    check_text(model, label)
    opsets = {domain_of(o.domain): o.version for o in model.opset_import}
    version = opsets.get("", OLDEST_OPSET)
    if version < OLDEST_OPSET:
        raise ModelError(
            f"{label} uses ONNX opset {version}; the oldest that can be read is "
            f"{OLDEST_OPSET}. Convert it: onnx.version_converter.convert_version(model, 13)"
        )
    if not model.graph.output:
        what = "no outputs" if model.graph.node else "neither nodes nor outputs"
        raise ModelError(f"{label}: its graph has {what}, there is nothing to compute")
    files = ExternalFiles(parsed.folder)
    constants = decode_all(model.graph, files, label, parsed.tensors)
    inputs = tuple(_declared(v, label) for v in model.graph.input if v.name not in constants)
    outputs = tuple(_declared(v, label) for v in model.graph.output)
    _check_names([v.name for v in inputs], label, "input")
    _check_names([v.name for v in outputs], label)
    return OnnxModel(model.graph.name, inputs, outputs, parsed, constants, files, opsets)


def bind(
    inputs: Sequence[OnnxValue], shapes: Shapes, label: str = "the model"
) -> dict[str, TensorType | str]:
    """The types of inputs under given shapes; text for those that are no tensors.

    Raises OptionError where shapes contradict the declarations, ModelError listing the dimensions
    that stay unbound.
    """
    names = {v.name for v in inputs}
    symbols = {d.name for v in inputs for d in v.dims or () if isinstance(d, SymDim)}
    bound: dict[str, tuple[int, str]] = {}
    for key, size in shapes.items():
        if isinstance(size, int):
            if key not in symbols:
                known = ", ".join(map(repr, sorted(symbols))) or "none"
                raise OptionError(f"shapes: no dimension is called {key!r} (there are: {known})")
            _bind_dim(bound, key, size, f"dimension {key!r}")
        elif key not in names:
            known = ", ".join(map(repr, sorted(names))) or "none"
            raise OptionError(f"shapes: the model has no input {key!r} (there are: {known})")
    by_input = {key: tuple(s) for key, s in shapes.items() if not isinstance(s, int)}
    for v in inputs:
        if v.name not in by_input:
            continue
        given = by_input[v.name]
        if v.dims is not None and len(given) != len(v.dims):
            raise OptionError(f"shapes: input {v.name!r} is {v}, but {list(given)} has "
                              f"{len(given)} dimensions")  # fmt: skip
        for k, size in enumerate(given):
            d = size if v.dims is None else v.dims[k]
            where = f"dimension {k} of input {v.name!r}"
            if isinstance(d, SymDim):
                _bind_dim(bound, d.name, size, where)
            elif size != d:
                raise OptionError(f"shapes: {where} is {d} in the model, not {size}")
    out: dict[str, TensorType | str] = {}
    unbound = []
    for v in inputs:
        if v.dtype is None:
            out[v.name] = v.kind
            continue
        dims = by_input.get(v.name) if v.dims is None else v.dims
        if dims is None or any(isinstance(d, SymDim) and d.name not in bound for d in dims):
            unbound.append(v)
            continue
        sizes = tuple(bound[d.name][0] if isinstance(d, SymDim) else d for d in dims)
        checked_size(sizes, v.dtype, f"{label}: input {v.name!r}")
        out[v.name] = TensorType(v.dtype, sizes)
    if unbound:
        raise ModelError(_explain_unbound(unbound, bound, label))
    return out


def _bind_dim(bound: dict[str, tuple[int, str]], name: str, size: int, where: str) -> None:
    if size < 0:
        raise OptionError(f"shapes: {where} is {size}, which is negative")
    old, first = bound.setdefault(name, (int(size), where))
    if old != size:
        raise OptionError(f"shapes: {where} is {size}, but {name!r} is {old} in {first}")


def _explain_unbound(
    unbound: Sequence[OnnxValue], bound: Mapping[str, tuple[int, str]], label: str
) -> str:
    lines = []
    for v in unbound:
        free = [d.name for d in v.dims or () if isinstance(d, SymDim) and d.name not in bound]
        what = "its rank and dimensions" if v.dims is None else ", ".join(map(repr, free))
        lines.append(f"  input {v.name!r} ({v}): {what}")
    first = unbound[0]
    example = ", ".join(str(d) if isinstance(d, int) else "1" for d in first.dims or ())
    return "\n".join([
        f"{label} has inputs whose shapes are not fixed:", *lines,
        f"  Bind them, for example: shapes={{{first.name!r}: [{example}]}}",
    ])  # fmt: skip


def _declared(value: Message, label: str) -> OnnxValue:
    if not value.name:
        raise ModelError(f"{label} has an input or output without a name")
    kind = value.type.WhichOneof("value")
    if kind is None:
        return OnnxValue(value.name, None, None, "")
    if kind != "tensor_type":
        return OnnxValue(value.name, None, None, kind.removesuffix("_type").replace("_", " "))
    tensor = value.type.tensor_type
    dims: tuple[Dim, ...] | None = None
    if tensor.HasField("shape"):
        dims = tuple(_dim(d, k, value.name) for k, d in enumerate(tensor.shape.dim))
    try:
        dtype = dtype_named(tensor.elem_type, f"{label}: {value.name!r}")
    except ForeignType as e:
        shape = "" if dims is None else ",".join(map(str, dims))
        return OnnxValue(value.name, None, dims, f"{e}[{shape}]")
    return OnnxValue(value.name, dtype, dims)


def _dim(d: Message, axis: int, owner: str) -> Dim:
    # Some exporters write -1 for a dimension that varies.
    if d.HasField("dim_value") and d.dim_value >= 0:
        return int(d.dim_value)
    return SymDim(d.dim_param or f"{owner}.{axis}")


def _check_names(names: Sequence[str], label: str, what: str = "output") -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ModelError(f"{label}: two {what}s are called {name!r}")
        seen.add(name)


def _check_output(declared: OnnxValue, made: TensorType, label: str) -> None:
    clash = declared.dtype not in (None, made.dtype)
    if declared.dims is not None:
        fixed = [(d, m) for d, m in zip(declared.dims, made.dims, strict=False)
                 if isinstance(d, int)]  # fmt: skip
        clash |= len(declared.dims) != made.rank or any(d != m for d, m in fixed)
    if clash:
        raise ModelError(f"{label} declares its output {declared.name!r} as {declared}, but its "
                         f"nodes compute {made}; correct what it declares, or leave the shape "
                         "out")  # fmt: skip
