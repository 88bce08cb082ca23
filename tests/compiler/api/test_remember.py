"""A model file that was compiled before goes through passes again only if something differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tilewright as tw
from tilewright.compiler.api import compile as api
from tilewright.compiler.api import remember
from tilewright.compiler.frontends.onnx import opened
from tilewright.compiler.graph.data import from_data, to_data
from tilewright.compiler.graph.ir import Deferred
from tilewright.compiler.store import Store
from tilewright.ops.operator import REGISTRY

Array = np.ndarray[Any, Any]
X = np.random.default_rng(0).standard_normal((1, 32, 9, 9)).astype(np.float32)


def model(seed: int = 1, strides: int = 1, last: float | None = None) -> onnx.ModelProto:
    """A convolution that takes a normalisation in, one that runs with Winograd's algorithm, and a
    classifier. last: what the last of the first weights is replaced by."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 0.1).astype(np.float32)

    w = normal(32, 32, 3, 3)
    if last is not None:
        w[-1, -1, -1, -1] = last
    weights = {
        "w": w, "scale": abs(normal(32)) + 2, "shift": normal(32), "mean": normal(32),
        "var": abs(normal(32)) + 1, "v": normal(32, 32, 3, 3), "m": normal(32, 200),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4, strides=[strides] * 2, name="A"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["d"], pads=[1] * 4, name="B"),
        helper.make_node("GlobalAveragePool", ["d"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every run of the passes."""
    runs: list[str] = []
    optimise = api.optimise

    def seen(graph: Any, *rest: Any) -> Any:
        runs.append(graph.name)
        return optimise(graph, *rest)

    monkeypatch.setattr(api, "optimise", seen)
    return runs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "net.onnx", model())


def written(path: Path, m: onnx.ModelProto) -> Path:
    onnx.save(m, path)
    return path


def build(path: Path, **options: Any) -> tw.Executable:
    exe = tw.compile(path, **({"shapes": {"n": 1}} | options))
    assert isinstance(exe, tw.Executable)
    return exe


def fresh(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tw.Executable:
    with monkeypatch.context() as m:
        m.setenv("TILEWRIGHT_CACHE", "off")
        return build(path, **options)


def test_passes_run_once(file: Path, passes: list[str]) -> None:
    first = build(file)
    assert passes == ["net"]
    assert any(isinstance(b.content, Deferred) for b in first.graph.blobs.values())
    second = build(file)
    assert passes == ["net"]
    np.testing.assert_array_equal(second(X), first(X))
    for level in ("fused", "kernels", "memory"):
        assert second.ir(level) == first.ir(level)
    assert second.kernels == first.kernels and second.stats.built == 0


def test_stages_are_made_when_somebody_looks(file: Path, passes: list[str]) -> None:
    first, second = build(file), build(file)
    assert passes == ["net"]
    assert [s.name for s in second.stages] == [s.name for s in first.stages]
    assert passes == ["net", "net"]
    assert second.ir("graph") == first.ir("graph") and passes == ["net", "net"]
    assert second.stages[-1].graph is second.graph
    for a, b in zip(first.stages, second.stages, strict=True):
        assert a.graph.structural_key() == b.graph.structural_key()


def test_a_saved_program_is_the_same(file: Path, tmp_path: Path, passes: list[str]) -> None:
    build(file).save(tmp_path / "a.tw")
    build(file).save(tmp_path / "b.tw")
    assert passes == ["net"]
    assert (tmp_path / "a.tw").read_bytes() == (tmp_path / "b.tw").read_bytes()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("last", [2.0, 3.0e38])
def test_other_weights_under_the_same_key_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[str], last: float
) -> None:
    """Only one weight differs, behind the bytes that are part of the key; with the larger one,
    folding the normalisation would overflow."""
    path = tmp_path / "net.onnx"
    build(written(path, model()))
    path.unlink()
    written(path, model(last=last))
    want = fresh(path, monkeypatch)
    del passes[:]
    found = build(path)
    assert passes == ["net"]
    np.testing.assert_array_equal(found(X), want(X))
    assert found.ir("fused") == want.ir("fused")
    again = build(path)
    assert passes == ["net"], "the entry was replaced"
    np.testing.assert_array_equal(again(X), want(X))


def test_errors_of_a_program_that_is_made_for_other_weights_do_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    build(written(path, model()))
    path.unlink()
    written(path, model(last=2.0))
    finish, calls = api._finish, []

    def once(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise tw.TilewrightError("made of a graph of another model")
        return finish(*args)

    monkeypatch.setattr(api, "_finish", once)
    build(path)
    assert len(calls) == 2
    del calls[:]
    with pytest.raises(tw.TilewrightError, match="of another model"):
        build(path)


DIFFERENT: list[tuple[str, Callable[[Path], Any]]] = [
    ("shapes", lambda path: build(path, shapes={"n": 2})),
    ("outputs", lambda path: build(path, outputs=["r"])),
    ("numerics", lambda path: build(path, numerics="reproducible")),
    ("model", lambda path: build(written(path, model(strides=2)))),
    ("weights", lambda path: build(written(path, model(seed=2)))),
]


@pytest.mark.parametrize("make", [m for _, m in DIFFERENT], ids=[n for n, _ in DIFFERENT])
def test_what_decides_the_graph_is_in_the_key(
    file: Path, passes: list[str], make: Callable[[Path], Any]
) -> None:
    build(file)
    make(file)
    assert passes == ["net", "net"]
    make(file)
    assert passes == ["net", "net"]


def test_source_numpy_version_and_machine_are_in_the_key(
    file: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(file)
    with monkeypatch.context() as m:
        m.setattr(remember, "templates_fingerprint", lambda: "other")
        build(file)
    with monkeypatch.context() as m:
        m.setattr(remember.np, "__version__", "0.0")
        build(file)
    with monkeypatch.context() as m:
        m.setenv("TILEWRIGHT_CPU", "x86-64-avx2")
        build(file)
    assert len(passes) == 4
    build(file)
    assert len(passes) == 4


def graph_entry() -> Any:
    (key,) = (e.key for e in Store().entries() if ("what", "graph of a model") in e.key)
    return key


def damaged(entry: Any, how: str) -> Any:
    graph = entry["graph"]
    blob = next(b for b in graph["blobs"] if b[3] is not None and b[3][0] == "file")
    if how == "no graph":
        return {"file": entry["file"]}
    if how == "beyond the file":
        blob[3][1] = 1 << 40
    if how == "beyond all numbers":
        blob[3][1] = 1 << 80
    if how == "before the file":
        blob[3][1] = -4
    if how == "strides":
        blob[3][3] = [1 << 30] * len(blob[3][3])
    if how == "shape":
        blob[3][2] = [1]
    if how == "type":
        graph["types"][0] = "f99[1]"
    if how == "operator":
        graph["ops"][0][0] = "no such operator"
    if how == "attribute":
        graph["ops"][0][3] = [["nothing", 1]]
    if how == "order":
        graph["ops"].reverse()
    if how == "number":
        graph["ops"][0][2] = [99999]
    if how == "bytes":
        next(b for b in graph["blobs"] if b[3] is not None and b[3][0] == "array")[3][1] = "AAAA"
    return entry


@pytest.mark.parametrize(
    "how", ["no graph", "beyond the file", "beyond all numbers", "before the file", "strides",
            "shape", "type", "operator", "attribute", "order", "number", "bytes", b"", b"[]", b"{",
            b"\xff"],
)  # fmt: skip
def test_a_damaged_entry_is_made_again(file: Path, passes: list[str], how: str | bytes) -> None:
    first = build(file)
    key = graph_entry()
    good = Store().get(key)
    assert good is not None
    bad = how if isinstance(how, bytes) else json.dumps(damaged(json.loads(good), how)).encode()
    assert bad != good
    assert Store().put(key, bad)
    np.testing.assert_array_equal(build(file)(X), first(X))
    assert len(passes) == 2
    assert Store().get(key) == good
    build(file)
    assert len(passes) == 2


def test_nothing_is_kept_where_a_key_does_not_say_all(
    file: Path, passes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(path: Any, **options: Any) -> int:
        before = len(passes)
        for _ in range(2):
            tw.compile(path, **{"shapes": {"n": 1}, **options})
        return len(passes) - before

    assert twice(file.read_bytes()) == 2, "no file"
    with monkeypatch.context() as m:
        m.setenv("TILEWRIGHT_FUEL", "3")
        assert twice(file) == 2
    with monkeypatch.context() as m:
        m.setenv("TILEWRIGHT_DUMP", str(tmp_path / "dump"))
        assert twice(file) == 2
    with monkeypatch.context() as m:
        m.setitem(REGISTRY, "own_of_remember", REGISTRY["relu"])
        assert twice(file) == 2
    assert twice(file) == 1


def test_external_data_is_not_kept(tmp_path: Path, passes: list[str]) -> None:
    """The key knows nothing of other files, and shapes may come from them."""
    path = tmp_path / "net.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    build(path)
    build(path)
    assert passes == ["net", "net"]


def test_a_graph_is_said_as_data_and_comes_back(file: Path) -> None:
    exe = build(file)
    source = opened(file)
    assert source.file is not None
    graph = build(file).graph  # weights are views of another mapping
    assert to_data(graph, source.file) is None or not any(
        b.is_constant for b in graph.blobs.values()
    )
    entry = json.loads(Store().get(graph_entry()) or b"")
    back = from_data(entry["graph"], source.file)
    assert to_data(back, source.file) == entry["graph"]
    assert back.structural_key() == exe.graph.structural_key()
    assert (back.inputs, back.outputs, back.name) == (
        exe.graph.inputs, exe.graph.outputs, exe.graph.name
    )  # fmt: skip
    assert back.ops == exe.graph.ops
    for name, blob in exe.graph.blobs.items():
        assert (back.blobs[name].type, back.blobs[name].role) == (blob.type, blob.role)


def test_a_large_array_that_passes_computed_is_not_kept(
    file: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.compiler.graph.data.MOST_BYTES", 100)
    build(file)
    build(file)
    assert passes == ["net", "net"]
