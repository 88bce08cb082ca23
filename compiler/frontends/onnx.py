"""The ONNX frontend: models of opset 7 and newer become graphs.

    model = load("net.onnx")                     # parsed once
    model.inputs                                 # names, types, symbolic dimensions
    graph = model.to_graph({"x": (1, 3, 224, 224)})

Shapes are static from here on: everything that depends on shapes only is evaluated while importing,
so that operators get plain attributes. Nothing of ONNX is imported before a model is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.ir import Graph
from .onnx_model import OnnxModel, OnnxValue, Shapes, bind, load
from .onnx_proto import Opened, Source, opened

__all__ = ["OnnxModel", "OnnxValue", "Opened", "bind", "load", "opened", "read"]


def read(
    source: Source, shapes: Shapes | None = None, outputs: Sequence[str] | None = None
) -> Graph:
    """The graph of a model given as path, bytes or onnx.ModelProto.

    shapes binds symbolic dimensions: shapes by input, or sizes by dimension name. outputs names
    values to compute instead of the model's outputs. Raises as `OnnxModel.to_graph` does.
    """
    return load(source).to_graph(shapes, outputs)
