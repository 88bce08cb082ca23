"""Each command on small models: what it prints, and what it leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.autotune.outcome import Measurement
from tilewright.compiler.api.build import device_of
from tilewright.compiler.api.compile import analyse
from tilewright.compiler.cli import main
from tilewright.compiler.cli.models import parse_shapes
from tilewright.compiler.errors import OptionError
from tilewright.compiler.records import open_records
from tilewright.compiler.tuning.tasks import tasks_of

from .models import write_open, write_static

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_static(tmp_path / "net.onnx"))


@pytest.fixture
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tilewright(*arguments: str) -> None:
    assert main.main(arguments) == 0


def answer(capsys: Capture, *arguments: str) -> Any:
    """What a command says with --json."""
    tilewright(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


# ----------------------------------------------------------------------------- run


def test_run_with_random_inputs_is_repeatable(model: str, tmp_path: Path, capsys: Capture) -> None:
    files = [tmp_path / f"{k}.npz" for k in range(3)]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        tilewright("run", model, "--seed", seed, "-o", str(file))
    out = capsys.readouterr().out
    assert "random inputs (seed 1): x: float32[4, 16]" in out
    assert "y out" in out and "\\x1b[31m" in out and "\x1b" not in out
    a, b, c = (np.load(f) for f in files)
    assert a.files == ["y out", "z\x1b[31m"]
    np.testing.assert_array_equal(a["y out"], b["y out"])
    assert not np.array_equal(a["y out"], c["y out"])


def test_run_with_given_inputs(model: str, tmp_path: Path, capsys: Capture) -> None:
    x = np.random.default_rng(3).standard_normal((4, 16)).astype(np.float32)
    want = tw.compile(model)(x)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "in.npz", x=x)
    for given in (f"x={tmp_path}/x.npy", f"{tmp_path}/x.npy", f"{tmp_path}/in.npz",
                  f"x={tmp_path}/in.npz"):  # fmt: skip
        facts = answer(capsys, "run", model, "--input", given, "-o", str(tmp_path / "o.npz"))
        assert facts["inputs"][0]["random"] is False
        assert [o["name"] for o in facts["outputs"]] == ["y out", "z\x1b[31m"]
        assert facts["outputs"][0]["max"] == pytest.approx(float(want[0].max()))
        np.testing.assert_array_equal(np.load(tmp_path / "o.npz")["y out"], want[0])


def test_run_computes_the_outputs_asked_for(model: str, tmp_path: Path, capsys: Capture) -> None:
    facts = answer(capsys, "run", model, "--outputs", "m", "-o", str(tmp_path / "m.npy"))
    assert [(o["name"], o["shape"]) for o in facts["outputs"]] == [("m", [4, 40])]
    assert np.load(tmp_path / "m.npy").shape == (4, 40)


def test_run_reports_what_is_wrong_with_inputs(model: str, tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "small.npy", np.zeros((2, 2), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "other.npz", q=np.zeros(3))
    for given, why in (
        (f"x={tmp_path}/small.npy", "must have shape [4, 16], got [2, 2]"),
        (f"x={tmp_path}/objects.npy", "no .npy or .npz file of plain arrays"),
        (f"x={tmp_path}/text.npy", "no .npy or .npz file of plain arrays"),
        (f"x={tmp_path}/none.npy", "No such file"),
        (f"q={tmp_path}/small.npy", "there is no input 'q'; the inputs are x"),
        (f"{tmp_path}/other.npz", "there is no input 'q'"),
        (f"x={tmp_path}/other.npz", "has no array 'x'; it has q"),
    ):
        assert main.main(["run", model, "--input", given]) == 2
        said = capsys.readouterr().err
        assert why in said and "pickle" not in said
    for name in ("out.txt", "out.npy"):
        assert main.main(["run", model, "-o", str(tmp_path / name)]) == 2
        assert "--out" in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_an_output_may_have_any_name(tmp_path: Path) -> None:
    g = tw.Graph()
    x = g.input("x", (3,))
    g.output(x + 1.0, "file")  # a keyword of numpy.savez
    g.output(x - 1.0, "../up")
    tw.compile(g).save(tmp_path / "p.tw")
    tilewright("run", str(tmp_path / "p.tw"), "-o", str(tmp_path / "out.npz"))
    assert sorted(np.load(tmp_path / "out.npz").files) == ["../up", "file"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npz", "p.tw"]


def test_open_shapes_come_from_the_inputs_or_the_command_line(
    tmp_path: Path, capsys: Capture
) -> None:
    model = str(write_open(tmp_path / "open.onnx"))
    np.savez(tmp_path / "in.npz", x=np.ones((5, 3), "f4"), k=np.ones((5, 1), "f4"))
    facts = answer(capsys, "run", model, "--input", str(tmp_path / "in.npz"))
    assert facts["outputs"][0]["shape"] == [5, 3]
    for given in (["--shapes", "x=2,3", "--shapes", "k=2,1"], ["--shapes", "N=2"]):
        facts = answer(capsys, "run", model, *given)
        assert facts["outputs"][0]["shape"] == [2, 3]
    for command in (["run"], ["bench"], ["inspect"], ["compile", "-o", str(tmp_path / "p")]):
        assert main.main([*command, model]) == 2
        assert "--shapes x=1,3 --shapes k=1,1" in capsys.readouterr().err


def test_shapes_are_sizes_of_an_input_or_of_a_dimension() -> None:
    given = ["x=1,3,8", "vector=5,", "N=5", "scalar=", "a=b=2,2"]
    assert parse_shapes(given) == {
        "x": [1, 3, 8], "vector": [5], "N": 5, "scalar": [], "a=b": [2, 2]
    }  # fmt: skip
    assert parse_shapes([]) is None
    for wrong in ("x", "=1", "x=1,,2", "x=-1", "x=1.5", "x=one"):
        with pytest.raises(OptionError, match="expected name=sizes"):
            parse_shapes([wrong])


# ----------------------------------------------------------------------------- compile


def test_a_compiled_program_runs_and_tells_the_same(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    program = str(tmp_path / "net.tw")
    facts = answer(capsys, "compile", model, "-o", program)
    assert facts["bytes"] == Path(program).stat().st_size
    tilewright("run", model, "--seed", "4", "-o", str(tmp_path / "a.npz"))
    tilewright("run", program, "--seed", "4", "-o", str(tmp_path / "b.npz"))
    a, b = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    assert all(a[n].tobytes() == b[n].tobytes() for n in a.files)
    capsys.readouterr()
    assert main.main(["run", program, "--shapes", "x=4,16"]) == 2
    assert "its shapes and outputs are fixed" in capsys.readouterr().err
    Path(program).write_bytes(Path(program).read_bytes()[:-9])
    assert main.main(["run", program]) == 2
    assert "truncated" in capsys.readouterr().err


# ----------------------------------------------------------------------------- inspect


def test_inspect_prints_every_level_and_every_pass(model: str, capsys: Capture) -> None:
    stages = answer(capsys, "inspect", model, "--stages")
    assert stages[0]["name"] == "import"
    assert {"name", "stage", "milliseconds", "changed", "ops", "changes"} == stages[0].keys()
    expected = {"graph": "graph small(", "fused": "group 0", "memory": "memory plan:",
                "kernels": "parallel", "source": "parallel", "llvm": "define", "asm": ".text",
                "decompose": "graph small("}  # fmt: skip
    for level, text in expected.items():
        tilewright("inspect", model, "--stage", level)
        assert text in capsys.readouterr().out
    assert "group 0" in answer(capsys, "inspect", model, "--stage", "fuse")["text"]
    tilewright("inspect", model, "--stages")
    said = capsys.readouterr().out
    assert "14_fuse" in said and "4 ops in 2 groups" in said


def test_inspect_shows_programs_for_gpus(model: str, capsys: Capture) -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    facts = answer(capsys, "inspect", model, "--target", "cuda:sm_90")
    assert {k["template"] for k in facts["kernels"]} == {"gpu_nest"}
    for level, text in {"source": "cuda.blockIdx.x", "ptx": ".target sm_90"}.items():
        tilewright("inspect", model, "--target", "cuda:sm_90", "--stage", level)
        assert text in capsys.readouterr().out
    assert main.main(["bench", model, "--target", "cuda:sm_90"]) != 0
    assert "the program for cuda:sm_90 does not run: " in capsys.readouterr().err


def test_inspect_sums_up(model: str, capsys: Capture) -> None:
    facts = answer(capsys, "inspect", model)
    assert facts["ops"] == 4
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": [4, 16]}]
    assert {o for k in facts["kernels"] for o in k["ops"]} == {
        "project", "shift", "activate", "double"
    }  # fmt: skip
    tilewright("inspect", model)
    out = capsys.readouterr().out
    assert f"4 ops -> {len(facts['kernels'])} kernels" in out
    assert "project + shift + activate" in out


def test_inspect_tells_what_memory_is_for(model: str, tmp_path: Path, capsys: Capture) -> None:
    drawing = tmp_path / "out.svg"
    facts = answer(capsys, "inspect", model, "--stage", "memory", "--svg", str(drawing))
    assert drawing.read_text().startswith("<svg ")
    assert facts["memory"]["gap_bytes"] == 0
    assert {x["name"] for x in facts["memory"]["levers"]} == {
        "sharing", "in place", "reordering", "fusion", "views"
    }  # fmt: skip
    assert {x["operator"] for x in facts["memory"]["operators"]} >= {"matmul", "relu"}
    tilewright("inspect", model, "--stage", "memory")
    out = capsys.readouterr().out
    assert out == facts["text"]
    for part in ("memory plan:", "saved:", "operator", "total", "blocks:"):
        assert part in out


def test_inspect_shows_what_memory_would_be(tmp_path: Path, capsys: Capture) -> None:
    """A residual addition in place, and two branches that are best computed one after the other."""
    rng = np.random.default_rng(0)
    g = tw.Graph()
    x = g.input("x", (64, 64))
    a, b = (g.softmax(g.softmax(y, axis=0), axis=1) for y in (x, x + rng.random(64, np.float32)))
    sums = [g.reduce_sum(g.softmax(y, axis=0), axes=(0,)) for y in (a, b)]
    g.output(g.softmax(sums[0] * sums[1], axis=1), "y")
    program = str(tmp_path / "p.tw")
    tw.compile(g).save(program)

    def memory(*flags: str) -> Any:
        return answer(capsys, "inspect", program, "--stage", "memory", *flags)["memory"]

    found, apart, given = memory(), memory("--no-inplace"), memory("--no-reorder")
    saved = {x["name"]: x["saved"] for x in found["levers"]}
    assert given["arena_bytes"] == found["arena_bytes"] + saved["reordering"]
    assert saved["reordering"] > 0
    assert apart["arena_bytes"] == found["arena_bytes"] + saved["in place"]
    assert {len(b["members"]) for b in apart["blocks"]} <= {0, 1}
    assert 2 in {len(b["members"]) for b in found["blocks"]}


def test_inspect_draws_the_memory_plan_alone(
    model: str, tmp_path: Path, capsys: Capture
) -> None:  # fmt: skip
    drawing = tmp_path / "out.svg"
    for options in ((), ("--stage", "kernels"), ("--stages",)):
        assert main.main(["inspect", model, "--svg", str(drawing), *options]) == 2
        assert "--stage memory" in capsys.readouterr().err
    nowhere = tmp_path / "no" / "out.svg"
    assert main.main(["inspect", model, "--stage", "memory", "--svg", str(nowhere)]) == 2
    printed = capsys.readouterr()
    assert f"{nowhere}: No such file or directory" in printed.err and not printed.out
    assert not drawing.exists()


# ----------------------------------------------------------------------------- bench


def test_bench_measures_and_compares(model: str, private_cache: Path, capsys: Capture) -> None:
    facts = answer(capsys, "bench", model, "--rounds", "3", "--threads", "1",
                   "--peers", "onnxruntime,torch")  # fmt: skip
    assert facts["threads"] == 1 and facts["ops"] == 4
    assert facts["latency"]["rounds"] == 3
    assert 0 < facts["latency"]["min_seconds"] <= facts["latency"]["median_seconds"]
    assert facts["built"] > 0
    assert 0 < facts["warm_compile_seconds"] < facts["compile_seconds"]
    assert facts["unavailable"].keys() == {"torch"}  # missing, or given nothing that it reads
    peer = facts["peers"]["onnxruntime"]
    assert peer["difference"] < 1e-5
    assert peer["speedup"] > 0


def test_bench_says_it_in_two_lines(model: str, capsys: Capture) -> None:
    tilewright("bench", model, "--rounds", "3", "--peers", "onnxruntime")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("net  4 ops -> ") and " arena " in first
    assert "tilewright " in second and "onnxruntime " in second
    assert "3 rounds alternating" in second
    tilewright("bench", model, "--seconds", "0.01")
    assert "(min " in capsys.readouterr().out


def test_bench_shows_every_kernel(model: str, tmp_path: Path, capsys: Capture) -> None:
    drawing = tmp_path / "out.svg"
    options = ("--rounds", "1", "--threads", "1", "--roofline", str(drawing))
    tilewright("bench", model, *options, "--profile")
    printed = capsys.readouterr().out
    assert "of peak" in printed and "project + shift + activate" in printed
    assert drawing.read_text().startswith("<svg ")
    facts = answer(capsys, "bench", model, *options)
    assert facts["profile"]["limits"]["threads"] == 1
    assert len(facts["profile"]["rows"]) == facts["kernels"]


def test_bench_takes_a_model_of_a_peer_s_own(
    model: str, tmp_path: Path, capsys: Capture
) -> None:  # fmt: skip
    twin = str(write_static(tmp_path / "twin.onnx"))
    facts = answer(capsys, "bench", model, "--rounds", "1", "--peers", "onnxruntime",
                   "--peer-model", f"onnxruntime={twin}")  # fmt: skip
    assert facts["peers"]["onnxruntime"]["differing"] == 0
    for given in ("onnxruntime", f"onnxruntime={tmp_path}/no.onnx", f"nobody={model}"):
        assert main.main(["bench", model, "--peer-model", given]) == 2
        assert "--peer-model" in capsys.readouterr().err


# ----------------------------------------------------------------------------- cache


def test_cache_is_listed_explained_and_cleared(
    model: str, private_cache: Path, capsys: Capture
) -> None:
    assert answer(capsys, "cache", "ls")["entries"] == []
    before = answer(capsys, "cache", "explain", model)
    assert before["hits"] == 0 < before["misses"]
    assert not list(private_cache.glob("entries/*"))  # explaining builds nothing

    tilewright("run", model)
    capsys.readouterr()
    after = answer(capsys, "cache", "explain", model)
    assert (after["hits"], after["misses"]) == (before["misses"], 0)
    listed = answer(capsys, "cache", "ls")
    assert after["kernels"][0]["symbol"] in {e["symbol"] for e in listed["entries"]}
    tilewright("cache", "ls")
    assert f"{len(listed['entries'])} entries" in capsys.readouterr().out

    cleared = answer(capsys, "cache", "clear")
    assert cleared["removed"] == len(listed["entries"])
    assert answer(capsys, "cache", "ls")["entries"] == []


def test_cache_explain_names_the_field_that_differs(
    model: str, private_cache: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = str(Path(model).with_name("p.tw"))
    tilewright("compile", model, "-o", program)
    capsys.readouterr()
    monkeypatch.setenv("TILEWRIGHT_CPU", "x86-64-sse")
    differences = {
        d for k in answer(capsys, "cache", "explain", model)["kernels"] for d in k["differences"]
    }
    assert {"cpu", "features", "vector_bits"} <= differences
    tilewright("cache", "explain", model)
    assert "cpu: wanted 'nehalem', stored" in capsys.readouterr().out


def test_cache_explain_says_where_configs_come_from(
    model: str, private_cache: Path, capsys: Capture
) -> None:
    arguments = ("cache", "explain", model, "--threads", "1")
    config, only = (k["config"] for k in answer(capsys, *arguments)["kernels"])
    assert only is None and config["verdict"] == "none" and config["nearest"] is None
    assert not private_cache.exists()

    compiled = analyse(model, threads=1)
    (use,) = tasks_of(compiled, device_of(compiled.target, compiled.options))
    with open_records(writing=True, strict=True) as records:
        for k, seconds in enumerate((3e-3, 1e-3)):
            records.add(use.task.key, use.task.space[k],
                        Measurement(seconds, 0.9 * seconds, 1.1 * seconds, 9), is_default=k == 0,
                        features=use.task.features)  # fmt: skip
    config, only = (k["config"] for k in answer(capsys, *arguments)["kernels"])
    assert config["verdict"] == "record" and config["problem"] == use.task.key.digest
    assert config["record"]["seconds"] == 1e-3
    assert config["record"]["config"] == dict(use.task.space[1].config)
    tilewright(*arguments)
    out = capsys.readouterr().out
    assert "  config of a record\n" in out and "1000.0 us on" in out
    assert "code: miss" in out and "  the only config there is\n" in out

    config, _ = (k["config"] for k in answer(capsys, *arguments[:3], "--threads", "2")["kernels"])
    assert config["verdict"] == "none" and config["nearest"]["seconds"] == 1e-3
    assert config["differences"] == ["threads: 2 here, 1 there"]


def test_a_cache_that_is_switched_off(
    model: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    for action in ("ls", "clear"):
        tilewright("cache", action)
        assert "switched off" in capsys.readouterr().out
    assert answer(capsys, "cache", "ls")["directory"] is None
    assert main.main(["cache", "explain", model]) == 2
    assert "every kernel is a miss" in capsys.readouterr().err


# ----------------------------------------------------------------------------- report and profile


def test_report_writes_one_page(model: str, tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "report.html"
    facts = answer(capsys, "report", model, "-o", str(page), "--rounds", "2", "--threads", "1")
    text = page.read_text()
    assert facts["written"] == str(page) and facts["bytes"] == len(text.encode())
    assert "<title>net - Tilewright</title>" in text and "activate" in text
    assert main.main(["report", model, "-o", str(page), "--rounds", "0"]) == 2
    assert "--rounds 0" in capsys.readouterr().err
    assert main.main(["report", model, "-o", str(tmp_path / "none" / "x.html")]) == 2


def test_report_of_a_program_for_a_gpu(model: str, tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "report.html"
    tilewright("report", model, "-o", str(page), "--target", "cuda:sm_90")
    assert '"profile":null' in page.read_text()


def test_profile_rolls_up(model: str, capsys: Capture) -> None:
    quick = ("profile", model, "--rounds", "2", "--threads", "1")
    for by, words in (
        ("kernel", ("of peak", "project + shift + activate", "the machine's limits")),
        ("node", ("project + shift + activate", "double")),
        ("operator", ("matmul + add + relu", "launches")),
        ("scope", ("/", "100.0%")),
    ):
        tilewright(*quick, "--by", by)
        out = capsys.readouterr().out
        assert all(w in out for w in words), out


def test_profile_writes_a_trace_and_a_roofline(
    model: str, tmp_path: Path, capsys: Capture
) -> None:  # fmt: skip
    tilewright("profile", model, "--rounds", "2", "--trace", str(tmp_path / "t.json"),
               "--roofline", str(tmp_path / "r.svg"))  # fmt: skip
    trace = json.loads((tmp_path / "t.json").read_text())
    assert {e["ph"] for e in trace["traceEvents"]} == {"X", "M", "C"}
    assert (tmp_path / "r.svg").read_text().startswith("<svg")


def test_profile_compares_with_a_file(model: str, tmp_path: Path, capsys: Capture) -> None:
    old = tmp_path / "old.json"
    quick = ("profile", model, "--rounds", "6", "--threads", "1")
    tilewright(*quick, "--json", str(old))
    assert "of peak" in capsys.readouterr().out
    data = json.loads(old.read_text())
    assert data["blocks"] == 6 and len(data["launches"][0]["nanoseconds"]) == 6
    for launch in data["launches"]:  # as if it had taken a thousand times as long
        launch["nanoseconds"] = [1000 * ns for ns in launch["nanoseconds"]]
    old.write_text(json.dumps(data))
    tilewright(*quick, "--against", str(old))
    out = capsys.readouterr().out
    assert "0 of 2 parts: no difference can be shown" in out and out.count("faster") == 3
    facts = answer(capsys, *quick, "--against", str(old))
    assert facts["comparison"]["whole"]["verdict"] == "faster"
    assert facts["profile"]["rounds"] == 6 and facts["profile"]["rows"][0]["low"] > 0


def test_profile_compares_with_a_program_in_turns(
    model: str, tmp_path: Path, capsys: Capture
) -> None:  # fmt: skip
    saved = str(tmp_path / "net.tw")
    tilewright("compile", model, "-o", saved, "--threads", "1")
    capsys.readouterr()
    facts = answer(capsys, "profile", model, "--rounds", "6", "--threads", "1", "--shapes",
                   "x=4,16", "--against", saved)  # fmt: skip
    assert facts["comparison"]["in_turns"] is True
    assert len(facts["comparison"]["parts"]) == 2


def test_profile_says_what_it_cannot_compare_with(
    model: str, tmp_path: Path, capsys: Capture
) -> None:  # fmt: skip
    other = tmp_path / "other.json"
    other.write_bytes(b"\xff\xfe")
    for given, words in (([str(other)], "is no profile"), ([str(tmp_path / "gone.json")], "gone"),
                         ([str(tmp_path), "--rounds", "0"], "--rounds 0")):  # fmt: skip
        assert main.main(["profile", model, "--against", *given]) == 2
        assert words in capsys.readouterr().err


# ----------------------------------------------------------------------------- what makes no sense


def refused(capsys: Capture, *arguments: str) -> str:
    assert main.main(arguments) == 2
    return capsys.readouterr().err


def test_compile_does_not_write_over_its_model(model: str, tmp_path: Path, capsys: Capture) -> None:
    before = Path(model).read_bytes()
    link = tmp_path / "link.onnx"
    link.symlink_to(model)
    for out in (model, str(link)):
        assert "the model itself" in refused(capsys, "compile", model, "-o", out)
    assert Path(model).read_bytes() == before
    tilewright("compile", model, "-o", str(tmp_path / "net.tw"))
    tilewright("compile", str(tmp_path / "net.tw"), "-o", str(tmp_path / "net.tw"))


def test_a_saved_program_is_not_shown_as_something_else(
    model: str, tmp_path: Path, capsys: Capture
) -> None:
    saved = str(tmp_path / "net.tw")
    tilewright("compile", model, "-o", saved, "--numerics", "reproducible")
    capsys.readouterr()
    assert "net.tw' is for CPUs" in refused(capsys, "inspect", saved, "--target", "cuda:sm_90")
    assert "numerics='reproducible'" in refused(capsys, "inspect", saved, "--numerics", "reduced")
    tilewright("inspect", saved, "--numerics", "reproducible")
    tilewright("inspect", saved)
    for command in (("bisect", saved), ("opt", saved, "--pass", "fuse")):
        assert "has been through all passes" in refused(capsys, *command)


def test_what_needs_a_gpu_says_so(model: str, tmp_path: Path, capsys: Capture) -> None:
    error = refused(capsys, "bisect", model, "--target", "cuda:sm_90")
    assert "for cuda:sm_90 does not run" in error and "NVIDIA driver" in error
    assert "--shapes" in refused(capsys, "bisect", str(write_open(tmp_path / "open.onnx")))
