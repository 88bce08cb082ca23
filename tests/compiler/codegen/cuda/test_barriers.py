"""Barriers stand where threads meet in memory, and only there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tilewright.compiler.codegen.cuda.barriers import barriers
from tilewright.compiler.codegen.cuda.source import kernel_source
from tilewright.compiler.errors import LoweringError
from tilewright.compiler.kernels.ir import (
    Buffer,
    Declare,
    For,
    If,
    Kernel,
    Local,
    Phase,
    Set,
    Stmt,
    Store,
    Transpose,
    loop,
)
from tilewright.ops.expr import Expr, apply, const, index, var
from tilewright.ops.types import f32

X, Y, S = Buffer("x", f32, 64, "in"), Buffer("y", f32, 64, "out"), Buffer("s", f32, 64, "scratch")
LANE, K = var("lane", 64), var("k", 4)
SUM = Local("sum", f32, (), 64)


def lanes(buffer: Buffer, value: Expr | float, at: Expr = LANE) -> For:
    body = Store(buffer, at, value if isinstance(value, Expr) else const(value, f32))
    return loop(LANE, (body,), "vector", lanes=64)


def one(buffer: Buffer, value: Expr | float = 0.0) -> Store:
    return Store(buffer, index(0), value if isinstance(value, Expr) else const(value, f32))


def found(*body: Stmt, inplace: tuple[tuple[int, int], ...] = ()) -> list[int]:
    """The positions of the top-level statements that a barrier stands ahead of."""
    phase = Phase(2, var("item", 2), body)
    ahead = barriers(Kernel("test", 1, (), (X, Y, S), (phase,), inplace=inplace), phase, True)
    return [k for k, s in enumerate(body) if id(s) in ahead]


MIRROR = 63 - LANE


@pytest.mark.parametrize(
    ("body", "ahead"),
    [
        ((lanes(S, 1.0), lanes(Y, S[MIRROR])), [1]),  # read after written
        ((lanes(Y, S[MIRROR]), lanes(S, 1.0)), [1]),  # written after read
        ((lanes(S, 1.0), lanes(S, 2.0)), [1]),
        ((lanes(S, X[LANE]), lanes(Y, X[MIRROR])), []),  # both read
        ((lanes(S, 1.0), lanes(Y, S[MIRROR]), lanes(Y, S[LANE], MIRROR)), [1, 2]),
        ((one(S), lanes(Y, S[0])), [1]),
        ((one(S), one(S, S[0])), []),  # one thread's own affair
        ((one(S, S[0]), lanes(Y, S[0])), [1]),
    ],
)  # fmt: skip
def test_statements_in_a_row(body: Sequence[Stmt], ahead: list[int]) -> None:
    assert found(*body) == ahead


def test_rounds_of_a_loop_follow_each_other() -> None:
    write, read = lanes(S, 1.0), lanes(Y, S[MIRROR])
    phase = Phase(2, var("item", 2), (loop(K, (write, read)),))
    ahead = barriers(Kernel("test", 1, (), (X, Y, S), (phase,)), phase, True)
    assert {id(write), id(read)} == ahead


def test_both_arms_of_a_branch_count() -> None:
    branch = If(X[0] < 1.0, (lanes(S, 1.0),), (lanes(Y, 1.0),))
    assert found(branch, lanes(S, 2.0)) == [1]
    assert found(branch, lanes(Y, 2.0)) == [1]


def test_a_branch_reads_its_condition() -> None:
    assert found(lanes(S, 1.0), If(S[3] < 1.0, (one(Y),))) == [1]


def test_what_may_be_the_same_memory_is_taken_to_be() -> None:
    body = (lanes(S, X[MIRROR]), lanes(Y, 1.0))
    assert found(*body) == []
    assert found(*body, inplace=((1, 0),)) == [1]


def test_combining_lanes_is_a_barrier() -> None:
    joined = Set(Local("t", f32), (), apply("hsum", (SUM.value,), f32))
    assert found(lanes(S, 1.0), joined, lanes(Y, S[MIRROR])) == []


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ((lanes(S, 1.0), loop(LANE, (Store(Y, LANE, const(1.0, f32)),), "vector", lanes=32)),
         r"\[32, 64\] lanes"),
        ((loop(LANE, (lanes(S, 1.0, K),), "vector", lanes=64),), "cannot nest"),
        ((loop(LANE, (Set(Local("t", f32), (), X[LANE]),), "vector", lanes=64),), "no lanes"),
        ((loop(LANE, (Store(Y, LANE, X[0]),), "vector", lanes=48),), "whole warps"),
        ((Declare(SUM), Transpose(SUM)), "no lowering for the statement Transpose"),
        ((Store(Y, K, X[0]),), "used outside its loop"),
        ((Set(Local("t", f32, (2,)), (index(0),), X[0]),), "before it is declared"),
    ],
)  # fmt: skip
def test_what_has_no_form_on_a_gpu_is_refused(body: Sequence[Stmt], what: str) -> None:
    phase = Phase(2, var("item", 2), tuple(body))
    with pytest.raises(LoweringError, match=f"kernel template test: .*{what}"):
        kernel_source(Kernel("test", 1, (), (X, Y, S), (phase,)))
