"""Kernels for tensor cores as machine code, and with mistakes seeded into their source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tilewright.compiler.codegen.cuda.assemble import assembled, can_assemble, disassembly
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import Source, kernel_source
from tilewright.compiler.codegen.cuda.target import KNOWN, CudaTarget
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.graph.evaluate import evaluate
from tilewright.compiler.graph.ir import Graph
from tilewright.compiler.kernels.device import GPU
from tilewright.compiler.kernels.gpu_mma import GpuMma
from tilewright.compiler.kernels.gpu_mma_operands import copied_by_element
from tilewright.compiler.kernels.template import Config

from ..codegen.cuda.programs import gpu_launches, simulated
from ..codegen.cuda.simulate import SimError
from .gpu_products import (
    TINY,
    dense,
    fed,
    integers,
    made,
    network,
    product,
    window,
)
from .mistakes import assert_caught

# --------------------------------------------------------------------------- machine code


def machine_code(graph: Graph, arch: str, tf32: bool = False) -> str:
    """Its text with the default config, after checking that everything is in registers."""
    template, given = GpuMma(tf32), (graph, graph.ops, graph.outputs)
    kernel = made(graph, template.default(*given, GPU), tf32).kernel
    source, target = kernel_source(kernel), CudaTarget(arch)
    ptx = kernel_ptx(kernel, source.entries, lowered(source, kernel.params, target), target)
    assert ".local" not in ptx
    if not (can_assemble() and part("nvdisasm")):
        pytest.skip("nvJitLink or nvdisasm is not there")
    code = assembled(ptx, target)
    assert not any(usage.local_bytes for usage in code.usage.values())
    return disassembly(code.cubin)


LARGE = (8192, 8192, 512)


@pytest.mark.parametrize("arch", KNOWN)
def test_machine_code_of_half_floats(arch: str) -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    found = machine_code(dense(*LARGE), arch)
    assert found.count("HMMA.16816.F32") == 2 * 32  # two steps of 4 by 8 fragments
    assert found.count("LDSM.16") == 2 * (4 + 4) + 8  # and those ahead of the first round
    assert found.count("STG.E.128") == 4 * 2 * 2  # eight half floats each
    assert "LDGSTS.E.BYPASS.LTC128B.128" in found or "LDGSTS.E.BYPASS.128" in found


@pytest.mark.parametrize("taps", [7, 11])
def test_machine_code_of_images(taps: int) -> None:
    """Places are found once for 16 bytes: nothing has to lie in local memory meanwhile."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    graph, launches = gpu_launches(network((32, 3, 224, 224), (64, 3, taps, taps), strides=4))
    ops = tuple(graph.ops[j] for j in launches[0].ops)
    graph = replace(graph, ops=ops, outputs=ops[-1].outputs)
    assert copied_by_element(made(graph, GpuMma().default(graph, ops, graph.outputs, GPU)).kernel)
    assert machine_code(graph, "sm_80").count("LDG.E.U16") <= 128


def test_machine_code_of_parts() -> None:
    """Both kernels move 16 bytes at a time; a thread of the second asks for all parts at once."""
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    graph = dense(64, 1024, 8192)
    parts = GpuMma().default(graph, graph.ops, graph.outputs, GPU)["parts"]
    _, *found = re.split(r"\.section\s+\.text\.", machine_code(graph, "sm_80"))
    first, second = sorted(found, key=lambda text: "HMMA" not in text)
    assert parts > 1 and "HMMA" in first and "STG.E.128" in first
    assert "HMMA" not in second and second.count("LDG.E.128") == parts


@pytest.mark.parametrize(
    ("graph", "tf32", "instruction"),
    [(dense(*LARGE, "f32"), True, "HMMA.1688.F32.TF32"),
     (integers("i8", "i8", 512, 512, 512), False, "IMMA.16832.S8.S8"),
     (window(2, 64, 64, 28), False, "HMMA.16816.F32")],
    ids=["tf32", "i8", "conv"],
)  # fmt: skip
def test_machine_code_of_others(graph: Graph, tf32: bool, instruction: str) -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    found = machine_code(graph, "sm_80", tf32)
    assert instruction in found and "LDSM" in found and "LDGSTS" in found


# --------------------------------------------------------------------------- seeded mistakes

MISTAKES = (
    (r"\n +barrier\(\)", ""),  # a barrier is missing
    (r"cp_wait\((\d)\)", r"cp_wait(9)"),  # copies are not waited for
    (r"\n +cp_commit\(\)", ""),
    (r"\((\w_piece) \^ [^*]*\) \* 8", r"\1 * 8"),  # pieces are stored where nobody looks for them
    (r"\^ umod\(", "^ 1 + umod("),
    (r"(v_\d+ = \(.*?) < (\d+)", r"\1 <= \2"),  # an edge is not cut off
    (r"(v_\d+ = \(.*) < (\d+)", r"\1 <= \2"),
    (r"if k_round \+ (\d) <", r"if k_round + 1 + \1 <"),  # the last tile is not copied
    (r"(\w+_place\d = )", r"\g<1>8 + "),  # the wrong columns of a tile
    (r"umod\(k_round( \+ \d)?, (\d)\)", r"umod(k_round\1, \2 - 1)"),  # another stage
    (r"ldmatrix\(", "ldmatrix_t("),
    (r"ldmatrix_t\(", "ldmatrix("),
    (r"(mma_f16\(sums, a)(\d)", r"\g<1>0"),  # fragments of another step
    (r"(shared_f16\()(\d+), (\d+)", r"\1\2, \3 - 1024"),  # too little shared memory
    (r"shared_f16\([1-9]\d+,", "shared_f16(0,"),  # operands overlap
    (r"sums\[e \+", "sums[1 - e +"),
    (r"\n +turn_columns\([^\n]*", ""),  # a thread stores what others hold
    (r"\+ s\w* \* 4\]", "+ s * 3]"),
    (r"udiv\(lane, 4\)", "umod(lane, 4)"),
)  # fmt: skip


WINDOW_MISTAKES = (
    (r"0 <= (?=v|umod)", "-1 <= "),  # what is left of the image or above it is read
    (r" < 5\)\)", " < 6))"),  # what is right of it
    (r"(udiv\(v_\d+, 5\) \+ v_\d+) < 5", r"\1 < 6"),  # or below it
    (r"(v_\d+ [-+] )(\d+), 16,", r"\g<1>\2 + 16, 16,"),  # the next place
    (r", 5\) \* 16", ", 5) * 32"),
    (r"(cp_async)_zero(\([^\n]*), [^,]*\)\n", r"\1\2)\n"),  # no zeros
)  # fmt: skip


PARTS_MISTAKES = (
    (r"first_round = item \* (\d)", r"first_round = item * (\1 - 1)"),  # terms of another part
    (r" \+ first_round \* \d+", ""),
    (r"first_round \* (\d+)", r"first_round * (\1 // 2)"),
    (r"k_round \+ 2 < 4", "k_round + 2 < 5"),  # the next part's terms as well
    (r"k_round < 3", "k_round < 2"),
    (r"range\(unknown\(4\)\)", "range(unknown(3))"),
    (r"item \* 648", "item * 640"),  # parts overlap
    (r"store_vector\(s0, [^\n]*", "pass"),
    (r"v_18 \+ 4, word, 4", "v_18 + 4, word, 0"),
    (r"item >= 162", "item >= 160"),  # not all are added up
    (r"range\(2\)(:  # unrolled\n +for v)", r"range(1)\1"),  # one part is missing
    (r"part \* 648", "part * 324"),
    (r"total\[v\] = total\[v\] \+ ", "total[v] = "),
    (r"total\[v\] = f32\(0.0\)", "total[v] = f32(1.0)"),
    (r"y0\[item \* 4 \+ v\]", "y0[item * 4]"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("graph", "config", "mistakes", "least"),
    [(product("mk,kn->mn", (27, 136), (136, 24)), TINY, MISTAKES, 40),
     (product("mk,kn->mn", (27, 256), (256, 24)), {**TINY, "parts": 2}, PARTS_MISTAKES, 20),
     (window(1, 16, 16, 5), TINY, WINDOW_MISTAKES, 6)],
    ids=["product", "parts", "window"],
)  # fmt: skip
def test_seeded_mistakes_are_caught(
    graph: Graph, config: Config, mistakes: Sequence[tuple[str, str]], least: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By an error or by a wrong result."""
    feeds = fed(graph)
    (expected,) = evaluate(graph, feeds).values()
    if graph.type(graph.outputs[0]).layout.is_blocked:  # both as they lie in memory
        feeds = {n: np.moveaxis(x, 1, -1) for n, x in feeds.items()}
        expected = np.moveaxis(expected, 1, -1)
    launch = made(graph, config)
    source = kernel_source(launch.kernel)

    def right(of: Source) -> bool:
        try:
            got = simulated(graph, launch, feeds, source=of)
        except (SimError, IndexError):
            return False
        limit = 2.0**-9 * np.abs(expected).max()
        return bool(np.allclose(got.reshape(-1), expected.reshape(-1), 0, limit))

    assert_caught(source, mistakes, right, least, capsys)
