"""Nodes and kernels of a program for a GPU: the same pages, and levels of its own."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import OptionError


@pytest.fixture(scope="module")
def exe():
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    g = tw.Graph("net")
    x = g.input("x", (4, 16))
    h = g.relu(g.matmul(x, np.ones((16, 8), np.float32), name="dense"), name="act")
    g.output(g.softmax(h, axis=-1, name="prob"), "y")
    return tw.compile(g, target="cuda:sm_90")


def test_pages_about_nodes_and_kernels(exe) -> None:
    assert set(exe.nodes) == {"dense", "act", "prob"}
    page = str(exe.explain(op="act"))
    assert "model node act" in page and "where its data lie" in page and "parallel" in page
    assert "instructions" not in page
    assert str(exe.explain(kernel="k0")).startswith("kernel k0 gpu_")


def test_levels_of_one_node(exe) -> None:
    (k,) = exe.nodes["prob"]
    assert exe.ir("ptx", op="prob").count(".visible .entry") >= 1
    assert exe.ir("source", kernel=f"k{k}").count("def ") == exe.ir("source", op="prob").count(
        "def "
    )
    assert "softmax" in exe.ir("import", op="prob") and "dense" not in exe.ir("import", op="prob")
    with pytest.raises(OptionError, match="there is no stage 'asm'"):
        exe.ir("asm", op="prob")


def test_a_script_has_the_source(exe) -> None:
    for k, kernel in enumerate(exe.kernels):
        text = exe.repro(f"k{k}")
        compile(text, "script", "exec")
        assert kernel.source in text and exe.repro(kernel.name) == text
