"""Small models that the robustness tests break, and the rule that breaking them must obey."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F = TensorProto.FLOAT
Info = onnx.ValueInfoProto

SECONDS = 2.0


def value(name: str, shape: Sequence[int | str | None] = (2, 3), kind: int = F) -> Info:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str | Info] = ("x",),
    outputs: Sequence[str | Info] = ("y",),
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    """A model; inputs and outputs given by name are float32[2,3]."""

    def info(v: str | Info) -> Info:
        return value(v) if isinstance(v, str) else v

    graph = helper.make_graph(
        list(nodes), "net", [info(v) for v in inputs], [info(v) for v in outputs],
        list(initializers),
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op_type: str, *inputs: str, out: str = "y", name: str = "", **attrs: Any) -> Any:
    return helper.make_node(op_type, list(inputs), [out], name=name or f"{op_type}_node", **attrs)


def tensor(array: np.ndarray, name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def small_net() -> onnx.ModelProto:
    """A convolution, a branch, a product and a softmax: x f32[1,2,6,6] -> y f32[1,5]."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return tensor(rng.uniform(-1, 1, shape).astype(np.float32), name)

    nodes = [
        node("Conv", "x", "w", "b", out="c", pads=[1, 1, 1, 1]),
        node("Relu", "c", out="r"),
        node("MaxPool", "r", out="m", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "m", out="f"),
        node("Gemm", "f", "v", out="g"),
        node("Softmax", "g", out="y", axis=1),
    ]
    parts = [weights("w", 4, 2, 3, 3), weights("b", 4), weights("v", 36, 5)]
    return model(nodes, [value("x", (1, 2, 6, 6))], [value("y", (1, 5))], parts)


def smallest_net() -> onnx.ModelProto:
    """A product and a softmax, two kernels: x f32[4,6] -> y f32[4,5]."""
    w = np.random.default_rng(0).uniform(-1, 1, (6, 5)).astype(np.float32)
    nodes = [node("MatMul", "x", "w", out="h"), node("Softmax", "h", out="y", axis=1)]
    return model(nodes, [value("x", (4, 6))], [value("y", (4, 5))], [tensor(w)])


@contextmanager
def quick_and_clean(*folders: Path) -> Iterator[None]:
    """What is done inside takes at most SECONDS and leaves the folders as they were.

    The clock is this thread's, which other processes on the machine do not disturb.
    """
    before = [snapshot(f) for f in folders]
    start = time.thread_time()
    yield
    seconds = time.thread_time() - start
    assert seconds <= SECONDS, f"took {seconds:.1f} s"
    for folder, then in zip(folders, before, strict=True):
        assert snapshot(folder) == then, f"something was written below {folder}"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its size and time of change."""
    found = {}
    for root, dirs, files in os.walk(folder):
        for name in (*dirs, *files):
            status = os.lstat(os.path.join(root, name))
            found[os.path.join(root, name)] = (status.st_size, status.st_mtime_ns)
    return found
