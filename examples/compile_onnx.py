"""Compile an ONNX file and call it.

    python examples/compile_onnx.py model.onnx [name=size ...]

Without a file, a small model is written first. Open dimensions are bound by name (batch=4), or by
the first call.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw


def small_model() -> Path:
    """A two-layer perceptron with an open batch dimension."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 16)), "b1": rng.standard_normal(16),
        "w2": rng.standard_normal((16, 4)), "b2": rng.standard_normal(4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="hidden"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"], name="out"),
        helper.make_node("Softmax", ["logits"], ["prob"], name="softmax", axis=-1),
    ]
    graph = helper.make_graph(
        nodes, "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    path = Path(tempfile.mkdtemp()) / "perceptron.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return path


def main() -> None:
    files = [a for a in sys.argv[1:] if "=" not in a]
    sizes = {k: int(v) for k, v in (a.split("=") for a in sys.argv[1:] if "=" in a)}
    path = files[0] if files else small_model()
    if not files:
        sizes = {"batch": 3}

    exe = tw.compile(path, shapes=sizes or None)
    print(exe)
    rng = np.random.default_rng(1)
    feeds = {s.name: rng.standard_normal(s.shape).astype(s.dtype) for s in exe.inputs}
    for name, y in exe.run(feeds).items():
        print(f"{name}: {y.dtype}{list(y.shape)}, from {y.min():.4g} to {y.max():.4g}")


if __name__ == "__main__":
    main()
