"""What lies on the stack, and where."""

from __future__ import annotations

import numpy as np

from tilewright.compiler.codegen.cpu.registers import Registers
from tilewright.compiler.codegen.cpu.target import NAMED
from tilewright.compiler.kernels.ir import Declare, Local, Set, Stmt, Store, loop
from tilewright.compiler.kernels.printer import kernel_text
from tilewright.ops.expr import var
from tilewright.ops.types import f32

from .running import kernel_of, listing, run
from .test_lower import buffers, numbers, tile


def test_what_registers_have_no_room_for_lies_on_cache_lines() -> None:
    text = listing(tile(40, 1, 16), NAMED["x86-64-avx512"])
    spilled = [x for x in text.splitlines() if "(%rsp)" in x and "zmm" in x and "vmov" in x]
    assert spilled and not [x for x in spilled if "vmovup" in x], text
    assert "andq\t$-64, %rsp" in text


def test_locals_that_are_set_aside_live_on_the_stack() -> None:
    n, lanes = 3, 8
    (x, y), i, lane = buffers(n * lanes), var("i", n), var("l", lanes)
    for aside in (False, True):
        t = Local("t", f32, (n,), lanes, aside=aside)

        def each(s: Stmt) -> Stmt:
            return loop(i, (loop(lane, (s,), "vector", lanes=lanes),), "unroll")

        k = kernel_of((x, y), Declare(t), each(Set(t, (i,), x[i * lanes + lane])),
                      each(Store(y, i * lanes + lane, t[i] + 1.0)))  # fmt: skip
        assert ("aside" in kernel_text(k)) == aside
        assert (t in Registers(k.phases[0])) != aside
        a = numbers(n * lanes)
        np.testing.assert_array_equal(run(k, [a, None])[1], a + 1)
