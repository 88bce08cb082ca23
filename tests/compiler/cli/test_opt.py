"""Graph text on the command line: printed, edited, run through passes, compiled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.cli import main
from tilewright.compiler.graph import textfile
from tilewright.compiler.graph.text import parse, to_text

from ...fuzz.graphs import random_feeds, random_graph
from .models import write_static

Capture = pytest.CaptureFixture[str]

GRAPH = """\
graph g(%x: f32[2,3]) -> (%y: f32[2,3]) {
  const @one: f32[1] = [1.0]
  %a = mul(%x, @one) : f32[2,3]  # model: scale
  %b = relu(%a)      : f32[2,3]
  %y = exp(%b)       : f32[2,3]  # model: "odd \\u001b[31m"
}
"""


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "in.txt").write_text(GRAPH)
    return str(tmp_path / "in.txt")


def printed(capsys: Capture, *arguments: str) -> str:
    assert main.main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_pass_runs_alone(text: str, capsys: Capture) -> None:
    out = printed(capsys, "opt", text, "--pass", "canonicalize")
    assert "mul" not in out and "relu" in out
    out = printed(capsys, "opt", text, "--pass", "canonicalize", "--pass", "fuse")
    assert len(parse(out).groups) == 1 and parse(out).ops[0].group == 0
    facts = json.loads(printed(capsys, "opt", text, "--pass", "fuse", "--json"))
    assert facts["changes"] == "3 ops in 1 groups" and facts["passes"][0]["name"] == "fuse"


def test_every_pass_of_every_target_runs_alone(text: str, capsys: Capture) -> None:
    for target in ("cpu", "cuda:sm_90"):
        listed = json.loads(printed(capsys, "opt", text, "--list", "--target", target, "--json"))
        assert len(listed) > 5 and all(p["purpose"] for p in listed)
        for p in listed:
            parse(printed(capsys, "opt", text, "--pass", p["name"], "--target", target))


def test_fuel_counts_here_too(text: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_FUEL", "0")
    assert "mul" in printed(capsys, "opt", text, "--pass", "canonicalize")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--pass", "fuze"], "there is no pass 'fuze'; did you mean 'fuse'?"),
        ([], "opt needs --pass NAME"),
        (["--pass", "fuse", "-o", "out.onnx"], "a file that ends in .txt"),
    ],
)
def test_mistakes_are_explained(text: str, capsys: Capture, arguments: list[str], why: str) -> None:
    assert main.main(["opt", text, *arguments]) == 2
    assert why in capsys.readouterr().err


def test_a_stage_written_to_a_file_compiles(tmp_path: Path, capsys: Capture) -> None:
    model = str(write_static(tmp_path / "net.onnx"))
    x = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    want = tw.compile(model)(x)
    for stage in ("graph", "fold_scales", "fuse", "fused"):
        file = tmp_path / f"{stage}.tw.txt"
        said = printed(capsys, "inspect", model, "--stage", stage, "-o", str(file))
        assert f"{stage}.tw.txt" in said and f"{stage}.tw.npz" in said
        printed(capsys, "compile", str(file), "-o", str(tmp_path / "p.tw"))
        for made in (tw.load(tmp_path / "p.tw"), tw.compile(file)):
            for a, b in zip(made(x), want, strict=True):
                assert a.tobytes() == b.tobytes()
    assert "no stage 'fuse2'; did you mean 'fuse'" in _error(
        capsys, "inspect", model, "--stage", "fuse2"
    )


def test_groups_that_someone_wrote_are_kept(text: str, tmp_path: Path, capsys: Capture) -> None:
    split = GRAPH
    for group, call in enumerate(("mul(%x, @one)", "relu(%a)", "exp(%b)")):
        split = split.replace(call, f"{call} group={group}")
    (tmp_path / "split.txt").write_text(split)
    exe = tw.compile(tmp_path / "split.txt")
    assert len(exe.kernels) == 3 and len(tw.compile(text).kernels) == 1
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(exe(x), np.exp(x), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_every_stage_of_a_random_graph_compiles_from_its_text(seed: int, tmp_path: Path) -> None:
    graph = random_graph(seed, 20)
    exe = tw.compile(graph)
    feeds = random_feeds(graph, 1)
    want = exe.run(feeds)
    for k, stage in enumerate(exe.stages):
        file = tmp_path / f"{k}.txt"
        textfile.write(stage.graph, file)
        assert to_text(textfile.read(file)) == to_text(stage.graph)
        if stage.changed:
            got = tw.compile(file).run(feeds)
            for n, y in want.items():
                np.testing.assert_allclose(got[n], y, rtol=1e-3, atol=1e-3)


def test_missing_and_damaged_arrays_are_explained(tmp_path: Path, capsys: Capture) -> None:
    model = str(write_static(tmp_path / "net.onnx"))
    file = tmp_path / "net.tw.txt"
    printed(capsys, "inspect", model, "--stage", "graph", "-o", str(file))
    beside = tmp_path / "net.tw.npz"
    beside.write_bytes(b"nonsense")
    assert "cannot be read from net.tw.npz" in _error(capsys, "compile", str(file), "-o", "x.tw")
    beside.unlink()
    assert "in the .npz file beside the text" in _error(capsys, "compile", str(file), "-o", "x.tw")


def _error(capsys: Capture, *arguments: str) -> str:
    assert main.main(arguments) == 2
    return capsys.readouterr().err


def test_inspect_follows_a_node(tmp_path: Path, capsys: Capture) -> None:
    model = str(write_static(tmp_path / "net.onnx"))
    assert "activate" in printed(capsys, "inspect", model, "--nodes")
    page = printed(capsys, "inspect", model, "--op", "activate")
    assert "while that is in registers" in page and "output (640 B)" in page
    assert printed(capsys, "inspect", model, "--kernel", "k0").startswith("kernel k0 gemm")
    assert "did you mean 'project'" in _error(capsys, "inspect", model, "--op", "projekt")
    both = printed(capsys, "inspect", model, "--diff", "import", "14_fuse")
    assert "> " in both and "group 0 {" in both
    assert "define" in printed(capsys, "inspect", model, "--op", "double", "--stage", "llvm")
    assert "ask for different things" in _error(
        capsys, "inspect", model, "--op", "double", "--diff", "a", "b"
    )


def test_dumps_have_stable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_DUMP", str(tmp_path))
    (tmp_path / "in.txt").write_text(GRAPH)
    exe = tw.compile(tmp_path / "in.txt")
    tw.compile(tmp_path / "in.txt")
    first, second = sorted(p for p in tmp_path.iterdir() if p.is_dir())
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in second.iterdir())
    assert names[0] == "00_import.txt" and names[-1] == "19_asm.s" and "14_fuse.txt" in names
    assert (first / "14_fuse.txt").read_text() == exe.ir("fuse")
    assert first.name.endswith("_g") and (first / "18_llvm.ll").read_text() == exe.ir("llvm")
