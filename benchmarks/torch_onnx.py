"""ONNX models as PyTorch modules, so that torch takes part in benchmarks of models that come as
ONNX: the operators of image classifiers.

The module walks the nodes as a person would write them with `torch.nn.functional`; `torch.export`
then turns that walk into a graph. Weights become parameters, shapes are those of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

Attributes = Mapping[str, Any]


def module(model: onnx.ModelProto) -> nn.Module:
    """The model as a module of one input. Raises NotImplementedError for an operator that is not in
    the table below."""
    return _Walk(model.graph)


class _Walk(nn.Module):
    def __init__(self, graph: onnx.GraphProto) -> None:
        super().__init__()
        constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        (self.input,) = (v.name for v in graph.input if v.name not in constants)
        self.outputs = [v.name for v in graph.output]
        self.known = {k: v for k, v in constants.items() if v.dtype == np.int64}
        self.parameter_of: dict[str, str] = {}
        for k, (name, value) in enumerate(constants.items()):
            if value.dtype == np.float32:
                self.parameter_of[name] = f"p{k}"
                held = nn.Parameter(torch.from_numpy(value.copy()), requires_grad=False)
                self.register_parameter(f"p{k}", held)
        self.nodes: list[tuple[Callable[..., Any], list[str], str, Attributes]] = []
        for n in graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in n.attribute}
            if n.op_type == "Constant":
                self.known[n.output[0]] = numpy_helper.to_array(attributes["value"])
            elif n.op_type not in _OPERATORS:
                raise NotImplementedError(f"no {n.op_type} in torch_onnx.py")
            else:
                ins = list(n.input)
                self.nodes.append((_OPERATORS[n.op_type], ins, n.output[0], attributes))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        values: dict[str, Any] = {k: v.tolist() for k, v in self.known.items()}
        values |= {k: getattr(self, p) for k, p in self.parameter_of.items()}
        values[self.input] = x
        for function, ins, out, attributes in self.nodes:
            values[out] = function(attributes, *(values[i] for i in ins))
        ys = tuple(values[n] for n in self.outputs)
        return ys[0] if len(ys) == 1 else ys


# --------------------------------------------------------------------------- operators


def _padded(a: Attributes, x: Tensor, value: float) -> tuple[Tensor, tuple[int, int]]:
    """An image and the symmetric padding left to do: what is not symmetric is done here."""
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    x, pads = _padded(a, x, 0.0)
    return F.conv2d(x, w, b, tuple(a.get("strides", (1, 1))), pads,
                    tuple(a.get("dilations", (1, 1))), a.get("group", 1))  # fmt: skip


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    x, pads = _padded(a, x, float("-inf"))
    y: Tensor = F.max_pool2d(x, tuple(a["kernel_shape"]), tuple(a["strides"]), pads, 1,
                             bool(a.get("ceil_mode", 0)))  # fmt: skip
    return y


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    window, strides = tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1)))
    counted = bool(a.get("count_include_pad", 0))
    padded, pads = _padded(a, x, 0.0)
    if padded is x or counted:
        return F.avg_pool2d(padded, window, strides, pads, bool(a.get("ceil_mode", 0)), counted)
    ones, _ = _padded(a, torch.ones_like(x[:1, :1]), 0.0)
    total = F.avg_pool2d(padded, window, strides, divisor_override=1)
    return total / F.avg_pool2d(ones, window, strides, divisor_override=1)


def _batch_norm(
    a: Attributes, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, a.get("epsilon", 1e-5))


def _gemm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    assert a.get("alpha", 1.0) == a.get("beta", 1.0) == 1.0 and not a.get("transA", 0)
    return F.linear(x, w if a.get("transB", 0) else w.t(), b)


def _softmax(a: Attributes, x: Tensor) -> Tensor:
    """Before opset 13: over all axes from `axis` on, which here have one element but one."""
    axis = a.get("axis", 1)
    return F.softmax(x.flatten(axis), -1).reshape(x.shape)


def _local_response_norm(a: Attributes, x: Tensor) -> Tensor:
    return F.local_response_norm(x, a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75),
                                 a.get("bias", 1.0))  # fmt: skip


def _reshape(a: Attributes, x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.reshape([x.shape[k] if d == 0 else d for k, d in enumerate(shape)])


def _unsqueeze(a: Attributes, x: Tensor) -> Tensor:
    for axis in sorted(a["axes"]):
        x = x.unsqueeze(axis)
    return x


def _sum(a: Attributes, first: Tensor, *others: Tensor) -> Tensor:
    for x in others:
        first = first + x
    return first


_OPERATORS: Final[dict[str, Callable[..., Tensor]]] = {
    "Add": _sum,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "Conv": _conv,
    "Dropout": lambda a, x: x,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: F.adaptive_avg_pool2d(x, 1),
    "LRN": _local_response_norm,
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "Relu": lambda a, x: F.relu(x),
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Sum": _sum,
    "Transpose": lambda a, x: x.permute(tuple(a["perm"])),
    "Unsqueeze": _unsqueeze,
}
