"""Random graphs as ONNX models, for comparing with other runtimes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tilewright.compiler.graph.ir import Graph, Op

OPSET = 18

_SAME = [
    "relu", "sigmoid", "tanh", "abs", "neg", "softplus", "erf", "sin", "cos", "identity",
    "softsign", "add", "sub", "mul", "div", "max", "min", "sum", "mean", "pow", "sqrt", "log",
    "reciprocal", "exp", "clip", "elu", "gemm", "softmax", "concat", "transpose",
]  # fmt: skip
"""Operators that ONNX calls the same."""

_OTHER_NAMES = {
    "batch_normalization": "BatchNormalization",
    "layer_normalization": "LayerNormalization",
    "leaky_relu": "LeakyRelu",
    "hard_sigmoid": "HardSigmoid",
    "log_softmax": "LogSoftmax",
    "max_pool": "MaxPool",
    "average_pool": "AveragePool",
    "global_average_pool": "GlobalAveragePool",
    "global_max_pool": "GlobalMaxPool",
    "matmul": "MatMul",
    "reduce_sum": "ReduceSum",
    "reduce_mean": "ReduceMean",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_l2": "ReduceL2",
    "gelu": "Gelu",
    **{n: n.capitalize() for n in _SAME},
}

_KEPT_ATTRS = {
    "batch_normalization": ("epsilon",),
    "layer_normalization": ("axis", "epsilon"),
    "leaky_relu": ("alpha",),
    "hard_sigmoid": ("alpha", "beta"),
    "elu": ("alpha",),
    "softmax": ("axis",),
    "log_softmax": ("axis",),
    "concat": ("axis",),
    "transpose": ("perm",),
    "average_pool": ("kernel_shape", "count_include_pad"),
    "max_pool": ("kernel_shape",),
}


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """The model. Raises KeyError for an operator that random graphs do not have."""
    return _Writer(graph).model()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {n: graph.blobs[n].value for n in graph.constants}

    def model(self) -> onnx.ModelProto:
        for op in self.graph.ops:
            special = _SPECIAL.get(op.operator)
            if special is not None:
                special(self, op)
            else:
                self.add(op, _OTHER_NAMES[op.operator], op.inputs, **self.attrs(op))
        body = helper.make_graph(
            self.nodes,
            self.graph.name,
            [self.info(n) for n in self.graph.inputs],
            [self.info(n) for n in self.graph.outputs],
            [numpy_helper.from_array(np.array(x), n) for n, x in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 20 if self.has("gelu") else OPSET)]
        return helper.make_model(body, opset_imports=opsets, ir_version=9)

    def has(self, operator: str) -> bool:
        return any(op.operator == operator for op in self.graph.ops)

    def info(self, name: str) -> onnx.ValueInfoProto:
        t = self.graph.type(name)
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(t.dtype.numpy), t.dims
        )

    def attrs(self, op: Op) -> dict[str, Any]:
        kept = {k: op.attr(k) for k in _KEPT_ATTRS.get(op.operator, ())}
        return {k: v for k, v in kept.items() if v is not None}

    def add(self, op: Op, onnx_name: str, inputs: Any, **attrs: Any) -> None:
        names = ["" if n is None else n for n in inputs]
        node = helper.make_node(onnx_name, names, list(op.outputs), name=op.name, **attrs)
        self.nodes.append(node)

    def array(self, op: Op, role: str, value: Any, dtype: Any = np.int64) -> str:
        """A constant input that is an attribute here."""
        name = f"{op.outputs[0]}.{role}"
        self.constants[name] = np.asarray(value, dtype)
        return name


def _window(attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes of convolutions and pooling, one number per axis."""
    return {
        "strides": attrs["strides"] if attrs["strides"] != 1 else (1, 1),
        "pads": attrs["pads"] if attrs["pads"] != 0 else (0, 0, 0, 0),
    }


def _conv(w: _Writer, op: Op) -> None:
    w.add(op, "Conv", op.inputs, group=op.attr("group"), **_window(op.attributes))


def _pool(w: _Writer, op: Op) -> None:
    w.add(op, _OTHER_NAMES[op.operator], op.inputs, **_window(op.attributes), **w.attrs(op))


def _gemm(w: _Writer, op: Op) -> None:
    a = op.attributes
    w.add(op, "Gemm", op.inputs, alpha=a["alpha"], beta=a["beta"], transB=a["transb"])


def _reduce(w: _Writer, op: Op) -> None:
    axes = w.array(op, "axes", op.attr("axes"))
    w.add(op, _OTHER_NAMES[op.operator], (*op.inputs, axes), keepdims=op.attr("keepdims"))


def _with_array(onnx_name: str, *roles: str) -> Callable[[_Writer, Op], None]:
    """Attributes that ONNX takes as inputs, in this order."""

    def write(w: _Writer, op: Op) -> None:
        extra = [w.array(op, r, op.attr(r)) for r in roles]
        w.add(op, onnx_name, (*op.inputs, *extra))

    return write


def _reshape(w: _Writer, op: Op) -> None:
    w.add(op, "Reshape", (*op.inputs, w.array(op, "shape", w.graph.type(op.outputs[0]).dims)))


def _split(w: _Writer, op: Op) -> None:
    w.add(op, "Split", (*op.inputs, w.array(op, "split", op.attr("split"))), axis=op.attr("axis"))


def _pad(w: _Writer, op: Op) -> None:
    pads, value = w.array(op, "pads", op.attr("pads")), op.attr("value")
    w.add(op, "Pad", (*op.inputs, pads, w.array(op, "value", value, np.float32)))


_SPECIAL: dict[str, Callable[[_Writer, Op], None]] = {
    "conv": _conv,
    "max_pool": _pool,
    "average_pool": _pool,
    "gemm": _gemm,
    **{n: _reduce for n in _OTHER_NAMES if n.startswith("reduce_")},
    "reshape": _reshape,
    "split": _split,
    "pad": _pad,
    "dropout": lambda w, op: w.add(op, "Dropout", op.inputs),
    "slice": _with_array("Slice", "starts", "ends", "axes", "steps"),
    "tile": _with_array("Tile", "repeats"),
    "expand": _with_array("Expand", "shape"),
    "squeeze": _with_array("Squeeze", "axes"),
    "unsqueeze": _with_array("Unsqueeze", "axes"),
}
