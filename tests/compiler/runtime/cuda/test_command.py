"""The command line on a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.outcome import Measurement
from tilewright.compiler.api.gpu_devices import place_of
from tilewright.compiler.cli import main
from tilewright.compiler.graph import textfile
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.text import to_text
from tilewright.compiler.kernels.device import gpu_device
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.records import open_records
from tilewright.compiler.tuning.problem import problem_of
from tilewright.compiler.tuning.tasks import task_of

from .nets import A, X, convnet, rows, softmax
from .stub import Stub


def test_a_model_is_run(stub: Stub, tmp_path: Path) -> None:
    stub.compile(rows())  # so that its kernel is known
    model, given, out = tmp_path / "rows.txt", tmp_path / "x.npy", tmp_path / "y.npy"
    model.write_text(to_text(rows()))
    np.save(given, A)
    run = ["run", str(model), "--target", "cuda:0", "--input", f"x={given}", "-o", str(out)]
    assert main.main(run) == 0
    np.testing.assert_allclose(np.load(out), softmax(A), 1e-5, 1e-7)


@pytest.fixture
def model(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose kernels are known, in the folder where commands run."""
    stub.compile(convnet())
    monkeypatch.chdir(tmp_path)
    textfile.write(convnet(), tmp_path / "net.txt")
    return Path("net.txt")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """The JSON document that a command prints."""
    assert main.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_saved_program_is_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = said(capsys, "compile", model, "--target", "cuda:sm_90", "-o", "net.tw")
    assert made["kernels"] == 4 and made["bytes"] == Path("net.tw").stat().st_size
    np.save("x.npy", X)
    run = said(capsys, "run", "net.tw", "--target", "cuda:0", "--input", "x.npy", "-o", "y.npy")
    assert not run["inputs"][0]["random"]
    want = evaluate(convnet(), {"x": X})["prob"]
    np.testing.assert_allclose(np.load("y.npy"), want, 1e-5, 1e-6)
    assert said(capsys, "inspect", "net.tw")["kernels"] == said(
        capsys, "inspect", model, "--target", "cuda")["kernels"]  # fmt: skip
    assert main.main(["run", "net.tw", "--target", "cpu"]) == 2
    assert "'cpu': saved program 'net.tw' is for cuda:sm_90" in capsys.readouterr().err


def test_a_profile(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Events of the stub are 10 us apart."""
    given = ("profile", model, "--target", "cuda", "--rounds", 2)
    found = said(capsys, *given, "--trace", "t.json", "--roofline", "r.svg")
    assert found["device"] == "Stub 9.0 (sm_90, 1 GiB, CUDA 12)" and found["timing"] == 5e-7
    assert [len(x["nanoseconds"]) for x in found["launches"]] == [2] * 4
    assert all(r["low"] <= r["seconds"] <= r["high"] for r in found["profile"]["rows"])
    events = json.loads(Path("t.json").read_text())["traceEvents"]
    spent = [e["dur"] for e in events if e["ph"] == "X" and (e["pid"], e["tid"]) == (1, 1)]
    np.testing.assert_allclose(spent, [r["seconds"] * 1e6 for r in found["profile"]["rows"]])
    assert "<svg" in Path("r.svg").read_text()
    for by in ("kernel", "scope"):
        assert main.main([*map(str, given), "--by", by, "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "4 multiprocessors: peak 1024 GFLOP/s" in out and " scope\n" in out, out


def test_profiles_are_compared(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.compile(rows())
    monkeypatch.chdir(tmp_path)
    textfile.write(rows(), tmp_path / "rows.txt")
    given = ("profile", "rows.txt", "--target", "cuda", "--rounds", 4)
    Path("before.json").write_text(json.dumps(said(capsys, *given)))
    same = said(capsys, *given, "--against", "before.json")["comparison"]
    assert {c["verdict"] for c in same["parts"]} == {"no difference can be shown"}
    stub.library.stub_cost_by_threads(1)
    now = said(capsys, *given, "--against", "before.json")["comparison"]
    assert "no difference can be shown" not in {c["verdict"] for c in now["parts"]}
    in_turns = said(capsys, *given, "--against", "rows.txt")["comparison"]
    assert {c["verdict"] for c in in_turns["parts"]} == {"no difference can be shown"}


def test_a_benchmark(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["bench", str(model), "--target", "cuda", "--rounds", "2", "--warmup", "1"]
    assert main.main([*given, "--profile", "--roofline", "r.svg"]) == 0
    out = capsys.readouterr().out
    assert "device 0 (Stub 9.0, sm_90), copies included, 2 rounds" in out and "GB/s" in out
    assert said(capsys, *given)["latency"]["rounds"] == 2
    assert main.main([*given, "--peers", "onnxruntime"]) == 2
    assert "--peers run on this CPU" in capsys.readouterr().err


def test_a_report(model: Path, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("report", model, "--target", "cuda:sm_90", "--rounds", 2, "-o", "net.html")
    assert said(capsys, *given)["timed"]
    timed = Path("net.html").stat().st_size
    stub.start("8.0")
    assert main.main([*map(str, given)]) == 0
    assert "without times: no GPU here runs them" in capsys.readouterr().out
    assert Path("net.html").stat().st_size < timed


@pytest.mark.parametrize("command", ["run", "bench", "profile"])
def test_what_needs_a_device_says_so(
    model: Path, stub: Stub, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.start("8.0")
    assert main.main([command, str(model), "--target", "cuda:sm_90"]) == 2
    assert "the devices here are Stub 8.0 (sm_80)" in capsys.readouterr().err


def test_the_cache_explains(
    model: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "cache")
    given = ("cache", "explain", model, "--target", "cuda:sm_90")
    assert said(capsys, *given)["hits"] == 0
    stub.compile(convnet(), "cuda:sm_90")
    found = said(capsys, *given)
    assert found["hits"] == len(found["kernels"]) == 4
    assert {k["config"]["verdict"] for k in found["kernels"] if k["config"]} == {"none"}
    assert {e["gpu"] for e in said(capsys, "cache", "ls")["entries"]} == {"sm_90"}
    stub.start("8.0")
    assert main.main([*map(str, given)]) == 0
    assert "default config: records are of devices" in capsys.readouterr().out


def test_it_is_explained_where_a_config_comes_from(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "rows.txt"
    model.write_text(to_text(rows()))

    def explained(target: str) -> dict[str, Any]:
        assert main.main(["cache", "explain", str(model), "--target", target, "--json"]) == 0
        (only,) = json.loads(capsys.readouterr().out)["kernels"]
        return dict(only)

    before = explained("cuda")
    assert before["config"]["verdict"] == "none" and not before["hit"]
    graph, _ = run_pipeline(gpu_pipeline(), rows())
    (group,) = coded_groups(graph)
    problem = problem_of(graph, group.ops, group.outputs, gpu_device((9, 0)), "standard")
    task = task_of(problem, place_of(0))
    with open_records(writing=True) as records:
        for k, seconds in enumerate((2e-6, 1e-6)):
            found = Measurement(seconds, seconds, seconds, 9)
            records.add(task.key, task.space[k], found, is_default=k == 0)
    tw.compile(rows(), target="cuda")
    after = explained("cuda")
    assert after["config"]["verdict"] == "record" and after["hit"]
    assert after["config"]["record"]["config"] == dict(task.space[1].config)
    assert after["config"]["kernel"] != before["config"]["kernel"]
    assert explained("cuda:sm_80")["config"] is None  # records are of devices, and none here is one
