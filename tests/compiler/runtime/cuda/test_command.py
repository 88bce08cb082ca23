"""The command line on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tilewright.compiler.cli import main
from tilewright.compiler.graph.text import to_text

from .nets import A, rows, softmax
from .stub import Stub


def test_a_model_is_run(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.compile(rows())  # so that its kernel is known
    model, given, out = tmp_path / "rows.txt", tmp_path / "x.npy", tmp_path / "y.npy"
    model.write_text(to_text(rows()))
    np.save(given, A)
    run = ["run", str(model), "--target", "cuda:0", "--input", f"x={given}", "-o", str(out)]
    assert main.main(run) == 0
    np.testing.assert_allclose(np.load(out), softmax(A), 1e-5, 1e-7)
    assert main.main(["bench", str(model), "--target", "cuda"]) == 2
    assert "for CPUs in this version" in capsys.readouterr().err
