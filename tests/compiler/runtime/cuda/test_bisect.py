"""Planted faults in programs for GPUs: the right part of the compiler is named each time."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.cli import main
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.errors import NoDeviceError
from tilewright.compiler.graph import textfile
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.gpu_mma import GpuMma
from tilewright.compiler.kernels.gpu_nest import GpuNest
from tilewright.compiler.kernels.gpu_tiles import GpuTiles
from tilewright.compiler.kernels.ir import Launch
from tilewright.compiler.runtime import gpu_code, program

from ...api import faults
from ...api.faults import always, spoil
from .stub import Stub

Plant = Callable[[pytest.MonkeyPatch], None]


def network() -> Graph:
    """A product, branches that are joined, rows that are reduced."""
    r = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return (r.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    g = tw.Graph("net")
    x = g.input("x", (16, 16))
    scaled = g.mul(g.constant(weights(16, 16)), np.float32(3), name="double")
    m = g.sub(g.matmul(x, scaled, name="dense"), np.float32(0.5), name="shift")
    a = g.relu(g.reduce_sum(g.exp(m), axes=(1,), name="total"), name="left_relu")
    b = g.hard_sigmoid(g.reduce_sum(m, axes=(1,)), name="right_act")
    j = g.concat(a, b, axis=0, name="join")
    g.output(g.softmax(j, axis=0, name="prob"), "y")
    lower = g.reduce_max(m, axes=(-1,), name="first")
    upper = g.reduce_min(m, axes=(-1,), name="second")
    g.output(g.mul(lower, upper, name="both"), "z")
    return g.build()


NET = network()
INPUTS = {"x": np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)}


@pytest.fixture(autouse=True)
def told(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub can run whatever is made. It runs sources: their PTX says how they are called."""
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_code, "_made", called)
    stub.knows_what_is_loaded("gpu", "gpu_making")


def called(kernel: Any, target: Any) -> tuple[Any, str]:
    """The entries of a kernel, and PTX without code."""
    entries = kernel_source(kernel).entries
    text = f"//\n.version 8.0\n.target {target.arch}\n"
    for e in entries:
        params = [f".param .u64 p{k}" for k in range(len(kernel.params))]
        params += [f".param .align 64 .b8 t{k}[128]" for k in range(len(e.tensor_maps))]
        text += f".entry {e.name}({', '.join(params)})\n.reqntid {e.threads}\n{{}}\n"
    return entries, text


def nest(m: pytest.MonkeyPatch) -> None:
    spoil(m, GpuNest, lambda ops, config: any(op.operator == "reduce_sum" for op in ops))


def nest_config(m: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def the_default(ops: Any, config: dict) -> bool:
        seen.append(config)
        return config == seen[0]

    spoil(m, GpuNest, the_default)


def forgotten_read(m: pytest.MonkeyPatch) -> None:
    """The planner is not told what one launch reads."""
    step = program.memory_step

    def told(launch: Launch) -> Any:
        s = step(launch)
        return replace(s, reads=(), inplace=()) if "both" in launch.label else s

    m.setattr(program, "memory_step", told)


def tiles(m: pytest.MonkeyPatch) -> None:
    spoil(m, GpuTiles, always, "out")


def max_is_min(m: pytest.MonkeyPatch) -> None:
    """What runs has minima where the kernel's text has maxima."""
    knows = Stub.knows_kernel

    def wrong(self: Stub, kernel: Any) -> None:
        knows(self, kernel)
        source = kernel_source(kernel)
        for e in source.entries:
            self.kernels[e.name] = kernel, source.text.replace("max(", "min("), e

    m.setattr(Stub, "knows_kernel", wrong)


@pytest.mark.parametrize(
    ("plant", "kind", "name"),
    [
        (faults.canonicalize_sign, "pass", "canonicalize"),
        (faults.folded_constant, "pass", "fold_constants"),
        (faults.wrong_decomposition, "pass", "decompose"),
        (faults.merged_too_much, "pass", "common_subexpressions"),
        (faults.places_in_one_another, "pass", "place"),
        (faults.groups_in_any_order, "pass", "fuse"),
        (forgotten_read, "memory plan", ""),
        (faults.wrong_order, "memory plan", ""),
        (faults.operator_expression, "operator", "hard_sigmoid"),
        (max_is_min, "code generation", "compiler/codegen/cuda"),
        (nest, "template", "gpu_nest"),
        (nest_config, "config", "gpu_nest"),
        (tiles, "template", "gpu_tiles"),
    ],
)  # fmt: skip
def test_the_culprit_is_named(plant: Plant, kind: str, name: str, tmp_path: Path) -> None:
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as m:
        plant(m)
        found = tw.bisect(NET, INPUTS, target="cuda")
    assert (found.kind, name in found.name) == (kind, True), f"{found}"
    assert dict(os.environ) == before and not (tmp_path / "cache").exists()


def test_code_in_the_store_that_is_not_made_now(monkeypatch: pytest.MonkeyPatch) -> None:
    tw.compile(NET, target="cuda")
    max_is_min(monkeypatch)
    monkeypatch.setattr(gpu_code, "_made", lambda *given: (called(*given)[0], "another"))
    found = tw.bisect(NET, INPUTS, target="cuda")
    assert (found.kind, found.name) == ("store", "built code"), found


def test_a_right_compiler_has_no_fault() -> None:
    found = tw.bisect(NET, INPUTS, target="cuda:sm_90")
    assert not found.is_wrong, found


def test_kernels_that_threads_write_together(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensor cores in tf32, whose errors are no faults; a wrong one is."""
    g = tw.Graph("product")
    w = np.random.default_rng(2).standard_normal((16, 16)).astype(np.float32)
    g.output(g.matmul(g.input("x", (16, 16)), g.constant(w), name="dense"), "y")
    stub.start("8.0")
    assert not tw.bisect(g, INPUTS, target="cuda", numerics="reduced").is_wrong
    spoil(monkeypatch, GpuMma, always, "word")
    found = tw.bisect(g, INPUTS, target="cuda", numerics="reduced")
    assert (found.kind, found.name) == ("template", "gpu_mma"), found
    assert "thread by thread" in str(found)


def test_a_kernel_that_faults_is_named(stub: Stub) -> None:
    stub.fail("kernel:2=700")
    found = tw.bisect(NET, INPUTS, target="cuda")
    assert found.kind == "template" and found.kernel.startswith("k1 "), found
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(found) and "device is lost" in str(found)


def test_a_small_part_reproduces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    textfile.write(NET, tmp_path / "net.tw.txt")
    with pytest.MonkeyPatch.context() as m:
        nest(m)
        assert main.main(["bisect", "net.tw.txt", "--target", "cuda:sm_90", "-o", "there"]) == 1
        assert "at fault: template gpu_nest" in capsys.readouterr().out
        assert _status(tmp_path / "there" / "repro.py") == 1
    assert len(textfile.read(tmp_path / "there" / "slice.tw.txt").ops) < len(NET.ops)
    assert "'cuda:sm_90'" in (tmp_path / "there" / "repro.py").read_text()
    assert _status(tmp_path / "there" / "repro.py") == 0
    assert "def tw_gpu_nest" in (tmp_path / "there" / "kernel.py").read_text()


def _status(script: Path) -> int:
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    return int(stop.value.code or 0)


def test_without_a_device(stub: Stub) -> None:
    stub.start("8.0")
    with pytest.raises(NoDeviceError, match="for cuda:sm_90 does not run"):
        tw.bisect(NET, INPUTS, target="cuda:sm_90")
