"""target="cuda:sm_90": a program that can be looked at, and says why it does not run."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda import assemble
from tilewright.compiler.errors import MemoryLimitError, OptionError, TargetError

pytest.importorskip("numba.cuda", reason="numba-cuda is not there")


def net() -> tw.Graph:
    rng = np.random.default_rng(5)
    g = tw.Graph("net")
    x = g.input("x", (1, 3, 12, 12))
    w = g.constant(rng.standard_normal((8, 3, 3, 3)).astype(np.float32), name="w")
    y = g.relu(g.conv(x, w, pads=1), name="secret_layer")
    g.output(g.softmax(g.reshape(y, shape=(8, 144)), axis=1), "prob")
    return g


def test_what_can_be_seen() -> None:
    exe = tw.compile(net(), target="cuda:sm_90")
    assert [s.name for s in exe.inputs] == ["x"] and exe.outputs[0].shape == (8, 144)
    assert str(exe.target) == "cuda:sm_90" and "2 kernels for cuda:sm_90" in repr(exe)
    assert exe.stages[-1].graph is exe.graph and exe.plan.arena_bytes >= 8 * 144 * 4
    exe.plan.check()
    assert str(exe.memory_use())
    conv, softmax = exe.kernels
    assert conv.template == "gpu_tiles" and conv.flops == 2 * 27 * 8 * 144
    assert softmax.template == "gpu_nest"
    assert softmax.config == {"per": "block", "threads": 32, "each": 1, "wide": 4}
    (phase,) = softmax.phases
    assert (phase.blocks, phase.threads) == (8, 32) and f"def {phase.name}(" in softmax.source
    assert (phase.usage is None) is not assemble.can_assemble()
    if phase.usage is not None:
        assert phase.occupancy is not None and phase.usage.local_bytes == 0
        assert phase.occupancy.limit == "blocks", "they are of one warp"
        assert phase.waves == 8 / (132 * phase.occupancy.blocks)


def test_levels() -> None:
    exe = tw.compile(net(), target="cuda:sm_80")
    assert "conv(" in exe.ir() and "softmax" in exe.ir("graph")
    assert "parallel item" in exe.ir("kernels") and "arena" in exe.ir("memory")
    source = exe.ir("source")
    assert source.count("def tw_gpu_") == 2 and "cuda.syncthreads()" in source
    compile(source, "source", "exec")
    for line in source.splitlines():
        assert "secret" not in line or line.startswith("#"), "model names are in comments only"
    assert exe.ir("ptx").count(".target sm_80") == 2
    with pytest.raises(OptionError, match="levels graph, fused, memory, kernels, source, ptx"):
        exe.ir("llvm")
    if assemble.can_assemble():
        assert "EXIT" in exe.ir("sass")
    else:
        with pytest.raises(TargetError, match=r"nvJitLink.*pip install 'tilewright"):
            exe.ir("sass")


def test_a_call_says_what_is_missing() -> None:
    exe = tw.compile(net(), target="cuda:sm_90")
    x = np.zeros((1, 3, 12, 12), np.float32)
    for call in (lambda: exe(x), lambda: exe.run({"x": x})):
        with pytest.raises(TargetError, match=r"for cuda:sm_90 does not run: .*'cpu' runs here"):
            call()


def test_an_unknown_target() -> None:
    with pytest.raises(TargetError, match="known are 'cpu', 'cuda'"):
        tw.compile(net(), target="tpu")
    with pytest.raises(TargetError, match="'cuda:sm_80'"):
        tw.compile(net(), target="cuda:sm_10")


def test_a_memory_limit() -> None:
    exe = tw.compile(net(), target="cuda:sm_90", memory_limit=exe_bytes())
    assert exe.plan.arena_bytes == exe_bytes()
    with pytest.raises(MemoryLimitError, match="conv \\+ relu") as e:
        tw.compile(net(), target="cuda:sm_90", memory_limit=exe_bytes() - 1)
    assert e.value.least_bytes == exe_bytes()


def test_a_memory_limit_is_met_by_sums_in_fewer_parts() -> None:
    g = tw.Graph("long")
    w = g.constant(np.ones((8192, 64), np.float32))
    g.output(g.relu(g.matmul(g.input("x", (64, 8192)), w)), "y")
    (fast,) = tw.compile(g.build(), target="cuda:sm_80").kernels
    exe = tw.compile(g.build(), target="cuda:sm_80", memory_limit=1 << 16)
    (kernel,) = exe.kernels
    assert kernel.config["parts"] < fast.config["parts"] and exe.plan.arena_bytes <= 1 << 16
    assert any("memory limit" in note for note in kernel.notes)


def exe_bytes() -> int:
    return tw.compile(net(), target="cuda:sm_90").plan.arena_bytes


def test_a_memory_limit_chooses_kernels() -> None:
    """What lies between the kernels of Winograd's algorithm is several times its operands."""
    g = tw.Graph("net")
    w = g.constant(np.ones((64, 64, 3, 3), np.float32))
    g.output(g.relu(g.conv(g.input("x", (1, 64, 112, 112)), w, pads=1)), "y")
    (kernel,) = tw.compile(g, target="cuda:sm_90", memory_limit=0).kernels
    assert kernel.template == "gpu_tiles"
    saved = 36 * 28 * 28 * (64 + 64) * 4
    assert kernel.notes[0] == (
        f"memory limit: gpu_tiles instead of gpu_winograd saves {saved} bytes"
    )


AGAIN = """
import sys
import tilewright as tw
g = tw.Graph()
g.output(g.softmax(g.input("x", (4, 50)), axis=1), "y")
exe = tw.compile(g, target="cuda:sm_90")
print(len(exe.ir("ptx")) > 1000, "numba" in sys.modules)
"""


def test_kernels_come_from_the_store_without_numba() -> None:
    for pulled in ("True", "False"):
        command = [sys.executable, "-c", AGAIN]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["True", pulled]


def test_contractions_in_the_nest_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    g = tw.Graph("few")
    g.output(g.matmul(g.input("x", (40, 60), "i32"), g.input("w", (60, 40), "i32")), "y")
    with caplog.at_level(logging.INFO, logger="tilewright"):
        (kernel,) = tw.compile(g, target="cuda:sm_90").kernels
    assert "runs as a general loop nest" in caplog.text
    assert any("contraction in the general nest" in n for n in kernel.notes)
