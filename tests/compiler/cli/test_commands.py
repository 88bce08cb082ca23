"""Every subcommand, on a small model: what it prints, what it writes, how it fails."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.cli.main import main

ROOT = Path(__file__).parents[3]
Command = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A perceptron x[batch, 8] -> prob[batch, 4], over a cache of its own."""
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    example = runpy.run_path(str(ROOT / "examples" / "compile_onnx.py"))
    path = tmp_path / "model.onnx"
    shutil.copy(example["small_model"](), path)
    return str(path)


@pytest.fixture
def tilewright(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must succeed; what it printed."""

    def call(*words: Any) -> str:
        assert main(list(map(str, words))) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return call


def test_run_with_given_and_random_inputs(model: str, tilewright: Command, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out.npz"
    tilewright("run", model, "--shapes", "x=2,8", "--input", f"x={tmp_path / 'x.npy'}", "-o", out)
    prob = np.load(out)["prob"]
    assert prob.shape == (2, 4)
    np.testing.assert_allclose(prob.sum(axis=1), 1, rtol=1e-5)
    assert "prob" in tilewright("run", model, "--shapes", "x=3,8")


def test_run_tells_machines_in_json(model: str, tilewright: Command) -> None:
    found = json.loads(tilewright("run", model, "--shapes", "x=3,8", "--json"))
    assert "prob" in json.dumps(found)


def test_bench_measures_itself(model: str, tilewright: Command) -> None:
    found = json.loads(
        tilewright("bench", model, "--shapes", "x=3,8", "--rounds", 3, "--threads", 1, "--json")
    )
    assert found["latency"]["median_seconds"] > 0 and found["threads"] == 1
    assert found["kernels"] >= 1
    line = tilewright("bench", model, "--shapes", "x=3,8", "--rounds", 3)
    assert "kernels" in line and "arena" in line


def test_a_peer_that_is_not_there_is_reported(
    model: str, tilewright: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.compiler.cli.peers.installed", lambda name: False)
    text = tilewright(
        "bench", model, "--shapes", "x=3,8", "--rounds", 3, "--peers", "onnxruntime,openvino"
    )
    assert "onnxruntime is not installed: pip install onnxruntime" in text


def test_compile_and_run_the_saved_program(model: str, tilewright: Command, tmp_path: Path) -> None:
    saved = tmp_path / "model.tw"
    tilewright("compile", model, "--shapes", "x=3,8", "-o", saved)
    assert saved.stat().st_size > 0
    assert "prob" in tilewright("run", saved)


@pytest.mark.parametrize(
    ("stage", "text"),
    [("graph", "graph "), ("fused", "group 0"), ("memory", "arena"), ("kernels", "parallel item"),
     ("llvm", "define void"), ("asm", "ret")],
)  # fmt: skip
def test_inspect_shows_a_stage(model: str, tilewright: Command, stage: str, text: str) -> None:
    assert text in tilewright("inspect", model, "--shapes", "x=3,8", "--stage", stage)


def test_inspect_lists_the_passes(model: str, tilewright: Command) -> None:
    assert "fold_scales" in tilewright("inspect", model, "--shapes", "x=3,8", "--stages")


def test_cache_lists_and_clears(model: str, tilewright: Command) -> None:
    tilewright("run", model, "--shapes", "x=3,8")
    assert "tw_" in tilewright("cache", "ls")
    tilewright("cache", "clear")
    assert "tw_" not in tilewright("cache", "ls")


def test_doctor_and_env(model: str, tilewright: Command) -> None:
    assert "numpy" in tilewright("doctor")
    json.loads(tilewright("doctor", "--json"))
    assert "TILEWRIGHT_THREADS" in tilewright("env")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "missing.onnx"),
        ("run", "{model}", "--shapes", "x=two,8"),
        ("run", "{model}", "--shapes", "x=2,8", "--input", "nobody=x.npy"),
        ("inspect", "{model}", "--shapes", "x=2,9", "--stage", "graph"),
        ("bench", "{model}", "--shapes", "x=2,8", "--rounds", "0"),
    ],
)
def test_faults_are_one_line_and_exit_2(
    words: tuple[str, ...], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([w.format(model=model) for w in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
