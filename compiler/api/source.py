"""What users may give as a model or a target, and what it stands for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..codegen.cpu.target import CpuTarget, host
from ..errors import OptionError, TargetError
from ..frontends import onnx as onnx_frontend
from ..graph.builder import GraphBuilder
from ..graph.ir import Graph
from ..graph.textfile import is_text
from ..graph.textfile import read as read_text
from ..text import nearest
from .deferred import Shapes, checked_shapes


def cpu_target(name: str) -> CpuTarget:
    """The CPU that a `target` argument means. Raises TargetError."""
    if name == "cpu":
        return host()
    raise TargetError(f"target={name!r} is not available; known are 'cpu', 'cuda' and 'cuda:sm_90'")


def open_source(source: Any) -> Any:
    """A model file opened, to be read later; anything else as it is. Raises ModelError."""
    is_file = isinstance(source, (str, os.PathLike)) and not is_text(source)
    return onnx_frontend.opened(source) if is_file else source


def read_source(
    source: Any, shapes: Shapes | None, outputs: Sequence[str] | None
) -> tuple[Graph | None, Any]:
    """The graph, or the model that needs shapes first."""
    shapes = checked_shapes(shapes)
    if isinstance(source, GraphBuilder):
        source = source.build()
    elif is_text(source):
        source = read_text(source)
    if isinstance(source, Graph):
        return _asked_for(source, shapes, outputs), None
    model = onnx_frontend.load(source)
    ranked = all(v.dims is not None and v.dtype is not None for v in model.inputs)
    if shapes is None and ranked and not model.is_static:
        return None, model
    return model.to_graph(shapes, outputs), model


def _asked_for(
    graph: Graph, shapes: Mapping[str, Any] | None, outputs: Sequence[str] | None
) -> Graph:
    """A graph, whose shapes are fixed, with other outputs. Raises OptionError."""
    for name, dims in (shapes or {}).items():
        if name not in graph.inputs:
            raise OptionError(f"shapes: the graph has no input {name!r} (there are: "
                              f"{', '.join(map(repr, graph.inputs))})")  # fmt: skip
        if dims != graph.type(name).dims:
            raise OptionError(f"shapes: input {name!r} of the graph is {graph.type(name)}, it "
                              f"can't be {dims}")  # fmt: skip
    if outputs is None:
        return graph
    names = tuple(outputs)
    for name in names:
        if name not in graph.blobs:
            hint = nearest(name, graph.blobs)
            raise OptionError(f"outputs: the graph has no value {name!r}{hint}")
    if not names or len(set(names)) < len(names):
        raise OptionError(f"outputs={list(names)}: expected names of values, each of them once")
    return replace(graph, outputs=names)


def read_closed(source: Any, shapes: Shapes | None, outputs: Sequence[str] | None) -> Graph:
    """The graph. Raises OptionError when the model leaves shapes open."""
    graph, model = read_source(source, shapes, outputs)
    if graph is None:
        raise open_shapes(model)
    return graph


def open_shapes(model: Any) -> OptionError:
    """The error about a model that leaves shapes open."""
    listed = ", ".join(f"{v.name}: {v}" for v in model.inputs)
    return OptionError(f"the model leaves shapes open ({listed}); give them in shapes={{...}}, or "
                       "--shapes on the command line")  # fmt: skip
