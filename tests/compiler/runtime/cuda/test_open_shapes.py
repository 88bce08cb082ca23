"""Programs for models with open dimensions, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not there")

import tilewright as tw  # noqa: E402
from tilewright.compiler.runtime.cuda_device import device  # noqa: E402

from .devlib import PackArray  # noqa: E402
from .nets import A, softmax  # noqa: E402
from .stub import Stub  # noqa: E402


def model() -> bytes:
    h = onnx.helper
    x, y = (h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 40]) for n in "xy")
    graph = h.make_graph([h.make_node("Softmax", ["x"], ["y"], axis=1)], "g", [x], [y])
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def test_each_set_of_shapes_is_compiled_once(stub: Stub) -> None:
    exe = tw.compile(model(), target="cuda")
    for rows in (4, 2):
        stub.knows(exe.specialise({"x": (rows, 40)}))
        np.testing.assert_allclose(exe(A[:rows]), softmax(A[:rows]), 1e-5, 1e-7)
    with device(0) as d:
        s = d.stream()
    x = PackArray(device(0), A[:2], s.value)
    y = exe(x, stream=s.value)
    np.testing.assert_allclose(y.numpy(), softmax(A[:2]), 1e-5, 1e-7)
    assert exe.launching == "one graph"
