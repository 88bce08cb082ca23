"""Weights that stay in the model's file: read, given back, and what is said when it changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import ModelError
from tilewright.compiler.graph.ir import Deferred
from tilewright.compiler.graph.mapped import MappedFile, contents, file_of
from tilewright.compiler.passes.fold_scales import FoldScales

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.skipif(not hasattr(os, "pread"), reason="files are read where unmapped")

rng = np.random.default_rng(11)
CHANNELS = 96  # 96 * 96 * 4 bytes are more than are left to protobuf


def mapped(path: Path) -> MappedFile:
    with path.open("rb") as file:
        found = contents(file, "the file")
    assert isinstance(found, MappedFile)
    return found


def test_released_pages_come_back(tmp_path: Path) -> None:
    data = rng.integers(0, 255, 100_000, np.uint8)
    (tmp_path / "a").write_bytes(data.tobytes())
    file = mapped(tmp_path / "a")
    view = np.frombuffer(file, np.uint8)[5003:90_001:3]
    before = view.copy()
    file.release(view)
    np.testing.assert_array_equal(view, before)
    assert file_of(view.reshape(-1, 1).T) is file
    assert file.read_at(77, 99) == data[77:99].tobytes()


def test_empty_files_and_pipes_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file:
        assert contents(file, "") == b""
    read, write = os.pipe()
    os.write(write, b"abc")
    os.close(write)
    with open(read, "rb") as file:
        assert contents(file, "") == b"abc"


def test_a_change_is_told_and_a_replacement_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(5000))
    file = mapped(path)
    (tmp_path / "b").write_bytes(b"1" * 10)
    os.replace(tmp_path / "b", path)
    file.check()
    other = mapped(path)
    path.write_bytes(b"1" * 5)
    with pytest.raises(ModelError, match="the file changed while"):
        other.check()


def model(path: Path, overflow: bool = False) -> None:
    """relu(batch_norm(conv(x))) with weights that stay in the file."""
    w = rng.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
    stats = rng.uniform(2, 3, (4, CHANNELS)).astype(np.float32)
    if overflow:
        w[3, 4], stats[0] = 3e38, 9
    names = ("scale", "shift", "mean", "var")
    tensors = [onnx.numpy_helper.from_array(w, "w")]
    tensors += [onnx.numpy_helper.from_array(v, n) for n, v in zip(names, stats, strict=True)]
    value = onnx.helper.make_tensor_value_info
    dims = [1, CHANNELS, 5, 7]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
         onnx.helper.make_node("BatchNormalization", ["c", *names], ["y"])], "net",
        [value("x", 1, dims)], [value("y", 1, dims)], tensors,
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def test_folded_weights_are_deferred_and_computed_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model(path)
    exe = tw.compile(path)
    deferred = [b for b in exe.graph.blobs.values() if isinstance(b.content, Deferred)]
    assert len(deferred) == 1
    folded = deferred[0].value
    g = exe.stages[0].graph
    w, scale, var = (g.blobs[n].value for n in ("w", "scale", "var"))
    wide = np.float64(scale) / np.sqrt(np.float64(var) + 1e-5)
    np.testing.assert_array_equal(  # one rounding, in both
        folded, (np.float64(w) * wide.reshape(-1, 1, 1, 1)).astype(np.float32)
    )
    assert file_of(w) is not None
    assert all(file_of(c) is None for c in exe._program.constants.values())


def test_weights_that_would_overflow_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model(path, overflow=True)
    folded = FoldScales().run(tw.compile(path).stages[0].graph)
    assert [op.operator for op in folded.ops] == ["conv", "mul", "add"]
    assert folded.ops[0].inputs[1] == "w"


def test_a_program_outlives_its_model_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model(path)
    exe = tw.compile(path)
    x = rng.standard_normal(exe.inputs[0].shape).astype(np.float32)
    before = exe(x)
    path.write_bytes(b"short")
    np.testing.assert_array_equal(exe(x), before)
    with pytest.raises(ModelError, match="changed while its weights were in use"):
        exe.save(tmp_path / "net.tw")
