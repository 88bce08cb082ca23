"""Programs of one model for several shapes: they share packed weights, and don't wait for each
other."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.compiler.api.deferred import DeferredExecutable
from tilewright.ops.types import SymDim, f32

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((64, 48), dtype=np.float32)
SCALES = RNG.standard_normal(48, dtype=np.float32)


def net() -> onnx.ModelProto:
    """x[n,64] -> relu(x @ W) * s + row number: a product with weights in columns, whose scales go
    into them, and a constant that depends on n."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Mul", ["p", "s"], ["q"]),
        helper.make_node("Relu", ["q"], ["r"]),
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "zero"], ["n"]),
        helper.make_node("Range", ["zero", "n", "one"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["rows_f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["n", "rows"], ["left"]),
        helper.make_node("Cast", ["left"], ["left_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["left_f", "ones"], ["column"]),
        helper.make_node("Add", ["r", "column"], ["y"]),
    ]
    arrays = {"w": WEIGHTS, "s": SCALES, "zero": np.int64(0), "one": np.int64(1),
              "ones": np.array([1])}  # fmt: skip
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), k) for k, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def expected(x: Any) -> Any:
    n = len(x)
    return np.maximum(x.astype(np.float64) @ WEIGHTS * SCALES, 0) + (n - np.arange(n))[:, None]


def packed(exe: Any) -> list[Any]:
    return [a for a in exe._program.constants.values() if a.nbytes >= WEIGHTS.nbytes]


@pytest.mark.parametrize("source", ["file", "message"])
def test_weights_are_packed_once(source: str, tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "m.onnx")
    exe = tw.compile(tmp_path / "m.onnx" if source == "file" else net(), threads=1)
    made = [exe.specialise({"x": (n, 64)}) for n in (1200, 1300, 1400)]
    assert all(len(packed(m)) == 1 for m in made)
    assert len({packed(m)[0].ctypes.data for m in made}) == 1
    for n in (1, 7, 1200, 1300, 1400):
        x = RNG.standard_normal((n, 64), dtype=np.float32)
        np.testing.assert_allclose(exe(x), expected(x), rtol=1e-4, atol=1e-4)


def test_programs_of_other_compilations_share_nothing(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "m.onnx")
    one, two = (tw.compile(tmp_path / "m.onnx", shapes={"n": 1200}) for _ in range(2))
    assert not np.shares_memory(packed(one)[0], packed(two)[0])


def test_known_shapes_run_while_new_ones_are_compiled() -> None:
    """As in a server: a request of a new length holds up nobody else."""
    begun, go = threading.Event(), threading.Event()

    class Input:
        name, dims, dtype = "x", (SymDim("n"),), f32

    def graph(n: int) -> Any:
        g = tw.Graph("g")
        g.output(g.relu(g.input("x", (n,))), "y")
        return tw.compile(g)

    def build(shapes: Mapping[str, Any]) -> Any:
        n = shapes["x"][0]
        if n == 2:
            begun.set()
            assert go.wait(60)
        return graph(n)

    exe = DeferredExecutable([Input], build)
    exe(np.ones(1, np.float32))
    slow = threading.Thread(target=lambda: exe(np.ones(2, np.float32)))
    slow.start()
    assert begun.wait(60)
    done = threading.Event()
    other = threading.Thread(target=lambda: (exe(np.ones(1, np.float32)), done.set()))
    other.start()
    try:
        assert done.wait(30)
    finally:
        go.set()
        slow.join()
        other.join()
    assert exe(np.ones(2, np.float32)).shape == (2,)
