"""Phases that are written for one thread: their source, machine code and what they compute."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu.lower import module_text
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.codegen.cuda.assemble import assembled, can_assemble, disassembly
from tilewright.compiler.codegen.cuda.frontend import lowered
from tilewright.compiler.codegen.cuda.ptx import kernel_ptx
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.codegen.cuda.target import KNOWN, CudaTarget
from tilewright.compiler.codegen.cuda.toolkit import part
from tilewright.compiler.errors import LoweringError
from tilewright.compiler.kernels.ir import (
    Buffer,
    Call,
    Declare,
    If,
    Kernel,
    Local,
    Phase,
    Set,
    Stmt,
    loop,
)
from tilewright.compiler.kernels.printer import kernel_text
from tilewright.ops.expr import Expr, const, index, var
from tilewright.ops.types import f32

from .simulate import SimError, run_source

THREADS, WIDTH = 64, 4
SIZE = THREADS * WIDTH
X, Y = Buffer("x", f32, 2 * SIZE - 8, "in"), Buffer("y", f32, 2 * SIZE, "out")
ITEM, T = var("item", 2), var("t", THREADS)
HELD, ROW = Local("held", f32, (SIZE,), shared=True), Local("row", f32, (WIDTH,))


def mirrored(*, commit: bool = True, wait: int = 0, meet: bool = True, twice: bool = False,
             shift: int = 0) -> Kernel:  # fmt: skip
    """y = the rows of x, zeros behind its end, in reverse within each block, plus one."""
    k = var("k", WIDTH)
    at, mirror = T * WIDTH, (THREADS - 1 - T) * WIDTH
    from_x = ITEM * SIZE + at
    inside = from_x < X.elements
    fetch = Call("cp_async_zero", (HELD, at + shift, X, from_x, 16, inside))
    body: list[Stmt] = [Declare(HELD), fetch]
    body += [Call("cp_commit")] * commit
    body += [Call("cp_wait", (wait,))] * (wait >= 0)
    body += [Call("barrier")] * meet
    body += [
        Declare(ROW), Call("load_vector", (ROW, index(0), HELD, mirror, WIDTH)),
        loop(k, (Set(ROW, (k,), ROW[k] + 1.0),), "unroll"),
        Call("store_vector", (Y, ITEM * SIZE + at, ROW, index(0), WIDTH)),
    ]  # fmt: skip
    body += [fetch] * twice
    return Kernel("test", 1, (), (X, Y), (Phase(2, ITEM, tuple(body), THREADS, T),))


def ran(kernel: Kernel) -> np.ndarray:
    source = kernel_source(kernel)
    x, y = np.arange(X.elements, dtype=np.float32), np.full(Y.elements, 77, np.float32)
    run_source(source.text, source.entries, [("x", x, False), ("y", y, True)])
    return y


def test_threads_copy_wait_and_meet() -> None:
    x = np.zeros(Y.elements, np.float32)
    x[: X.elements] = np.arange(X.elements)
    want = x.reshape(2, THREADS, WIDTH)[:, ::-1].reshape(-1) + 1
    np.testing.assert_array_equal(ran(mirrored()), want)


def test_the_source_says_what_a_thread_does() -> None:
    source = kernel_source(mirrored())
    assert "# 2 blocks of 64 threads, 1024 bytes of shared memory" in source.text
    assert "held = shared_f32(0, 256)" in source.text
    assert re.search(r"cp_async_zero\(held, t \* 4, x, \w+, 16, \w+ < 504\)", source.text)
    (entry,) = source.entries
    assert (entry.blocks, entry.threads, entry.shared_bytes) == (2, 64, 1024)


def test_the_text_of_a_kernel_holds_all_of_it() -> None:
    text = kernel_text(mirrored())
    assert "by 64 threads t:" in text and "held = shared align 16(f32, 256)" in text
    assert "cp_wait(<0>)" in text
    assert len({kernel_text(mirrored(wait=n)) for n in (0, 1)}) == 2


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (mirrored(wait=1), "while a copy to it is on its way"),
        (mirrored(wait=-1), "while a copy to it is on its way"),
        (mirrored(commit=False), "while a copy to it is on its way"),
        (mirrored(meet=False), "race: thread|before anything was written|on its way"),
        (mirrored(twice=True), "race: thread|ends with copies on their way"),
        (mirrored(shift=1), "multiple of 16 bytes|outside"),
    ],
)  # fmt: skip
def test_mistakes_are_found(wrong: Kernel, what: str) -> None:
    with pytest.raises(SimError, match=what):
        ran(wrong)


def kernel(*body: Stmt, threads: int = THREADS, thread: Expr | None = T) -> Kernel:
    return Kernel("test", 1, (), (X, Y), (Phase(2, ITEM, body, threads, thread),))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (kernel(Call("frobnicate")), "no intrinsic frobnicate"),
        (kernel(Call("cp_wait")), "cp_wait takes 1 arguments: literal n"),
        (kernel(Call("cp_wait", (index(1),))), "cp_wait takes literal n where"),
        (
            kernel(Declare(ROW), Call("cp_async", (ROW, index(0), X, index(0), 16))),
            "shared a where",
        ),
        (kernel(Declare(Local("a", f32, (2, 2), shared=True))), "has 2 axes, not one"),
        (kernel(threads=2048), "a block of 2048 threads"),
        (kernel(thread=None), "numbered by None"),
        (kernel(loop(var("v", 64), (), "vector", lanes=64)), "in a phase for one thread"),
    ],
)
def test_what_is_not_a_phase_for_one_thread_is_refused(wrong: Kernel, what: str) -> None:
    with pytest.raises(LoweringError, match=f"kernel template test: .*{what}"):
        kernel_source(wrong)


def test_cpus_refuse_intrinsics() -> None:
    with pytest.raises(LoweringError, match="CPU has no lowering for the statement Call"):
        module_text(mirrored(), host().arithmetic)


@pytest.mark.parametrize("arch", KNOWN)
def test_code(arch: str) -> None:
    pytest.importorskip("numba.cuda", reason="numba-cuda is not there")
    made, target = mirrored(), CudaTarget(arch)
    source = kernel_source(made)
    ptx = kernel_ptx(made, source.entries, lowered(source, made.params, target), target)
    assert ".extern .shared .align 1024 .b8 tw_shared[]" in ptx
    assert re.search(r"cp\.async\.cg\.shared\.global", ptx) and "cp.async.wait_group" in ptx
    assert "ld.shared.v4" in ptx and re.search(r"st\.global\.v[24]", ptx)
    assert ".local" not in ptx and "call" not in ptx
    if can_assemble() and part("nvdisasm"):
        machine = disassembly(assembled(ptx, target).cubin)
        assert "LDGSTS" in machine and "LDS.128" in machine and "STG.E.128" in machine


def test_branches_may_differ_between_threads() -> None:
    one = If(T < 3, (Call("store_vector", (Y, T * WIDTH, ROW, index(0), WIDTH)),))
    filled = loop(var("k", WIDTH), (Set(ROW, (var("k", WIDTH),), const(2.0, f32)),), "unroll")
    made = Kernel("test", 1, (), (X, Y), (Phase(1, var("item", 1), (Declare(ROW), filled, one),
                                                THREADS, T),))  # fmt: skip
    y = ran(made)
    assert (y[:12] == 2).all() and (y[12:] == 77).all()
