"""Rows of results in a file, and errors against float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .scripts import script

accuracy, sheet = map(script, ("accuracy", "sheet"))


def test_rows_are_on_disk_at_once_and_the_newest_stands(tmp_path: Path) -> None:
    file = tmp_path / "new" / "r.json"
    first = sheet.Sheet(file)
    first.put("a", {"x": 1 / 3, "deep": [{"y": (2.0, "w")}]})
    first.put("b", {"error": "broke"})
    again = sheet.Sheet(file)
    assert again.has("a") and not again.has("b") and not again.has("c")
    again.put("a", {"x": 2})
    again.put("b", {"x": 3})
    assert json.loads(file.read_text()) == [{"name": "a", "x": 2}, {"name": "b", "x": 3}]
    assert first.rows[0] == {"name": "a", "x": 0.33333, "deep": [{"y": [2.0, "w"]}]}
    assert len(file.read_text().splitlines()) == 4, "a row per line"
    assert [p.name for p in file.parent.iterdir()] == ["r.json"]


def test_errors_are_relative_to_the_largest_output() -> None:
    y = np.array([0.0, 2.0, -4.0, 0.0])
    found = accuracy.errors([np.array([0.0, 2.0, -4.0, 0.4], np.float32), y], [y, y])
    assert np.isclose(found["max"], 0.1) and np.isclose(found["rms"], 0.05)
    assert found["typical"] == 0.0 and found["off"] == 1 / 8


def test_the_truth_is_made_once(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Div", ["x", "x"], ["y"])], "net",
        [value("x", TensorProto.FLOAT, [1, 3])], [value("y", TensorProto.FLOAT, [1, 3])],
    )  # fmt: skip
    file = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), file)
    for _ in range(2):
        (y,) = accuracy.truth_of(file, {"x": np.array([[1, 2, 3]], np.float32)})
        assert y.dtype == np.float64 and (y == 1).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net_float64.npz"]
