"""What only Hopper GPUs have as PTX and machine code: products of warp groups without a stall that
the code could avoid, descriptors of tensors and of shared memory as the hardware reads them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.assemble import (
    Assembled,
    assembled,
    can_assemble,
    disassembly,
)
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.intrinsics import INTRINSICS
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.codegen.cuda.tensor_maps import described, encoding
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.errors import LoweringError
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU, gpu_device
from tilewright.compiler.kernels.gpu_wgmma import GpuWgmma
from tilewright.compiler.kernels.gpu_wgmma_body import KEPT, TAKEN
from tilewright.compiler.kernels.ir import Buffer, TensorMap
from tilewright.compiler.kernels.select import coded_groups
from tilewright.compiler.kernels.template import Config
from tilewright.compiler.passes.base import run_pipeline
from tilewright.compiler.passes.pipeline import gpu_pipeline
from tilewright.compiler.tuning.problem import problem_of
from tilewright.ops.types import bf16, f16, f32, u16

TARGET = CudaTarget("sm_90")


def dense(m: int, n: int, k: int, transposed: bool = True, activation: str = "relu") -> Graph:
    """activation(a @ b + c) + r."""
    g = tw.Graph("dense")
    a = g.input("a", (m, k), dtype="f16")
    b = g.input("b", (n, k) if transposed else (k, n), dtype="f16")
    b = g.transpose(b, perm=(1, 0)) if transposed else b
    y = getattr(g, activation)(g.matmul(a, b) + g.input("c", (n,), dtype="f16"))
    g.output(y + g.input("r", (m, n), dtype="f16"), "y")
    return run_pipeline(gpu_pipeline(), g.build())[0]


def made(graph: Graph, config: Config | None = None) -> str:
    return made_of(graph, graph.ops, graph.outputs, config=config)


def made_of(graph: Graph, ops: Any, outputs: Any, *, config: Config | None) -> str:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    given = graph, ops, outputs, GPU
    launch = GpuWgmma().instantiate(*given, config or GpuWgmma().default(*given))
    source = kernel_source(launch.kernel)
    return kernel_ptx(launch.kernel, source.entries,
                      lowered(source, launch.kernel.params, TARGET), TARGET)  # fmt: skip


def checked(ptx: str) -> Assembled:
    """Machine code that keeps all registers, and in which no product waits for another."""
    code = assembled(ptx, TARGET)
    assert not any(usage.local_bytes for usage in code.usage.values())
    assert not [x for x in code.losses if "setmaxnreg" not in x], code.losses
    return code


CONFIGS = (
    {"m": 128, "n": 256, "stages": 4, "cluster": 2, "parts": 1},
    {"m": 256, "n": 128, "stages": 4, "cluster": 1, "parts": 1},
    {"m": 128, "n": 128, "stages": 5, "cluster": 1, "parts": 1},
    {"m": 64, "n": 256, "stages": 4, "cluster": 1, "parts": 1},
    {"m": 64, "n": 64, "stages": 8, "cluster": 1, "parts": 1},
    {"m": 128, "n": 256, "stages": 4, "cluster": 2, "parts": 2},
)


def test_the_default_for_large_matrices() -> None:
    ptx = made(dense(4096, 4096, 4096))
    assert ".target sm_90a" in ptx
    assert len(re.findall(r"\.param \.align 64 \.b8 \w+\[128\]", ptx)) == 3
    assert ".reqnctapercluster 2" in ptx and ".multicast::cluster" in ptx
    assert ".local" not in ptx
    if not can_assemble():
        return
    code = checked(ptx)
    if part("nvdisasm"):
        machine = disassembly(code.cubin)
        for wanted in ("UTMALDG.2D.MULTICAST", "UTMASTG.2D", "SYNCS.PHASECHK", "STSM.16.M88.4"):
            assert wanted in machine
        assert_back_to_back(machine, 4)


_LINE = re.compile(r"^\s*(?:/\*[0-9a-f]+\*/\s+(.*?) ?;|(\.L_\w+):)", re.MULTILINE)


def registers_behind(machine: str, instruction: str) -> int:
    """How many registers are used by what may follow on an instruction. Instructions of a branch
    that is not taken count as well."""
    code = [code or label for code, label in _LINE.findall(machine)]
    labels = {x: k for k, x in enumerate(code) if x.startswith(".L_")}
    seen, most = set[int](), 0
    waiting = [k for k, x in enumerate(code) if x.startswith(instruction)]
    assert waiting
    while waiting:
        k = waiting.pop()
        while k not in seen:
            seen.add(k)
            most = max([most, *(int(r) + 1 for r in re.findall(r"\bR(\d+)\b", code[k]))])
            to = re.search(r"BRA.*\((\.L_\w+)\)", code[k])
            if to is not None:
                waiting.append(labels[to[1]])
            if (to is not None and code[k].startswith("BRA")) or code[k].startswith("EXIT"):
                break
            k += 1
    assert any("EXIT" in code[k] for k in seen) and len(seen) > 50
    return most


def assert_back_to_back(machine: str, count: int) -> None:
    """Products come `count` at a time; between them only descriptors are computed, by the unit for
    what all threads have in common."""
    between: list[str] = []
    run = 0
    for op in re.findall(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)", machine):
        if not op.startswith("HGMMA"):
            between.append(op)
            continue
        if run % count:
            assert all(x.startswith(("U", "R2UR", "NOP")) for x in between), between
        run, between = run + 1, []
    assert run and run % count == 0


def test_registers_change_hands() -> None:
    """The producer needs no more than it keeps, in code that is for as many threads."""
    ptx = made(dense(2000, 2040, 1000), CONFIGS[0])
    assert ".reqntid 384\n.minnctapersm 1" in ptx, "else ptxas may ignore it, and says so"
    if can_assemble() and part("nvdisasm"):
        machine = disassembly(checked(ptx).cubin)
        assert f"USETMAXREG.TRY_ALLOC.CTAPOOL UP0, {TAKEN:#x}" in machine
        assert registers_behind(machine, f"USETMAXREG.DEALLOC.CTAPOOL {KEPT:#x}") <= KEPT
        assert 128 * KEPT + 256 * TAKEN <= 384 * 168 <= 1 << 16


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['m']}x{c['n']}x{c['parts']}")
def test_configs(config: Config, transposed: bool) -> None:
    ptx = made(dense(2000, 2040, 1000, transposed, "gelu"), config)
    if can_assemble():
        code = checked(ptx)
        if part("nvdisasm"):
            machine = disassembly(code.cubin)
            if config["parts"] == 1:  # else the loop over parts is begun while they multiply
                assert_back_to_back(machine, 4 * max(1, config["m"] // 128))
            if "USETMAXREG" in machine:
                assert registers_behind(machine, "USETMAXREG.DEALLOC") <= KEPT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "size", "stride", "groups"), [(128, 28, 2, 1), (72, 14, 1, 1), (144, 20, 1, 2)]
)
def test_the_producer_of_a_convolution_keeps_to_its_registers(
    channels: int, size: int, stride: int, groups: int
) -> None:
    """Those that it has left once it handed the others over. It works out boxes of windows there,
    with divisions by what is no power of two."""
    if not can_assemble() or part("nvdisasm") is None:
        pytest.skip("ptxas, nvJitLink or nvdisasm is not there")
    g = tw.Graph("conv")
    x = g.relu(g.input("x", (8, channels, size, size), "f16"))
    w = g.constant(np.zeros((256 * groups, channels // groups, 3, 3), np.float16))
    g.output(g.relu(g.conv(x, w, pads=1, strides=stride, group=groups)), "y")
    graph = run_pipeline(gpu_pipeline(), g.build())[0]
    for group in coded_groups(graph):
        p = problem_of(graph, group.ops, group.outputs, gpu_device((9, 0)), "standard")
        if GpuWgmma().matches(p.graph, p.ops, p.outputs):
            ptx = made_of(p.graph, p.ops, p.outputs, config=CONFIGS[0] | {"cluster": 1})
            machine = disassembly(checked(ptx).cubin)
            assert registers_behind(machine, "USETMAXREG.DEALLOC") <= KEPT
            return
    raise AssertionError("no group is a convolution of wgmma's")


# --------------------------------------------------------------------------- descriptors


@pytest.mark.parametrize("across", [0, 1])
def test_descriptors_of_shared_memory(across: int) -> None:
    """PTX ISA, "Matrix descriptor format": address, leading and stride offsets in units of 16
    bytes, and mode 1, the swizzle of 128 bytes."""
    literals = {"tiles": 1, "columns": 128, "a_across": across, "b_across": across}
    text, _ = INTRINSICS["wgmma_f16"].definition("f", {"sums": f32, "a": u16, "b": u16}, literals)
    fixed = [int(n) for n in re.findall(r"or i64 %v\d+, (\d+)", text)]
    assert len(fixed) == 2
    for d in fixed:
        assert d & 0x3FFF == 0 and d >> 62 == 1 and d >> 49 & 7 == 0
        assert (d >> 32 & 0x3FFF) * 16 == 1024, "eight rows of 128 bytes"
        if across:
            assert (d >> 16 & 0x3FFF) * 16 == 64 * 128, "64 terms of 128 bytes"
    steps = [int(n) * 16 for n in re.findall(r"add\.s64 y, \$\d+, (\d+);", text)]
    assert steps == [step * (16 * 128 if across else 32) for step in range(4)]
    assert text.count(f"1, 1, {across}, {across};") == 4


Y = Buffer("y", bf16, 300 * 72, "out")


def test_descriptors_of_tensors() -> None:
    """As cuTensorMapEncodeTiled takes them."""
    x = Buffer("x", f16, 8, "in")
    t = described(TensorMap("t", Y, (70, 100, 3), (144, 14400), (64, 32, 1)), (x, Y))
    e = encoding(t)
    assert t.buffer == 1 and (e.data_type, e.rank) == (9, 3)
    assert e.dims == (70, 100, 3) and e.strides == (144, 14400) and e.box == (64, 32, 1)
    assert (e.steps, e.interleave, e.swizzle, e.fill) == ((1, 1, 1), 0, 3, 0)
    t = described(TensorMap("t", Y, (70, 100), (144,), (64, 30), steps=(1, 2)), (x, Y))
    assert encoding(t).steps == (1, 2) and encoding(t).box == (64, 60)
    z = Buffer("z", f32, 3200, "in")
    assert encoding(described(TensorMap("t", z, (32, 100), (128,), (32, 8)), (z,))).data_type == 7
    rounded = TensorMap("t", z, (32, 100), (128,), (32, 8), tf32=True)
    assert encoding(described(rounded, (z,))).data_type == 11


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (TensorMap("t", Y, (70,) * 6, (144,) * 5, (1,) * 6), "6 axes; it takes 1 to 5"),
        (TensorMap("t", Y, (70, 100), (144,), (64,)), "do not go together"),
        (TensorMap("t", Y, (0, 100), (144,), (64, 1)), "must be from 1 to"),
        (TensorMap("t", Y, (64, (1 << 31) + 1), (128,), (64, 1)), "must be from 1 to 2147483648"),
        (TensorMap("t", Y, (70, 100), (144,), (64, 257)), "1 to 256 elements"),
        (TensorMap("t", Y, (70, 100), (144,), (64, 129), steps=(1, 2)), "1 to 256 elements"),
        (TensorMap("t", Y, (70, 100), (144,), (64, 8), steps=(1, 9)), "steps .* from 1 to 8"),
        (TensorMap("t", Y, (70, 100), (140,), (64, 1)), "multiples of 16 bytes"),
        (TensorMap("t", Y, (70, 100), (144,), (63, 1)), "rows of 126 bytes"),
        (TensorMap("t", Y, (70, 100), (144,), (72, 1)), "do not go with a swizzle of 128"),
        (TensorMap("t", Y, (70, 100), (144,), (32, 1)), "64 bytes do not go with a swizzle of 128"),
        (TensorMap("t", Y, (72, 301), (144,), (64, 1)), "it ends at byte 43344 of 43200"),
        (TensorMap("t", Buffer("z", f16, 8, "in"), (8,), (), (8,)), "in no parameter"),
        (TensorMap("t", Y, (70, 100), (144,), (64, 8), tf32=True), "elements of bf16"),
    ],
)
def test_tensors_that_have_no_descriptor(wrong: TensorMap, why: str) -> None:
    with pytest.raises(LoweringError, match=f"tensor map t of .*{why}"):
        described(wrong, (Y,))
