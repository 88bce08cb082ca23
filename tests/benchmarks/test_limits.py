"""The cost of memory limits: which programs are compared, and what is printed of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .scripts import script

limits = script("limits")


def model(path: Path, kind: str) -> Path:
    """A 3x3 convolution, or a matrix product that needs no arena."""
    shape, other = {"Conv": ([1, 32, 20, 20],) * 2, "MatMul": ([4, 8], [4, 16])}[kind]
    weights = np.ones([32, 32, 3, 3] if kind == "Conv" else [8, 16], np.float32)
    pads = {"pads": [1, 1, 1, 1]} if kind == "Conv" else {}
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"], **pads)], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, other)],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_programs_get_smaller_down_to_the_least(tmp_path: Path) -> None:
    programs = limits.programs_of(model(tmp_path / "conv.onnx", "Conv"), 1)
    arenas = [exe.plan.arena_bytes for exe in programs]
    assert len(arenas) == 3 and arenas[0] > arenas[1] >= arenas[2]
    times = limits.timed(programs, 1, 2)
    assert times.shape == (3, 2)
    header, *rows = limits.report(programs, times).splitlines()
    assert header.split()[:3] == ["arena", "changed", "time"]
    changed = [row.split()[2] for row in rows if row.strip(" -")]
    assert changed == ["0", "1", "1"]
    assert rows[-3].split()[-1] == "1.00"


def test_a_program_that_cannot_be_smaller_is_alone(tmp_path: Path) -> None:
    assert len(limits.programs_of(model(tmp_path / "matmul.onnx", "MatMul"), 1)) == 1
