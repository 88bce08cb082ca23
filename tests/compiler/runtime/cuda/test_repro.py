"""Scripts of single kernels for GPUs: they run, they find faults, their source may be changed."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api import gpu_repro
from tilewright.compiler.cli import main
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.errors import LoweringError, NoDeviceError, OptionError
from tilewright.compiler.graph import textfile

from .nets import convnet
from .stub import Stub

NASTY = '"""\n{evil}\'\\"; import os; os.system("x") #\u2028\x00 {0}'


@pytest.fixture(autouse=True)
def told(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub runs the source that a script has."""
    built = gpu_repro.built

    def noted(launch: Any, text: str, target: Any) -> Any:
        for e in kernel_source(launch.kernel).entries:
            stub.kernels[e.name] = launch.kernel, text, e
        return built(launch, text, target)

    monkeypatch.setattr(gpu_repro, "built", noted)


def halves(name: str = "") -> Any:
    """Products of half floats, on tensor cores, and an operator that reduces."""
    g = tw.Graph("net" + name)
    w = np.random.default_rng(2).standard_normal((16, 8)).astype(np.float16)
    x = g.input("x" + name, (16, 16), "f16")
    y = g.relu(g.matmul(x, g.constant(w, "w" + name)), name="act" + name)
    g.output(g.reduce_max(y, axes=(1,), name="most" + name), "y" + name)
    return g.build()


def status(script: Path) -> int:
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    return int(stop.value.code or 0)


@pytest.mark.parametrize(("graph", "target"), [(convnet, "cuda:sm_90"), (halves, "cuda:sm_80")])
def test_every_kernel_runs_alone(
    stub: Stub, graph: Any, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exe = tw.compile(graph(), target=target)
    stub.start("8.0,9.0")
    for k, kernel in enumerate(exe.kernels):
        file = tmp_path / f"k{k}.py"
        file.write_text(exe.repro(f"k{k}"))
        assert kernel.source in file.read_text()
        assert status(file) == 0
        said = capsys.readouterr().out
        assert said.count("right") == 1 and "version" not in said
    assert stub.ran == [p.name for k in exe.kernels for p in k.phases]


def test_a_changed_source_is_what_runs(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exe = tw.compile(convnet(), target="cuda:sm_90")
    text = exe.repro("k1")
    assert "max(" in text
    file = tmp_path / "k.py"
    file.write_text(text.replace("max(", "min("))
    assert status(file) == 1
    said = capsys.readouterr().out
    assert "it was changed" in said and "wrong: output" in said
    file.write_text(text.replace("def tw_", "def other_"))
    with pytest.raises(LoweringError, match="the source has no function tw_gpu_nest"):
        runpy.run_path(str(file), run_name="__main__")


def test_names_of_a_model_are_literals_and_nothing_else(stub: Stub) -> None:
    plain, nasty = (tw.compile(halves(n), target="cuda:sm_80") for n in ("", NASTY))
    for k in range(len(plain.kernels)):
        text = nasty.repro(f"k{k}")
        assert text.isascii() and "evil" not in text.split("KERNEL")[1]
        trees = [ast.parse(t) for t in (text, plain.repro(f"k{k}"))]
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NODES":
                    node.value = ast.List([], ast.Load())
        assert ast.unparse(trees[0]) == ast.unparse(trees[1])


def test_the_command(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    textfile.write(convnet(), tmp_path / "net.txt")
    given = ["inspect", "net.txt", "--target", "cuda:sm_90", "--kernel", "k1", "--repro", "k.py"]
    assert main.main(given) == 0
    assert status(tmp_path / "k.py") == 0


def test_what_cannot_be_done_is_said(stub: Stub, tmp_path: Path) -> None:
    exe = tw.compile(convnet(), target="cuda:sm_90")
    with pytest.raises(OptionError, match="k77"):
        exe.repro("k77")
    (tmp_path / "k.py").write_text(exe.repro("k0"))
    stub.start("8.0")
    with pytest.raises(NoDeviceError, match=r"devices here are Stub 8\.0"):
        runpy.run_path(str(tmp_path / "k.py"), run_name="__main__")
