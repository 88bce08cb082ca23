"""Instructions of generated kernels: what they move at once, what they keep in registers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cuda.assemble import Usage, assembled, can_assemble, disassembly
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.graph.builder import GraphBuilder, Value

from .programs import gpu_launches

pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
pytestmark = pytest.mark.skipif(
    not can_assemble() or part("nvdisasm") is None, reason="nvJitLink or nvdisasm is not there"
)
_INSTRUCTION = re.compile(r"^\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", re.MULTILINE)


def machine_code(build: Callable[[GraphBuilder], Value]) -> tuple[Counter[str], Usage]:
    """How often every instruction stands in the one kernel of a graph, and what it takes."""
    g = tw.Graph("g")
    g.output(build(g), "y")
    _, (launch,) = gpu_launches(g.build())
    target = CudaTarget("sm_90")
    source = kernel_source(launch.kernel)
    ptx = kernel_ptx(launch.kernel, source.entries,
                     lowered(source, launch.kernel.params, target), target)  # fmt: skip
    made = assembled(ptx, target)
    (usage,) = made.usage.values()
    text = re.sub(r"/\*.*?\*/", "", disassembly(made.cubin))
    return Counter(_INSTRUCTION.findall(text)), usage


def count(found: Counter[str], start: str) -> int:
    return sum(n for name, n in found.items() if name.startswith(start))


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_pointwise_kernels_move_16_bytes(kind: str) -> None:
    found, usage = machine_code(
        lambda g: g.relu(g.input("x", (64, 1024), kind) + g.input("z", (64, 1024), kind))
    )
    assert count(found, "LDG") == found["LDG.E.128"] + found["LDG.E.128.CONSTANT"] == 2
    assert count(found, "STG") == found["STG.E.128"] == 1
    assert usage.local_bytes == 0


def test_rows_are_read_16_bytes_at_once() -> None:
    found, usage = machine_code(lambda g: g.softmax(g.input("x", (64, 1024)), axis=1))
    assert count(found, "LDG") == found["LDG.E.128"] == 3
    assert count(found, "STG") == found["STG.E.128"] == 1
    assert usage.local_bytes == 0


def test_a_product_with_a_vector_reads_16_bytes_at_once() -> None:
    w = np.zeros((1024, 4096), np.float32)
    found, _ = machine_code(lambda g: g.matmul(g.input("x", (1, 1024)), g.constant(w, name="w")))
    assert count(found, "LDG") == found["LDG.E.128.CONSTANT"] > 0


def test_a_window_is_read_once() -> None:
    """Six elements of each of three rows for four results: four of them in one access."""
    w = np.ones((32, 1, 3, 3), np.float32)
    found, usage = machine_code(
        lambda g: g.conv(g.input("x", (1, 32, 56, 56)), g.constant(w, name="w"), group=32, pads=1)
    )
    assert found["LDG.E.128.CONSTANT"] == 3 and found["STG.E.128"] == 1 and found["FFMA"] == 36
    assert count(found, "LDG") == 3 * (1 + 2) + 9, "and nine weights"
    assert usage.local_bytes == 0
