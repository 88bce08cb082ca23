"""Getting at ONNX's protobuf messages: from a path, from bytes, or from a loaded model."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ModelError
from ..graph.mapped import MappedFile, contents
from .mistaken import LENGTH, mistaken
from .onnx_wire import Array, Split, split

Message = Any  # protobuf builds its classes at run time: there is nothing to name statically

DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})


@cache
def messages() -> ModuleType:
    """The module of generated protobuf classes (`ModelProto`, ...).

    `import onnx` also loads helpers, checkers and C++ bindings that an importer has no use for.
    The file of the generated classes stands on its own and loads in a third of the time.
    """
    if "onnx" not in sys.modules:
        package = importlib.util.find_spec("onnx")
        for folder in (package.submodule_search_locations or ()) if package else ():
            path = Path(folder) / "onnx_ml_pb2.py"
            spec = importlib.util.spec_from_file_location(f"{__package__}._onnx_messages", path)
            if path.is_file() and spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module
    import onnx

    return onnx


@dataclass(frozen=True, slots=True)
class Parsed:
    """A model message, what to call it in errors, and the folder that its external data lies in
    (None for a model that came from memory). tensors: the bytes of initializers, by position, that
    the message does not hold itself. file: where those bytes lie if not in memory."""

    model: Message
    label: str
    folder: Path | None
    tensors: Mapping[int, Array] = field(default_factory=dict)
    file: MappedFile | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A serialized model without its large tensors, not parsed yet; the rest as in `Parsed`."""

    parts: Split
    label: str
    folder: Path | None
    file: MappedFile | None


Source = str | os.PathLike[str] | bytes | Opened | Message


def opened(path: str | os.PathLike[str]) -> Opened:
    """A model file, to be parsed later. Raises ModelError when it cannot be read."""
    where = Path(path)
    label = f"model file {str(where)!r}"
    try:
        with where.open("rb") as f:
            data = contents(f, label)
        file = data if isinstance(data, MappedFile) else None
        return Opened(split(data), label, where.parent, file)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise ModelError(f"{label} cannot be read: {reason}") from e


def parse(source: Source) -> Parsed:
    """Read and parse a model. Raises ModelError when it cannot be read or is not an ONNX model."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parse(Opened(split(bytes(source)), "the model", None, None))
    if isinstance(source, (str, os.PathLike)):
        return _parse(opened(source))
    if isinstance(source, Opened):
        return _parse(source)
    if hasattr(source, "graph") and hasattr(source, "opset_import"):
        return Parsed(source, "the model", None)
    is_torch = any(t.__module__.split(".")[0] == "torch" for t in type(source).__mro__)
    todo = ("export it by torch.onnx.export, and give the path of the file" if is_torch else
            "give a path, bytes, an onnx.ModelProto or a tw.Graph")  # fmt: skip
    raise ModelError(f"an object of type {type(source).__name__} is not an ONNX model; {todo}")


def _parse(o: Opened) -> Parsed:
    return Parsed(_decode(o.parts, o.label), o.label, o.folder, o.parts.tensors, o.file)


def _decode(parts: Split, label: str) -> Message:
    if not parts.size:
        raise ModelError(f"{label} is empty (0 bytes)")
    model = messages().ModelProto()
    try:
        model.ParseFromString(parts.rest)
    except Exception as e:  # DecodeError; its module moved between versions of protobuf
        why = mistaken(parts.rest[:LENGTH]) or f"or it is truncated or damaged: {e}"
        raise ModelError(f"{label} ({parts.size} bytes) is no ONNX model, {why}") from e
    if not model.HasField("graph"):
        raise ModelError(f"{label} ({parts.size} bytes) holds no graph: is it an ONNX model?")
    return model


def check_text(model: Message, label: str) -> None:
    """Raises ModelError when a name is not text: protobuf then gives bytes, or refuses to."""
    try:
        damaged = any(isinstance(text, bytes) for text in _texts_of_model(model))
    except UnicodeDecodeError:
        damaged = True
    if damaged:
        raise ModelError(f"{label} is damaged: a name in it is no valid UTF-8 text")


def _texts_of_model(model: Message) -> Iterator[object]:
    yield from (o.domain for o in model.opset_import)
    yield from _texts(model.graph)
    for f in model.functions:
        yield from (f.name, f.domain, getattr(f, "overload", ""), *f.input, *f.output)
        yield from (o.domain for o in f.opset_import)
        yield from (a.name for a in f.attribute_proto)
        yield from _texts_of_nodes(f.node)


def _texts(graph: Message) -> Iterator[object]:
    yield graph.name
    for tensor in graph.initializer:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (d.dim_param for d in value.type.tensor_type.shape.dim)
    yield from _texts_of_nodes(graph.node)


def _texts_of_nodes(nodes: Iterable[Message]) -> Iterator[object]:
    for node in nodes:
        yield from (node.name, node.op_type, node.domain, getattr(node, "overload", ""))
        yield from node.input
        yield from node.output
        for a in node.attribute:
            yield from (a.name, a.ref_attr_name)
            for graph in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                yield from _texts(graph)


def domain_of(name: str) -> str:
    """A domain in its canonical spelling: the default domain is ''."""
    return "" if name in DEFAULT_DOMAINS else name
