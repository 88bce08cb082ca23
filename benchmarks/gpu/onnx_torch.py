"""An ONNX network of convolutions as a torch module, with its weights: what torch is compared by.

Covers what ResNet-50, SqueezeNet and their like consist of; `module` raises NotImplementedError for
all else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn


class Network(nn.Module):
    """The nodes in order, traced by whoever compiles it: a list of calls, with no ONNX left."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        self._shapes: dict[str, list[int]] = {}
        for k, t in enumerate(model.graph.initializer):
            value = torch.from_numpy(numpy_helper.to_array(t).copy())
            if value.dtype == torch.int64:
                self._shapes[t.name] = value.tolist()
            else:
                self._names[t.name] = f"w{k}"
                self.register_buffer(f"w{k}", value)
        known = {*self._names, *self._shapes}
        (self._input,) = (v.name for v in model.graph.input if v.name not in known)
        self._output = model.graph.output[0].name
        self._nodes = [self._node(n) for n in model.graph.node]

    def _node(self, n: onnx.NodeProto) -> tuple[Any, list[str], str, dict[str, Any]]:
        made = _OPS.get(n.op_type)
        if made is None:
            raise NotImplementedError(f"{n.op_type} has no counterpart here")
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
        inputs = list(n.input)
        if n.op_type == "Reshape":
            attrs["shape"] = self._shapes[inputs.pop()]
        return made, inputs, n.output[0], attrs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = {self._input: x}
        values |= {n: getattr(self, w) for n, w in self._names.items()}
        for made, inputs, output, attrs in self._nodes:
            values[output] = made(attrs, *(values[n] for n in inputs))
        return values[self._output]


def module(file: Path) -> Network:
    """The network of a file. Raises NotImplementedError."""
    return Network(onnx.load(file)).eval()


def _padded(a: dict[str, Any], x: torch.Tensor, fill: float) -> torch.Tensor:
    """Padding that torch's own argument cannot say: more at the end than at the beginning."""
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise NotImplementedError("automatic padding")
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    if not (top or left or bottom or right):
        return x
    return F.pad(x, (left, right, top, bottom), value=fill)


def _conv(a: dict[str, Any], x: Any, w: Any, b: Any = None) -> Any:
    top, left, bottom, right = pads = a.get("pads", (0, 0, 0, 0))
    same = (top, left) == (bottom, right)
    x = x if same else _padded(a, x, 0.0)
    return F.conv2d(x, w, b, a.get("strides", (1, 1)), pads[:2] if same else 0,
                    a.get("dilations", (1, 1)), a.get("group", 1))  # fmt: skip


def _max_pool(a: dict[str, Any], x: Any) -> Any:
    return F.max_pool2d(_padded(a, x, float("-inf")), a["kernel_shape"], a.get("strides", 1))


def _average_pool(a: dict[str, Any], x: Any) -> Any:
    if any(a.get("pads", ())):
        raise NotImplementedError("an average over padding")
    return F.avg_pool2d(x, a["kernel_shape"], a.get("strides", 1))


def _gemm(a: dict[str, Any], x: Any, w: Any, b: Any) -> Any:
    if a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0 or a.get("transA"):
        raise NotImplementedError("Gemm with factors")
    return F.linear(x, w if a.get("transB") else w.T, b)


def _norm(a: dict[str, Any], x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, a.get("epsilon", 1e-5))


_OPS: dict[str, Any] = {
    "Conv": _conv, "BatchNormalization": _norm, "MaxPool": _max_pool,
    "AveragePool": _average_pool, "Gemm": _gemm,
    "Relu": lambda a, x: F.relu(x),
    "Add": lambda a, x, y: x + y,
    "Sum": lambda a, x, y: x + y,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Dropout": lambda a, x: x,
    "Reshape": lambda a, x: x.reshape([x.shape[0], *a["shape"][1:]]),
    "Softmax": lambda a, x: torch.softmax(x.flatten(1), 1).reshape(x.shape),
}  # fmt: skip
