"""Generated source becomes PTX for every architecture, and machine code where nvJitLink is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda import assemble, ptx, toolkit
from tilewright.compiler.codegen.cuda.assemble import Usage, assembled, can_assemble, usage_of
from tilewright.compiler.codegen.cuda.dialect import namespace
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import KNOWN, CudaTarget
from tilewright.compiler.errors import LoweringError, TargetError
from tilewright.compiler.graph.ir import Graph

from .programs import gpu_launches

pytest.importorskip("numba.cuda", reason="numba-cuda is not there")


def made(graph: Graph, arch: str = "sm_90") -> str:
    _, (launch,) = gpu_launches(graph)
    source = kernel_source(launch.kernel)
    target = CudaTarget(arch)
    return kernel_ptx(launch.kernel, source.entries,
                      lowered(source, launch.kernel.params, target), target)  # fmt: skip


def softmax() -> Graph:
    g = tw.Graph("softmax")
    g.output(g.softmax(g.input("x", (6, 600)), axis=1), "y")
    return g.build()


@pytest.mark.parametrize("arch", KNOWN)
def test_every_architecture(arch: str) -> None:
    text = made(softmax(), arch)
    assert f".target {arch}" in text
    assert re.search(r"\.entry tw_gpu_nest_\w+_p0", text)
    assert ".reqntid 128" in text
    assert "shfl.sync.bfly.b32" in text and "bar.sync" in text and ".shared" in text
    assert "max.NaN.f32" in text
    assert "call" not in text and ".local" not in text, "all is inlined, and in registers"


def test_pointwise_arithmetic_is_exact() -> None:
    """No multiply-add where the source has a product and a sum, no approximate division."""
    g = tw.Graph("g")
    x, z = g.input("x", (1000,)), g.input("z", (1000,))
    g.output((x * 3.0 + z) / x, "y")
    text = made(g.build())
    assert "div.rn.f32" in text and "mul.rn.f32" in text and "fma" not in text
    assert "ld.global.b32" in text and "st.global.b32" in text


def test_inputs_are_read_through_the_read_only_cache_unless_they_may_be_overwritten() -> None:
    g = tw.Graph("g")
    g.output(g.transpose(g.input("x", (10, 100)), perm=(1, 0)), "y")
    assert "ld.global.nc" in made(g.build())
    assert "ld.global.nc" not in made(softmax())


def test_a_function_of_libdevice_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    g = tw.Graph("g")
    g.output(g.sin(g.input("x", (4,))), "y")
    monkeypatch.setattr(ptx, "part", lambda name: None)
    with pytest.raises(TargetError, match=r"__nv_sinf of .*libdevice.*pip install"):
        made(g.build())


@pytest.mark.skipif(toolkit.part("libdevice") is None, reason="libdevice is not there")
def test_a_function_of_libdevice() -> None:
    g = tw.Graph("g")
    g.output(g.sin(g.input("x", (4,))), "y")
    assert "__nv_" not in made(g.build())


def test_numba_works_with_numpy_that_has_no_row_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.delattr(np, "row_stack", raising=False)
    namespace.cache_clear()
    assert "cuda" in namespace()
    assert np.row_stack is np.vstack


LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'tw_a_p0' for 'sm_90'
ptxas info    : Function properties for tw_a_p0
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 32 bytes smem
ptxas info    : Compile time = 22.890 ms
ptxas info    : Function properties for tw_a_p1
    48 bytes stack frame, 44 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_what_ptxas_says_is_understood() -> None:
    assert usage_of(LOG) == {"tw_a_p0": Usage(28, 32, 0), "tw_a_p1": Usage(255, 0, 48)}


@pytest.mark.skipif(can_assemble(), reason="an assembler is there")
def test_without_an_assembler() -> None:
    with pytest.raises(TargetError, match=r"nvJitLink, which is missing: pip install"):
        assembled("", CudaTarget("sm_90"))


@pytest.mark.parametrize("tool", ["ptxas", "nvJitLink"])
def test_machine_code(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if toolkit.part(tool) is None:
        pytest.skip(f"{tool} is not there")
    monkeypatch.setattr(assemble, "part", lambda name: toolkit.part(name) if name == tool else None)
    code = assembled(made(softmax()), CudaTarget("sm_90"))
    (usage,) = code.usage.values()
    assert code.cubin[:4] == b"\x7fELF"
    assert usage.registers <= 64 and usage.shared_bytes in (16, 32) and usage.local_bytes == 0
    with pytest.raises(LoweringError, match=f"{tool} refuses"):
        assembled("this is no PTX", CudaTarget("sm_90"))


def test_a_toolkit_is_found_by_its_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No variable names it, and no package has what is looked for."""
    for name in ("bin/nvcc", "bin/ptxas", "nvvm/libdevice/libdevice.10.bc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(toolkit, "find_spec", lambda name: None)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    toolkit.part.cache_clear()
    try:
        assert toolkit.part("libdevice") == tmp_path / "nvvm/libdevice/libdevice.10.bc"
        assert toolkit.part("ptxas") == tmp_path / "bin/ptxas"
    finally:
        toolkit.part.cache_clear()
