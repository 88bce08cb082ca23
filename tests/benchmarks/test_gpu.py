"""The benchmark for GPUs, without one: kernels run in the simulator, torch is a fake, and processes
that hang or die cost their own part only."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.graph.bfloat16 import bits_of, values_of
from tilewright.compiler.runtime import gpu_code
from tilewright.compiler.tuning import gpu_bench
from tilewright.compiler.tuning.problem import Problem

from ..compiler.runtime.cuda.conftest import library, stub  # noqa: F401  fixtures
from ..compiler.runtime.cuda.stub import Stub
from .scripts import FOLDER, script

Row = dict[str, Any]


def gpu_script(name: str) -> Any:
    sys.path.insert(0, str(FOLDER / "gpu"))
    try:
        return script(name)
    finally:
        sys.path.remove(str(FOLDER / "gpu"))


# --------------------------------------------------------------------------- are kernels right


@pytest.fixture
def families(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    """The script, whose kernels the stub knows."""
    instantiate = Problem.instantiate

    def noted(self: Problem, candidate: Any) -> Any:
        launch = instantiate(self, candidate)
        stub.knows_kernel(launch.kernel)
        return launch

    monkeypatch.setattr(Problem, "instantiate", noted)
    monkeypatch.setattr(gpu_bench, "CHECKS", 1)
    monkeypatch.setattr(gpu_bench, "MOST_RUNS", 1)
    return gpu_script("families")


QUICK = ("gpu_tiles", "gpu_nest", "arg", "scan", "gpu_mma")
SIMULATED = [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in
             ("gpu_wgmma", "gpu_mma", "gpu_attention_wgmma", "gpu_attention_mma",
              "gpu_attention_tiles", "gpu_tiles", "gpu_strips", "gpu_nest", "gpu_recurrent",
              "gpu_unpool", "recurrent", "arg", "top_k", "scan", "scatter", "unpool")]  # fmt: skip


@pytest.mark.parametrize("family", SIMULATED)
def test_a_family_is_checked(families: Any, family: str) -> None:
    rows = list(families.check(family, 3, tiny=True, configs=2, cases=1))
    assert not [r for r in rows if "error" in r]
    assert [r for r in rows if r.get("ok")], rows


def test_tf32_is_allowed_what_it_rounds(families: Any) -> None:
    """And float32 is not: see `test_wrong_kernels_are_told`."""
    names = [c.name for c in families.CASES["gpu_mma"]]
    number = names.index("matmul f32 even")
    rows = list(families.check("gpu_mma", 3, number, True, 1, number + 1))
    assert [r for r in rows if r.get("ok")] and not [r for r in rows if "error" in r], rows


def test_every_template_has_cases(families: Any) -> None:
    known = {t.name for numerics in ("standard", "reduced")
             for t in families.gpu_templates(numerics, (9, 0))}  # fmt: skip
    assert known == set(families.CASES) == set(gpu_script("check").FAMILIES)


def test_every_case_is_some_templates(families: Any) -> None:
    device = families.gpu_device((9, 0))
    for family, cases in families.CASES.items():
        taken = [not isinstance(families.problem(c, family, device, families.Sizes(k, True)), str)
                 for k, c in enumerate(cases)]  # fmt: skip
        assert any(taken), family


def test_wrong_kernels_are_told(families: Any, stub: Stub) -> None:  # noqa: F811
    known = stub.knows_kernel

    def spoiled(kernel: Any) -> None:
        known(kernel)
        for name, (k, text, entry) in stub.kernels.items():
            stub.kernels[name] = k, text.replace("max(", "min("), entry

    stub.knows_kernel = spoiled  # type: ignore[method-assign]
    rows = list(families.check("gpu_tiles", 3, tiny=True, configs=1, cases=1))
    assert next(r["error"] for r in rows if "error" in r).startswith("wrong: ")
    assert not any(r.get("ok") for r in rows)


# --------------------------------------------------------------------------- beside other libraries


class FakeLab:
    """A library on the host. off: how far its own results are from ours."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def about(self) -> Row:
        return {}

    def random(self, dims: Sequence[int], kind: str) -> Any:
        return np.random.default_rng(4).standard_normal(dims).astype(np.float32)

    def empty(self, dims: Any, kind: str = "") -> Any:
        if kind:
            return np.full(dims, np.nan, np.float32)
        return [np.full(s.shape, np.nan, s.dtype) for s in dims]

    def host(self, array: Any) -> Any:
        return array

    def rivals(self, what: Any, arrays: Any, *more: Any, **settings: Any) -> Any:
        if not more:
            return {"fake": lambda: None}
        feeds = more[2]

        def failing() -> Any:
            raise RuntimeError("out of memory")

        return iter([("fake", lambda: lambda: feeds[0][:, :1] * 0 + self.off), ("bad", failing)])

    def error(self, what: str, arrays: Sequence[Any], got: Any, **settings: Any) -> float:
        truth = np.maximum(arrays[0] + arrays[1], 0) if what == "added" else arrays[0] @ arrays[1]
        return float(np.abs(got - truth).max() / np.abs(truth).max()) + self.off

    def samples(self, call: Any, cold: bool = False) -> list[float]:
        call()
        return [2e-6, 1e-6, 3e-6]

    def feeds(self, arrays: Mapping[str, Any], precision: str) -> list[Any]:
        return list(arrays.values())

    def numpy(self, array: Any) -> Any:
        return np.asarray(array)

    def wait(self) -> None:
        """Nothing is under way."""


@pytest.fixture
def beside() -> Any:
    return gpu_script("beside")


def test_kernels_are_compared_and_timed(beside: Any, stub: Stub) -> None:  # noqa: F811
    chosen = [beside.matmul("f32", 5, 7, 9), beside.moved("added", "f32", 3, 40)]
    rows = [r for r in beside.timed(chosen, lambda tf32: FakeLab(), stub.compile) if "name" in r]
    assert len(rows) == 2
    for r in rows:
        assert "error" not in r and r["error_of_largest"] < 1e-6
        assert set(r["warm"]) == set(r["cold"]) == {"tilewright", "fake"}
        assert r["of_best_rival"] == 1.0 and len(r["launch_seconds"]) == len(r["templates"])
        assert gpu_script("check").line(r)


def test_wrong_results_are_not_timed(beside: Any, stub: Stub) -> None:  # noqa: F811
    rows = list(beside.timed([beside.matmul("f32", 5, 7, 9)], lambda tf32: FakeLab(0.1),
                             stub.compile))  # fmt: skip
    assert rows[-1]["error"].startswith("wrong: off by 0.1") and "warm" not in rows[-1]


@pytest.mark.parametrize("name", ["products", "convolutions", "moving", "attention"])
def test_the_sets_are_what_they_say(beside: Any, name: str) -> None:
    """Names are unique, as rows are kept by them, and results have the shapes that are timed."""
    chosen = beside.SETS[name]
    assert len({t.name for t in chosen}) == len(chosen)
    for t in chosen:
        graph = t.graph()
        assert graph.type("y").dims == t.out and str(graph.type("y").dtype) == t.element


def test_launches(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    networks = gpu_script("networks")
    monkeypatch.setattr(networks, "SAMPLES", 2)
    monkeypatch.setattr(networks, "SAMPLE_SECONDS", 1e-9)
    row = list(networks.launching(FakeLab(), stub.compile, (1, 2), 16))[-1]
    assert row["kernels"] == 2 and set(row["seconds"]) == {"tilewright", "fake"}


def test_models_and_rivals_that_fail(stub: Stub, tmp_path: Path, monkeypatch: Any) -> None:  # noqa: F811
    onnx = pytest.importorskip("onnx")
    networks = gpu_script("networks")
    h = onnx.helper
    values = [h.make_tensor_value_info(n, 1, (1, 1)) for n in ("x", "y")]
    graph = h.make_graph([h.make_node("Sub", ["x", "x"], ["y"])], "g", values[:1], values[1:])
    file = tmp_path / "m.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)]), file)
    monkeypatch.setattr(networks, "of_precision", lambda *_: file)
    monkeypatch.setattr(networks.models, "sample",
                        lambda name, batch: {"x": np.ones((1, 1), np.float32)})  # fmt: skip
    monkeypatch.setattr(networks, "SAMPLES", 2)
    monkeypatch.setattr(networks, "SAMPLE_SECONDS", 1e-9)
    rows = list(networks.compared("m", 1, "f32", FakeLab(), False, stub.compile))
    last = rows[-1]
    assert set(last["seconds"]) == {"tilewright", "fake"} and "error" not in last
    assert last["failed"] == {"bad": "RuntimeError: out of memory"}
    wrong = list(networks.compared("m", 1, "f32", FakeLab(1.0), False, stub.compile))[-1]
    assert "differ from fake's" in wrong["error"]


def test_halves_are_rounded_to_even() -> None:
    onnx = pytest.importorskip("onnx")
    networks = gpu_script("networks")
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -np.pi], np.float32)
    made = networks.rounded(onnx.numpy_helper.from_array(x, "x"), networks.HALVES["bf16"])
    words = np.frombuffer(made.raw_data, np.uint16).astype(np.uint32) << 16
    assert words.view(np.float32).tolist() == [1.0, 1.0, 1 + 2**-6, -3.140625]
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, -np.pi], np.float32)
    made = networks.rounded(onnx.numpy_helper.from_array(x, "x"), networks.HALVES["f16"])
    assert np.frombuffer(made.raw_data, np.float16).tolist() == [1.0, 1 + 2**-9, -3.140625]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_what_is_float32_in_any_model_stays(kind: str) -> None:
    """And all else is halved: initializers, constants, casts, inputs, outputs."""
    onnx = pytest.importorskip("onnx")
    networks = gpu_script("networks")
    h = onnx.helper
    single, half = onnx.TensorProto.FLOAT, networks.HALVES[kind]
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    weight = onnx.numpy_helper.from_array(np.array([3], np.float32), "w")
    nodes = [
        h.make_node("Resize", ["x", "", "scales"], ["r"], mode="nearest"),
        h.make_node("Constant", [], ["c"], value_float=0.5),
        h.make_node("Constant", [], ["d"], value=onnx.numpy_helper.from_array(np.float32([2]))),
        h.make_node("Mul", ["r", "w"], ["m"]), h.make_node("Mul", ["m", "c"], ["n"]),
        h.make_node("Mul", ["n", "d"], ["o"]), h.make_node("Cast", ["o"], ["y"], to=single),
    ]  # fmt: skip
    ends = [h.make_tensor_value_info(n, single, d)
            for n, d in (("x", (1, 1, 2, 2)), ("y", (1, 1, 4, 4)))]  # fmt: skip
    model = networks.in_half(h.make_model(
        h.make_graph(nodes, "g", ends[:1], ends[1:], [scales, weight]),
        opset_imports=[h.make_opsetid("", 17)], ir_version=9), half)  # fmt: skip
    assert [t.data_type for t in model.graph.initializer] == [single, half]
    exe = tw.compile(model)
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    bits = bits_of(x) if kind == "bf16" else x.astype(np.float16)
    y = np.asarray(exe(bits))
    got = values_of(y) if kind == "bf16" else y
    assert y.dtype == bits.dtype and (got[0, 0, 2] == [6, 6, 9, 9]).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_residual_network_of_halves(kind: str, stub: Stub) -> None:  # noqa: F811
    """Batch norms are in the weights, and kernels write and read half floats only."""
    onnx = pytest.importorskip("onnx")
    networks = gpu_script("networks")
    h, r = onnx.helper, np.random.default_rng(2)
    nodes: list[Any] = []
    weights: list[Any] = []

    def node(what: str, *inputs: Any, out: str = "", **attrs: Any) -> str:
        names = []
        for x in inputs:
            if not isinstance(x, str):
                name = f"c{len(weights)}"
                held = np.asarray(x, np.float32)
                weights.append(onnx.numpy_helper.from_array(held, name))
                x = name
            names.append(x)
        out = out or f"v{len(nodes)}"
        nodes.append(h.make_node(what, names, [out], **attrs))
        return out

    def layer(x: str, channels: int) -> str:
        y = node("Conv", x, r.standard_normal((16, channels, 3, 3)) / 9, pads=[1, 1, 1, 1])
        return node("BatchNormalization", y, *(r.random((4, 16)) + 0.5))

    x = node("Relu", layer("x", 8))
    x = node("Relu", node("Add", layer(x, 16), x))
    x = node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    node("Softmax", node("Flatten", node("GlobalAveragePool", x)), out="y")
    ends = [h.make_tensor_value_info(n, 1, d) for n, d in (("x", (1, 8, 6, 6)), ("y", (1, 16)))]
    single = h.make_model(h.make_graph(nodes, "g", ends[:1], ends[1:], weights),
                          opset_imports=[h.make_opsetid("", 17)], ir_version=9)  # fmt: skip
    given = r.standard_normal((1, 8, 6, 6)).astype(np.float32)
    want = tw.compile(single)(given)
    exe = stub.compile(networks.in_half(single, networks.HALVES[kind]), target="cuda")
    assert len(exe.kernels) == 6  # channels last, two convolutions, two pools, softmax
    inner = [b for n, b in exe.graph.blobs.items() if any(
        n in op.outputs and any(u.group != op.group for u in exe.graph.consumers[n])
        for op in exe.graph.ops)]  # fmt: skip
    assert inner and {str(b.type.dtype) for b in inner} == {kind}
    y = np.asarray(exe(bits_of(given) if kind == "bf16" else given.astype(np.float16)))
    got = values_of(y) if kind == "bf16" else y
    assert np.abs(got - want).max() <= (0.05 if kind == "bf16" else 0.01) * np.abs(want).max()


def test_a_network_as_a_torch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    h, r = onnx.helper, np.random.default_rng(2)
    held = {"w": r.standard_normal((4, 3, 3, 3)), "s": r.random(4), "b": r.random(4),
            "m": r.random(4), "v": r.random(4) + 0.5, "f": r.standard_normal((5, 36))}  # fmt: skip
    nodes = [
        h.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        h.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]),
        h.make_node("Relu", ["n"], ["p"]),
        h.make_node("MaxPool", ["p"], ["q"], kernel_shape=[3, 3], strides=[2, 2],
                    pads=[0, 0, 1, 1]),
        h.make_node("Sum", ["q", "q"], ["t"]),
        h.make_node("Reshape", ["t", "shape"], ["u"]),
        h.make_node("Gemm", ["u", "f", "c"], ["y"], transB=1),
    ]  # fmt: skip
    weights = [onnx.numpy_helper.from_array(v.astype(np.float32), n) for n, v in held.items()]
    weights += [onnx.numpy_helper.from_array(np.array([1, 36]), "shape"),
                onnx.numpy_helper.from_array(np.ones(5, np.float32), "c")]  # fmt: skip
    ends = [h.make_tensor_value_info(n, 1, d) for n, d in (("x", (1, 3, 6, 6)), ("y", (1, 5)))]
    model = h.make_model(h.make_graph(nodes, "g", ends[:1], ends[1:], weights),
                         opset_imports=[h.make_opsetid("", 17)], ir_version=9)  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    x = r.standard_normal((1, 3, 6, 6)).astype(np.float32)
    (want,) = ort.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})
    got = gpu_script("onnx_torch").module(tmp_path / "m.onnx")(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, want, 1e-4, 1e-4)


# --------------------------------------------------------------------------- what is lost

CHILD = """
import json, sys, time
what, *more = sys.argv[1:]
first = int(more[1]) if more else 0
def say(**row): print(json.dumps(row), flush=True)
for k in range(first, 3):
    say(at=f"case {k}", number=k)
    if what == "hangs" and k == 1: time.sleep(60)
    if what == "dies" and k == 1: sys.exit("device lost")
    say(name=f"{what} {k}", ok=True)
print("not a row")
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Sequence[str]]:
    file = tmp_path / "child.py"
    file.write_text(CHILD)
    yield sys.executable, str(file)


def ran(
    program: Sequence[str], tmp_path: Path, what: str, seconds: float, silence: float = 60
) -> tuple[Any, list[str]]:
    """By a clock that leaps at every look while a case hangs, and that nobody has to wait for."""
    check = gpu_script("check")
    leaps = [0.0, 0.0]  # so far, and with the next look

    def monotonic() -> float:
        leaps[0] += leaps[1]
        return time.monotonic() + leaps[0]

    class Log(check.Log):  # type: ignore[name-defined,misc]
        def take(self, part: Any, row: Row) -> None:
            super().take(part, row)
            leaps[1] = 1000.0 if what == "hangs" and row.get("at") == "case 1" else 0.0

        def lost(self, *why: Any) -> None:
            super().lost(*why)
            leaps[1] = 0.0

    log = Log(tmp_path, {"seed": 1})
    part = check.Part(what, (what,), seconds, "tests", silence)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "time", SimpleNamespace(**(vars(time) | {"monotonic": monotonic})))
        check.everything(check.Work(families=[part]), program, time.monotonic() + 1e6, log, 2)
    rows = json.loads((tmp_path / "gpu_tests.json").read_text())
    return log, [r["name"] for r in rows if r.get("ok")]


def test_a_part_that_dies_goes_on_behind_its_case(program: Any, tmp_path: Path) -> None:
    log, right = ran(program, tmp_path, "dies", 100)
    assert right == ["dies 0", "dies 2"]
    assert log.failed == ["case 1: exit status 1: device lost"]


def test_a_part_that_hangs_is_stopped(program: Any, tmp_path: Path) -> None:
    log, right = ran(program, tmp_path, "hangs", 100)
    assert right == ["hangs 0"] and log.failed == ["case 1: stopped after 100 s"]


def test_a_case_that_hangs_costs_no_others(program: Any, tmp_path: Path) -> None:
    log, right = ran(program, tmp_path, "hangs", 1e5, 60)
    assert right == ["hangs 0", "hangs 2"] and log.failed == ["case 1: stopped after 60 s at it"]


def test_the_end_says_it_shortly(tmp_path: Path) -> None:
    """What is wrong first is there however much is."""
    check = gpu_script("check")
    log, part = check.Log(tmp_path, {}), check.Part("x", (), 9, "tests")
    log.tell("ladder: none of 90")
    log.take(part, {"name": "gpu_mma: a case", "error": "wrong"})
    for k in reversed(range(89)):
        log.take(part, {"name": f"ladder {k:02d}: rung", "error": "wrong " * 100})
    said = log.summary()
    assert said.startswith("ladder: none of 90\n90 failed\n  ladder 00: rung: wrong")
    assert said.endswith("  and 66 more") and len(said) < 6000


def test_stages_share_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where only some are wanted, all of it is theirs."""
    check, given = gpu_script("check"), {}

    def noted(part: Any, program: Any, until: float, log: Any) -> None:
        given[part.name] = until - 1000.0

    monkeypatch.setattr(check, "run_part", noted)
    clock = SimpleNamespace(**(vars(time) | {"monotonic": lambda: 1000.0}))
    monkeypatch.setattr(check, "time", clock)

    def shares(**stages: Any) -> dict[str, int]:
        work = check.Work(**{n: [check.Part(n, (n,), 9, n)] for n in stages})
        check.everything(work, (), 1100.0, check.Log(tmp_path, {}), 1)
        return {n: round(given[n]) for n in stages}

    assert shares(ladder=1, calibration=1) == {"ladder": 67, "calibration": 33}
    assert shares(families=1) == {"families": 100}
    assert shares(ladder=1, calibration=1, families=1, beside=1) == {
        "ladder": 20, "calibration": 10, "families": 35, "beside": 100}  # fmt: skip


def test_only_models_wait_for_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And each for its own: those of others are made later."""
    check, ran, seen = gpu_script("check"), [], threading.Event()
    what = [("kernels", "products"), ("model", "first"), ("files", "first"), ("files", "second")]
    products, model, first, second = (check.Part(" ".join(x), x, 9, "x") for x in what)

    def noted(part: Any, *rest: Any) -> None:
        seen.wait(60 if part in (first, second) else 0)
        ran.append(part)
        if part is products or part is model:
            seen.set()
        if part is first:
            seen.clear()

    monkeypatch.setattr(check, "run_part", noted)
    work = check.Work(beside=[products, model], files=[first, second])
    check.everything(work, (), time.monotonic() + 100, check.Log(tmp_path, {}), 1)
    assert ran == [products, first, model, second]


def test_what_there_is_no_time_for_is_said(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = gpu_script("check")
    part = check.Part("x", ("late",), 9, "tests")
    work = check.Work(beside=[part])
    check.everything(work, program, time.monotonic(), check.Log(tmp_path, {}), 1)
    assert "x: no time left" in capsys.readouterr().out


def test_parts_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    """Every part is one that `part.py` takes."""
    check, part = gpu_script("check"), gpu_script("part")
    networks, beside_ = gpu_script("networks"), gpu_script("beside")
    for p in check.parts():
        what, *more = p.args
        assert hasattr(part, "rows")
        if what == "kernels":
            assert more[0] in beside_.SETS
        if what == "model":
            assert more[0] in networks.NAMES and more[4] in networks.COMPARED


# --------------------------------------------------------------------------- before the day


@pytest.fixture
def parts_of(tmp_path: Path) -> Any:
    """`prepare` of parts by name, over what they say; and the parts that were run."""
    preparing = gpu_script("preparing")
    wanted = preparing.Prepared("sm_90", 3, "numba=1", "source")

    def prepared(rows: Mapping[str, Any], seconds: float = 100, wanted: Any = wanted) -> Any:
        ran: list[str] = []

        def run(name: str, limit: float) -> Iterator[Row]:
            ran.append(name)
            assert limit <= seconds
            for row in rows[name]:
                if isinstance(row, Exception):
                    raise row
                yield row

        until = time.monotonic() + seconds
        found = preparing.prepare(list(rows), wanted, tmp_path, run, until, 2)
        return (*found, sorted(ran))

    prepared.script = preparing  # type: ignore[attr-defined]
    return prepared


def test_a_preparation_goes_on(parts_of: Any, tmp_path: Path) -> None:
    """What is done is not done again; what failed or was cut off is, and the file says which."""
    lost = parts_of.script.Lost("killed")
    rows = {"a": [{"at": "x"}], "b": [{"at": "x"}, lost], "c": [{"name": "y", "error": "wrong"}]}
    failed, left, ran = parts_of(rows)
    assert sorted(failed) == ["b at x: killed", "y: wrong"] and not left and ran == ["a", "b", "c"]
    failed, left, ran = parts_of({"a": [], "b": [], "c": []})
    assert not failed and not left and ran == ["b", "c"]
    found = parts_of.script.read(tmp_path, "sm_90")
    assert set(found.parts) == {"a", "b", "c"} and not found.begun
    assert parts_of.script.read(tmp_path, "sm_80") is None


def test_a_preparation_without_time_leaves_parts(parts_of: Any) -> None:
    assert parts_of({"a": []}, 1.0) == ([], ["a"], [])


def test_what_was_prepared_of_other_source_is_done_again(parts_of: Any) -> None:
    other = parts_of.script.Prepared("sm_90", 3, "numba=1", "other source")
    assert parts_of({"a": []}) == parts_of({"a": []}, wanted=other) == ([], [], ["a"])
    assert parts_of({"a": []}, wanted=other) == ([], [], [])


def test_prepared_code_is_what_a_device_asks_for(
    families: Any, stub: Stub, tmp_path: Path, monkeypatch: Any  # noqa: F811
) -> None:  # fmt: skip
    """The store that was filled without a device answers all that runs there, though nothing here
    could make it: neither Numba nor an assembler."""
    ladder, calibration, beside = (gpu_script(n) for n in ("ladder", "calibration", "beside"))
    few = calibration.all_of(calibration.chip_of(families.gpu_device((9, 0))))[:1]
    monkeypatch.setattr(calibration, "all_of", lambda chip, share=1.0: few)
    monkeypatch.setattr(ladder, "RUNGS", ladder.RUNGS[:2])
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    moved = beside.MOVING[-1].graph()
    for rows in (families.prepare("scan", 3, "sm_90"), ladder.prepare("sm_90"),
                 calibration.prepare("sm_90")):  # fmt: skip
        assert not [r for r in rows if "error" in r]
    tw.compile(moved, target="cuda:sm_90")

    monkeypatch.setenv(gpu_code.VARIABLE, gpu_script("preparing").now("sm_90", 3).made_by)
    monkeypatch.setattr(gpu_code, "_versions", lambda: dict.fromkeys(gpu_code._PACKAGES, "none"))
    monkeypatch.setattr(gpu_code, "_made", lambda *_: pytest.fail("the store has no such code"))
    asked: list[str] = []

    class Asked(gpu_bench.GpuBench):
        """Everything of a bench but the kernels' runs."""

        def prepare(self) -> None:
            pass

        def measure(self, wanted: Any, rounds: Any, deadline: float) -> Any:
            for place, c in wanted:
                self.build(place, c)
                asked.append(c.template)
            return iter(())

    monkeypatch.setattr(families, "GpuBench", Asked)
    assert {r["error"] for r in families.check("scan", 3) if "error" in r} == {"no outcome"}
    assert asked
    loading = gpu_script("loading")
    noted = loading.load
    monkeypatch.setattr(loading, "load", lambda kernels, *more: (
        [stub.knows_kernel(k) for k in kernels], noted(kernels, *more))[1])  # fmt: skip
    assert [r["ok"] for k in (1, 2) for r in ladder.climb(k) if "name" in r] == [True, True]
    device = ladder.device(0)
    with device:
        assert loading.loaded(device, few[0].kernel)[0]
    stub.compile(moved)
