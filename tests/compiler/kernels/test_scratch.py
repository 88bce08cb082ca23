"""Where kernels keep what they need in between: in the arena, not on the heap, hardly on the stack.

That items which run at once use different scratch is checked by the interpreter, for every template
and config (`interpret.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.codegen.cpu import lower
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.kernels.ir import Kernel

MOST_STACK = 8192
"""Bytes: squares of vectors that are transposed or transformed, and a spill of each."""

BYTES = {"double": 8, "i64": 8, "float": 4, "i32": 4, "i16": 2, "i8": 1, "i1": 1}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def winograd(g: tw.Graph) -> None:
    x = g.input("x", (2, 64, 28, 28))
    g.output(g.conv(x, g.parameter("w", normal(64, 64, 3, 3)), pads=1))


def packing(g: tw.Graph) -> None:
    a, b = g.input("a", (3, 60, 70)), g.input("b", (3, 70, 90))
    g.output(g.matmul(g.softmax(a), b))


def attention(g: tw.Graph) -> None:
    q, k, v = (g.input(n, (2, 4, 33, 16)) for n in "qkv")
    scores = g.softmax(g.matmul(q, g.transpose(k, perm=(0, 1, 3, 2))) * np.float32(0.25))
    g.output(g.matmul(scores, v))


def large_sum(g: tw.Graph) -> None:
    g.output(g.reduce_sum(g.input("x", (1024, 1024)), axes=(0, 1), keepdims=0))


def sorting(g: tw.Graph) -> None:
    values, _ = g.top_k(g.input("x", (9, 500)), k=50)
    g.output(values)


def recurrence(g: tw.Graph) -> None:
    x = g.input("x", (5, 3, 8))
    w, r = g.parameter("w", normal(1, 48, 8)), g.parameter("r", normal(1, 48, 16))
    outputs = g.gru(x, w, r, hidden_size=16)
    g.output(outputs[0] if isinstance(outputs, (tuple, list)) else outputs)


def kernels(build: Callable[[tw.Graph], None]) -> list[Kernel]:
    g = tw.Graph("net")
    build(g)
    return [launch.kernel for launch in tw.compile(g, threads=2)._program.launches]


ALL = [winograd, packing, attention, large_sum, sorting, recurrence]


@pytest.mark.parametrize("build", ALL, ids=lambda b: b.__name__)
def test_kernels_allocate_nothing(build: Callable[[tw.Graph], None]) -> None:
    for kernel in kernels(build):
        text = lower.module_text(kernel, host().arithmetic)
        assert stack(text) <= MOST_STACK, kernel.template
        called = re.findall(r"^declare [^@]*@([\w.]+)", text, re.MULTILINE)
        assert not [name for name in called if not name.startswith("llvm.")], kernel.template


def stack(text: str) -> int:
    """Bytes of all arrays on the stack of a module's functions."""
    found = re.findall(r"alloca \[(\d+) x (?:<(\d+) x (\w+)>|(\w+))\]", text)
    assert len(found) == text.count("alloca ")
    return sum(
        int(n) * int(lanes or 1) * BYTES[vector or scalar] for n, lanes, vector, scalar in found
    )


def test_what_they_need_is_scratch() -> None:
    """Those above that do need memory, so that the test above says something."""
    for build in (winograd, packing, attention, large_sum, recurrence):
        params = [b for kernel in kernels(build) for b in kernel.params]
        assert any(b.role == "scratch" for b in params), build.__name__
