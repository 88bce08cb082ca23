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
_INSTRUCTION = re.compile(r"^\s+(?:\{\s+)?(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", re.MULTILINE)


def machine_code(build: Callable[[GraphBuilder], Value]) -> tuple[Counter[str], Usage]:
    """How often every instruction stands in the last kernel of a graph, and what it takes."""
    g = tw.Graph("g")
    g.output(build(g), "y")
    launch = gpu_launches(g.build())[1][-1]
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


def test_columns_are_read_16_bytes_at_once() -> None:
    """By threads side by side, which add up what they found in shared memory."""
    found, usage = machine_code(lambda g: g.reduce_sum(g.input("x", (512, 1024)), axes=(0,)))
    assert count(found, "LDG") == found["LDG.E.128.CONSTANT"] >= 4, "several are on their way"
    assert count(found, "STG") == found["STG.E.128"] == 1
    assert count(found, "LDS") == found["LDS.128"] > 0 and count(found, "STS") == 1
    assert usage.local_bytes == 0


def test_what_is_transposed_goes_through_shared_memory() -> None:
    found, usage = machine_code(
        lambda g: g.transpose(g.input("x", (2, 64, 56, 56)), perm=(0, 2, 3, 1))
    )
    assert [count(found, what) for what in ("LDG", "STS", "LDS", "STG")] == [4, 4, 4, 4]
    assert usage.local_bytes == 0 and sum(found.values()) < 100


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


def test_tiles_multiply_while_copies_are_on_their_way() -> None:
    """A round of 16 terms: 8 x 8 sums of a thread, 16 bytes for every access of shared memory and
    every copy. The tile's way to its results takes 16 accesses more."""
    w, b = np.zeros((2048, 2048), np.float32), np.zeros(2048, np.float32)
    found, usage = machine_code(
        lambda g: g.relu(g.matmul(g.input("x", (2048, 2048)), g.constant(w, name="w"))
                         + g.constant(b, name="b"))
    )  # fmt: skip
    assert found["FFMA"] == 16 * 8 * 8
    assert count(found, "LDS.") == found["LDS.128"] <= 64 + 16
    assert count(found, "LDGSTS") == found["LDGSTS.E.BYPASS.128"] == 4
    assert count(found, "STS") == found["STS.128"] == 16
    assert count(found, "STG") == found["STG.E.128"] > 0
    assert usage.registers <= 128 and usage.local_bytes == 0


def test_a_convolution_copies_its_windows_without_divisions() -> None:
    w = np.zeros((64, 64, 3, 3), np.float32)
    found, usage = machine_code(
        lambda g: g.conv(g.input("x", (8, 64, 56, 56)), g.constant(w, name="w"), pads=1)
    )
    assert found["FFMA"] == 16 * 8 * 8 and count(found, "LDGSTS.E.BYPASS.128") == 2
    assert sum(n for name, n in found.items() if "I2F" in name or "CALL" in name) == 0
    assert usage.registers <= 128 and usage.local_bytes == 0


def test_a_recurrent_layer_keeps_its_weights_in_registers() -> None:
    """100 weights of every thread, which multiply states out of shared memory, four at a time."""

    def build(g: GraphBuilder) -> Value:
        w, r = (g.constant(np.zeros((1, 300, n), np.float32), name=f"w{n}") for n in (25, 100))
        x = g.input("x", (9, 1, 25))
        made: Value = g.gru(x, w, r, hidden_size=100, linear_before_reset=1)[0]
        return made

    found, usage = machine_code(build)
    assert count(found, "LDS.128") == 25 and usage.registers >= 100 and usage.local_bytes == 0
    assert 100 <= count(found, "LDG") <= 110, "weights, once, and what a step takes"
