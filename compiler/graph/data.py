"""A graph as JSON values, for whoever has the model's file at hand.

Weights stay in the file: the data say where in it they lie, and by what they are multiplied. Small
arrays that passes computed are part of the data. What cannot be said so has no such form.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from ...ops.types import TensorType, parse_type
from .ir import Array, Blob, Deferred, Graph, Inside, Op, Role
from .mapped import MappedFile, file_of
from .scaled import Scaled, scaled

Data = Mapping[str, Any]
MOST_BYTES: Final = 1 << 22
"""Of arrays that are part of the data. A graph with more than that is better computed again."""


class _Unsayable(Exception):
    """Something of the graph has no form as data."""


def to_data(graph: Graph, file: MappedFile) -> Data | None:
    """The graph as JSON values, None where they would not give an equal one back. file: the one
    that its weights are views of."""
    try:
        data = _Writer(file).graph(graph)
        back = from_data(json.loads(json.dumps(data)), file)
        again = _Writer(file).graph(back)
    except (_Unsayable, TypeError, ValueError, LookupError):
        return None
    # repr tells 1 from 1.0 and True
    return data if again == data and repr(back.ops) == repr(graph.ops) else None


def from_data(data: Data, file: MappedFile) -> Graph:
    """The graph that `to_data` was given, or an equal one.

    Raises ValueError, TypeError, LookupError or OperatorError for what is no such data; `verify`
    finds out whether the graph is well formed.
    """
    types = [parse_type(text) for text in data["types"]]
    blobs = [_blob(entry, types, file) for entry in data["blobs"]]
    names = [b.name for b in blobs]
    ops = tuple(
        Op(str(operator), tuple(None if k is None else names[k] for k in ins),
           tuple(names[k] for k in outs), tuple((str(k), _tupled(v)) for k, v in attrs),
           str(name), tuple(map(str, source)), None if group is None else int(group))
        for operator, ins, outs, attrs, name, source, group in data["ops"]
    )  # fmt: skip
    ins, outs = (tuple(names[k] for k in data[which]) for which in ("inputs", "outputs"))
    return Graph(str(data["name"]), ins, outs, ops, dict(zip(names, blobs, strict=True)))


class _Writer:
    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.left = MOST_BYTES
        self.types: dict[TensorType, int] = {}

    def graph(self, g: Graph) -> dict[str, Any]:
        number = {n: k for k, n in enumerate(g.blobs)}
        if any(b.name != n for n, b in g.blobs.items()):
            raise _Unsayable
        blobs = [self.blob(b) for b in g.blobs.values()]
        ops = [
            [op.operator, [None if n is None else number[n] for n in op.inputs],
             [number[n] for n in op.outputs], [[k, _listed(v)] for k, v in op.attrs],
             op.name, list(op.source), op.group]
            for op in g.ops
        ]  # fmt: skip
        return {"name": g.name, "inputs": [number[n] for n in g.inputs],
                "outputs": [number[n] for n in g.outputs], "types": list(map(str, self.types)),
                "blobs": blobs, "ops": ops}  # fmt: skip

    def blob(self, b: Blob) -> list[Any]:
        if b.type not in self.types:
            if parse_type(str(b.type)) != b.type:
                raise _Unsayable
            self.types[b.type] = len(self.types)
        content = None if b.content is None else self.content(b)
        inside = None if b.inside is None else [b.inside.blob, b.inside.start]
        return [b.name, self.types[b.type], b.role.value, content, inside]

    def content(self, b: Blob) -> list[Any]:
        x = b.content
        if isinstance(x, Deferred):
            if not isinstance(x.write, Scaled):
                raise _Unsayable
            return ["scaled", self.blob(x.write.weights), self.bytes(x.write.factor), x.write.axis]
        assert x is not None
        if x.dtype != b.type.dtype.numpy:
            raise _Unsayable
        file = file_of(x)
        if file is not None and file is not self.file:
            raise _Unsayable
        if file is not None:
            base = np.frombuffer(self.file, np.uint8).ctypes.data
            return ["file", x.ctypes.data - base, list(x.shape), list(x.strides)]
        if x.size and x.ndim and not any(x.strides):
            return ["splat", self.bytes(x.reshape(-1)[:1]), list(x.shape)]
        return ["array", self.bytes(x), list(x.shape)]

    def bytes(self, x: Array) -> str:
        self.left -= x.nbytes
        if self.left < 0:
            raise _Unsayable
        return base64.b64encode(np.ascontiguousarray(x).tobytes()).decode()


def _blob(entry: Any, types: list[TensorType], file: MappedFile) -> Blob:
    name, kind, role, content, inside = entry
    t = types[kind]
    value = None if content is None else _content(content, t, types, file)
    place = None if inside is None else Inside(str(inside[0]), int(inside[1]))
    return Blob(str(name), t, Role(role), value, place)


def _content(
    content: Any, t: TensorType, types: list[TensorType], file: MappedFile
) -> Array | Deferred:  # fmt: skip
    dtype = t.dtype.numpy
    how, first, *rest = content
    if how == "scaled":
        text, axis = rest
        return scaled(_blob(first, types, file), _array(text, np.dtype(np.float64)), int(axis))
    if how == "file":
        shape, strides = rest
        return np.ndarray(tuple(shape), dtype, file, first, tuple(strides))  # within the file
    (shape,) = rest
    if how == "splat":
        return np.broadcast_to(_array(first, dtype).reshape(()), tuple(shape))
    if how == "array":
        return _array(first, dtype).reshape(tuple(shape))
    raise ValueError(how)


def _array(text: str, dtype: np.dtype[Any]) -> Array:
    return np.frombuffer(base64.b64decode(text), dtype)


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value
