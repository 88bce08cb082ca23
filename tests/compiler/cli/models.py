"""Small model files for the command line's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_static(path: Path) -> Path:
    """y = relu(x @ w + b) for x [4, 16]; z = x * 2. Names that a shell would stumble over."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="project"),
        helper.make_node("Add", ["m", "b"], ["s"], name="shift"),
        helper.make_node("Relu", ["s"], ["y out"], name="activate"),
        helper.make_node("Add", ["x", "x"], ["z\x1b[31m"], name="double"),
    ]
    weights = [
        numpy_helper.from_array(rng.standard_normal((16, 40)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(40).astype(np.float32), "b"),
    ]
    outputs = [("y out", [4, 40]), ("z\x1b[31m", [4, 16])]
    return _write(path, nodes, [("x", [4, 16])], outputs, weights)


def write_open(path: Path) -> Path:
    """y = tanh(x) * k, with x [N, 3] and k [N, 1]."""
    nodes = [helper.make_node("Tanh", ["x"], ["t"]), helper.make_node("Mul", ["t", "k"], ["y"])]
    return _write(path, nodes, [("x", ["N", 3]), ("k", ["N", 1])], [("y", ["N", 3])])


def write_unsupported(path: Path) -> Path:
    """Two nodes that nobody knows beside one that everybody does."""
    nodes = [
        helper.make_node("FancyNorm", ["x"], ["a"], name="block/norm", domain="com.acme"),
        helper.make_node("Relu", ["x"], ["b"]),
        helper.make_node("FancierNorm", ["b"], ["c"], name="evil\x1b]0;name", domain="com.acme"),
    ]
    return _write(path, nodes, [("x", [2, 3])], [("a", [2, 3]), ("c", [2, 3])])


def _write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, list]],
    outputs: list[tuple[str, list]],
    weights: list[onnx.TensorProto] | None = None,
) -> Path:
    def info(name: str, shape: list) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes, "small", [info(*i) for i in inputs], [info(*o) for o in outputs], weights or []
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path
