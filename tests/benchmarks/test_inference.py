"""How results are kept, so that a run goes on where the last one stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .scripts import script

inference, machine, processes = map(script, ("inference", "machine", "processes"))


def result(peers: list[str], threads: int = 1, **more: Any) -> dict[str, Any]:
    return {"model": "mlp", "batch": 1, "threads": threads, "peers": {p: {"n": 1} for p in peers},
            "unavailable": {}, "about": {"foreign_processors": 0.5}} | more  # fmt: skip


def test_a_second_run_measures_what_the_first_did_not(tmp_path: Path) -> None:
    file = tmp_path / "new" / "r.json"
    book = inference.Book(file)
    assert book.missing("mlp", 1, 1, ["openvino", "ncnn"]) == ["openvino", "ncnn"]
    book.add("latency", result(["openvino"], unavailable={"ncnn": "is not installed"}))
    again = inference.Book(file)
    assert again.missing("mlp", 1, 1, ["openvino", "ncnn", "torch"]) == ["torch"]
    assert again.missing("mlp", 1, 2, ["openvino"]) == ["openvino"]
    assert again.missing("mlp", 1, 1, ["openvino"], disturbed=0.4) == ["openvino"]
    assert again.missing("mlp", 1, 1, ["openvino"], disturbed=0.5) == []
    assert again.missing("mlp", 8, 1, ["openvino"]) == ["openvino"]
    assert [p.name for p in file.parent.iterdir()] == ["r.json"]


def test_a_new_result_stands_for_the_old_one_of_the_same_peers(tmp_path: Path) -> None:
    book = inference.Book(tmp_path / "r.json")
    book.add("latency", result(["openvino", "onnxruntime"], tag=1))
    book.add("latency", result(["openvino"], threads=2, tag=2))
    book.add("latency", result(["openvino"], tag=3))
    kept = {r["tag"]: sorted(r["peers"]) for r in book.data["latency"]}
    assert kept == {1: ["onnxruntime"], 2: ["openvino"], 3: ["openvino"]}
    book.add("latency", result(["onnxruntime"], tag=4))
    assert sorted(r["tag"] for r in book.data["latency"]) == [2, 3, 4]


def test_results_of_processes(tmp_path: Path) -> None:
    book = inference.Book(tmp_path / "r.json")
    one = {"model": "mlp", "batch": 1, "threads": 2, "contestant": "tilewright"}
    book.add("processes", one)
    assert book.has_process("mlp", 1, 2, "tilewright")
    assert not book.has_process("mlp", 1, 2, "torch")
    book.add("processes", one | {"contestant": "torch"})
    book.add("processes", one | {"error": "x"})
    assert len(json.loads(book.file.read_text())["processes"]) == 2


def test_a_process_of_its_own(tmp_path: Path) -> None:
    import tilewright as tw

    g = tw.Graph()
    g.output(g.relu(g.input("x", (3, 4))), "y")
    model = tmp_path / "net.txt"
    exe = tw.compile(g)
    assert isinstance(exe, tw.Executable)
    model.write_text(exe.ir("graph"))
    feeds = {"x": np.ones((3, 4), np.float32)}
    found, (y,) = processes.measure("tilewright", model, feeds, 1)
    np.testing.assert_array_equal(y, feeds["x"])
    for kind in ("cold", "warm"):
        cost = found[kind]
        assert 0 < cost["load_seconds"] <= cost["first_result_seconds"]
        assert 1 << 20 < cost["import_bytes"] <= cost["peak_bytes"]


def test_a_contestant_that_fails_says_why() -> None:
    found, outputs = processes.measure("no_such_runtime", Path("x.onnx"), {}, 1)
    assert outputs == [] and "no_such_runtime" in found["error"]


def test_neighbours_are_counted() -> None:
    with machine.neighbours() as busy:
        sum(range(10**5))
    assert busy["foreign_processors"] >= 0 and busy["load_before"] >= 0
