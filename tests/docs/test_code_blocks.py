"""The Python in README and docs runs, and the commands that they show exist."""

from __future__ import annotations

import doctest
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tilewright.compiler.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^tilewright (\w+)", re.MULTILINE)
TOGETHER = "<!-- blocks: one program -->"


def programs(page: Path) -> list[str]:
    """The blocks of a page: each alone, or all of them together where the page says so."""
    text = page.read_text()
    blocks = BLOCK.findall(text)
    return ["\n".join(blocks)] if TOGETHER in text else blocks


BLOCKS = [
    pytest.param(code, id=f"{page.name}-{k}")
    for page in PAGES
    for k, code in enumerate(programs(page))
]


SESSIONS = [pytest.param(page, id=page.name) for page in PAGES if CONSOLE.search(page.read_text())]
ALIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def perceptron() -> bytes:
    """softmax(x[3, 8] @ w + b)."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 4)), "b": rng.standard_normal(4)}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["logits"], name="dense"),
            helper.make_node("Softmax", ["logits"], ["prob"], name="softmax"),
        ],
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])],
        [helper.make_tensor_value_info("prob", TensorProto.FLOAT, [3, 4])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset).SerializeToString())


@pytest.mark.parametrize("code", BLOCKS)
def test_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks find a model.onnx and a matching input `x`."""
    (tmp_path / "model.onnx").write_bytes(perceptron())
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "block.py"
    script.write_text(code)
    runpy.run_path(str(script), init_globals={"x": np.zeros((3, 8), np.float32)})


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """The commands of a page's console blocks, each with what it is shown to print."""
    for block in CONSOLE.findall(page.read_text()):
        for step in block.split("$ ")[1:]:
            command, _, shown = step.partition("\n")
            yield command, shown


@pytest.mark.parametrize("page", SESSIONS)
def test_console_prints_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line by line, but for blanks; "..." stands for anything."""
    (tmp_path / "model.onnx").write_bytes(perceptron())
    monkeypatch.chdir(tmp_path)
    for command, shown in steps(page):
        name, *arguments = shlex.split(command)
        assert name == "tilewright", command
        status = main(arguments)
        out, err = capsys.readouterr()
        assert status == (2 if shown.startswith("error:") else 0), (command, err)
        checker = doctest.OutputChecker()
        assert checker.check_output(shown, out + err, ALIKE), f"$ {command}\n{out}{err}"


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2


def test_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    named = {c for page in PAGES for c in COMMAND.findall(page.read_text())}
    assert named
    for command in sorted(named):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0, command
        assert "usage" in capsys.readouterr().out
