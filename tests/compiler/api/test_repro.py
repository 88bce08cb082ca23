"""Scripts of single kernels: they run, they find faults, and no text of a model is code in them."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.cli import main
from tilewright.compiler.errors import ModelError, OptionError
from tilewright.compiler.kernels import nest
from tilewright.compiler.tuning import alone_script

rng = np.random.default_rng(0)
NASTY = '"""\n{evil}\'\\"; import os; os.system("x") #\u2028\x00 {0}'


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def network(name: str = "") -> tw.Executable:
    """Kernels of several templates."""
    g = tw.Graph(name)
    x = g.input(f"x{name}", (1, 16, 10, 10))
    h = g.relu(g.conv(x, weights(32, 16, 3, 3), weights(32), pads=1, name=f"conv{name}"))
    h = g.conv(h, weights(16, 32, 1, 1), name=f"point{name}")
    h = g.softmax(g.reshape(h, shape=(16, 100)) @ weights(100, 10), axis=-1, name=f"prob{name}")
    g.output(h, f"y{name}")
    return tw.compile(g)


def status(script: Path) -> int:
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    return int(stop.value.code or 0)


def test_every_kernel_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exe = network()
    assert len({k.template for k in exe.kernels}) >= 3
    for k in range(len(exe.kernels)):
        file = tmp_path / f"k{k}.py"
        file.write_text(exe.repro(f"k{k}"))
        assert status(file) == 0
        said = capsys.readouterr().out
        assert said.count("right") == 1 and "another version" not in said


def test_names_of_a_model_are_literals_and_nothing_else(tmp_path: Path) -> None:
    plain, nasty = network(), network(NASTY)
    for k in range(len(plain.kernels)):
        text = nasty.repro(f"k{k}")
        assert text.isascii() and "\x00" not in text
        there, here = (ast.parse(t) for t in (text, plain.repro(f"k{k}")))
        for tree in (there, here):
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NODES":
                    node.value = ast.List([], ast.Load())
        assert ast.unparse(there) == ast.unparse(here)
        file = tmp_path / f"k{k}.py"
        file.write_text(text)
        assert status(file) == 0


def test_a_wrong_kernel_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exe = network()
    k = next(k for k, x in enumerate(exe.kernels) if x.template == "nest" and "prob" in x.ops)
    file = tmp_path / "k.py"
    file.write_text(exe.repro(f"k{k}"))
    instantiate = nest.Nest.instantiate

    def spoiled(self: nest.Nest, graph: object, ops: object, outputs: object, *rest: object):
        from dataclasses import replace

        bad = [replace(op, operator="reduce_min") if op.operator == "reduce_sum" else op
               for op in ops]  # fmt: skip
        return instantiate(self, graph, bad, outputs, *rest)

    monkeypatch.setenv("TILEWRIGHT_CACHE", "off")
    monkeypatch.setattr(nest.Nest, "instantiate", spoiled)
    assert status(file) == 1
    said = capsys.readouterr().out
    assert "wrong: output" in said and "another version of the template" in said


def test_what_a_script_cannot_do_is_said(tmp_path: Path) -> None:
    exe = network()
    with pytest.raises(OptionError, match="there is no kernel 'k9x'"):
        exe.repro("k9x")
    problem = "\n".join(runpy.run_path(_written(tmp_path, exe))["PROBLEM"])
    with pytest.raises(ModelError, match="cannot be read"):
        alone_script.run(problem, {"template": "nest", "version": 0, "config": {}}, "",
                         tmp_path / "none.npz")  # fmt: skip


def _written(folder: Path, exe: tw.Executable) -> str:
    (folder / "k.py").write_text(exe.repro("k0"))
    return str(folder / "k.py")


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network().save(tmp_path / "p.tw")
    out = tmp_path / "k1.py"
    arguments = ["inspect", str(tmp_path / "p.tw"), "--kernel", "k1", "--repro", str(out)]
    assert main.main(arguments) == 0 and status(out) == 0
    assert main.main([*arguments[:2], "--repro", str(out)]) == 2
    assert "give --kernel k12 with it" in capsys.readouterr().err
