"""The register tile that all contractions share, and the interpreter's own checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tilewright.compiler.inspect.interpret import KernelError, run_kernel
from tilewright.compiler.kernels.ir import (
    Buffer,
    For,
    If,
    Kernel,
    Phase,
    Prefetch,
    Set,
    Stmt,
    Store,
    loop,
    statements,
)
from tilewright.compiler.kernels.microkernel import (
    AHEAD,
    LINE,
    NEXT,
    Level,
    MicroKernel,
    Panel,
    Rows,
    Segment,
    issue_slots,
    most_rows,
    round_width,
    simplified,
)
from tilewright.ops.expr import Expr, compare, const, index, linear, select, var
from tilewright.ops.types import f32

from .support import AVX2, AVX512

A = Buffer("a", f32, 400, "in")
B = Buffer("b", f32, 400, "const")
Y = Buffer("y", f32, 96, "out")


def kernel(*body: Stmt, params: tuple[Buffer, ...] = (A, B, Y), items: int = 1) -> Kernel:
    return Kernel("test", 1, (), params, (Phase(items, var("item", items), body),))


def test_one_tile() -> None:
    """Two segments, two axes of rows, a tail of three lanes."""
    micro = MicroKernel(f32, 4, (2, 3), 3)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(400).astype(np.float32) for _ in range(2))
    segments = [Segment((Level(2, 50), Level(3, 7), Level(5, 1))), Segment((Level(4, 2),), 100, 30)]
    done = micro.finish(
        lambda r, j, lane, value: [Store(Y, r[0] * 40 + r[1] * 12 + j * 4 + lane, value)], tail=3
    )
    body = (
        *micro.start(lambda r, j, lane: B[j * 4 + lane]),
        *micro.accumulate(Rows(A, index(9), (60, 8)), Panel(B, index(1), 11, 3), segments),
        done,
    )
    found = run_kernel(kernel(*body), [a, b, None])[2]
    walk = [100 * 0 + i * 50 + j * 7 + k for i in range(2) for j in range(3) for k in range(5)]
    walk += [100 + 2 * k for k in range(4)]
    for r0 in range(2):
        for r1 in range(3):
            for c in range(11):
                want = b[c] + sum(
                    float(a[9 + r0 * 60 + r1 * 8 + w]) * float(b[1 + 11 * s + c])
                    for s, w in enumerate(walk)
                )
                assert found[r0 * 40 + r1 * 12 + c] == pytest.approx(want, rel=1e-5, abs=1e-5)
            assert np.isnan(found[r0 * 40 + r1 * 12 + 11])


@pytest.mark.parametrize(("count", "partial"), [(9, 4), (9, 2), (8, 3), (7, 4), (2, 1)])
def test_partial_sums_add_up(count: int, partial: int) -> None:
    """Even partial sums, some with a rest, and one alone, behind another segment."""
    micro = MicroKernel(f32, 4, (2,), 2)
    rng = np.random.default_rng(count)
    a, b = (rng.integers(-9, 9, 400).astype(np.float32) for _ in range(2))
    levels = Level(count, 20), Level(2, 7), Level(3, 1)
    segments = [Segment((Level(3, 11),)), Segment(levels, 5, 3, partial=partial)]
    body = (
        *micro.start(lambda r, j, lane: B[j * 4 + lane]),
        *micro.accumulate(Rows(A, index(2), (40,)), Panel(B, index(1), 6), segments),
        micro.finish(lambda r, j, lane, y: [Store(Y, r[0] * 8 + j * 4 + lane, y)]),
    )
    found = run_kernel(kernel(*body), [a, b, None])[2]
    walk = [11 * k for k in range(3)]
    walk += [5 + 20 * i + 7 * j + k for i in range(count) for j in range(2) for k in range(3)]
    for r in range(2):
        terms = [a[2 + 40 * r + w] * b[1 + 6 * s :][:8] for s, w in enumerate(walk)]
        np.testing.assert_array_equal(found[r * 8 :][:8], b[:8] + np.sum(terms, axis=0))


def test_partial_sums_are_even_where_they_can_be() -> None:
    def steps(count: int, partial: int) -> int:
        return Segment((Level(count, 1), Level(5, 1)), partial=partial).per_partial

    assert steps(32, 4) == 4 and steps(32, 5) == 4 and steps(18, 4) == 3
    assert steps(17, 4) == 4, "and a rest of one"
    assert steps(7, 4) == 0, "too few for two"
    assert steps(32, 0) == 0


@pytest.mark.parametrize("steps", [1, 3, 4, 8, 13])
def test_chains_take_turns(steps: int) -> None:
    """Two rows and two vectors, four sums for each element. Whole numbers, whose sum is exact only
    if steps 0 and 4 feed the same sum and the steps between them others."""
    micro = MicroKernel(f32, 4, (2,), 2, chains=4)
    rng = np.random.default_rng(steps)
    a, b = (rng.integers(-9, 10, 400).astype(np.float32) for _ in range(2))
    if steps > 4:
        a[[3, 53, 11, 61]], b[1:9], b[33:41] = 4096, 8192, -8192
    done = micro.finish(lambda r, j, lane, value: [Store(Y, r[0] * 8 + j * 4 + lane, value)])
    body = (
        *micro.start(lambda r, j, lane: A[390 + r[0]] * 4),
        *micro.accumulate(Rows(A, index(3), (50,)), Panel(B, index(1), 8),
                          [Segment((Level(steps, 2),))]),
        done,
    )  # fmt: skip
    found = run_kernel(kernel(*body), [a, b, None])[2][:16].reshape(2, 8)
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    left = wide_a[3:103].reshape(2, 50)[:, : 2 * steps : 2]
    want = 4 * wide_a[390:392, None] + left @ wide_b[1 : 1 + 8 * steps].reshape(steps, 8)
    np.testing.assert_array_equal(found, want)


SPAN = (index(1), var("item", 1) + 3)
ENDINGS = {
    **{f"{n} steps": [Segment((Level(n, 3),))] for n in (1, 3, 4, 5, 8, 13, 16)},
    "blocks": [Segment((Level(3, 40), Level(8, 1)))],
    "blocks with a rest": [Segment((Level(2, 40), Level(9, 1))), Segment((Level(5, 1),), 90, 18)],
    "uneven blocks": [Segment((Level(3, 40), Level(7, 1)))],
    "blocks of taps": [Segment((Level(2, 60), Level(2, 25), Level(8, 1)))],
    "few channels": [Segment((Level(2, 40), Level(3, 9), Level(3, 1)))],
    "some taps": [Segment((Level(4, 40, 6, SPAN), Level(2, 9), Level(3, 1)))],
    "one column of taps": [Segment((Level(4, 40, 2, SPAN),))],
    "some rows": [Segment((Level(2, 40, 9),), inner=(
        Segment((Level(3, 1),), rows=((0, 2), (1, 5))),
        Segment((Level(2, 9), Level(3, 1)), 3, 3, rows=((0, 2), (0, 4))),
    ))],
    "one tap of some rows": [Segment((Level(2, 40, 6),), inner=(
        Segment((Level(3, 1),)), Segment((Level(3, 1),), 3, 3, rows=((0, 2), (2, 5))),
    ))],
    "partial sums": [Segment((Level(4, 40), Level(5, 1)), partial=2)],
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
@pytest.mark.parametrize("chains", [1, 2])
def test_groups_of_rows_end_with_the_same_sums(name: str, chains: int) -> None:
    """Ten rows of three vectors are groups of several; the sums are those without groups."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 10, 400).astype(np.float32) for _ in range(2))
    micro = MicroKernel(f32, 4, (2, 5), 3, chains=chains)
    rows, panel = Rows(A, index(2), (60, 7)), Panel(B, index(1), 12)
    y = Buffer("y", f32, 120, "out")

    def done(r: tuple[Expr, ...], j: Expr, lane: Expr, value: Expr) -> list[Stmt]:
        return [Store(y, r[0] * 60 + r[1] * 12 + j * 4 + lane, value)]

    def groups(some: Sequence[tuple[int, int]]) -> Stmt:
        return micro.finish(done, rows=some)

    plain = (*micro.start(), *micro.accumulate(rows, panel, ENDINGS[name]), micro.finish(done))
    grouped = (*micro.start(), *micro.accumulate(rows, panel, ENDINGS[name], then=groups))
    want, found = (
        run_kernel(kernel(*body, params=(A, B, y)), [a, b, None])[2] for body in (plain, grouped)
    )
    np.testing.assert_array_equal(found, want)
    order = [isinstance(s, Store) for s in statements(grouped)
             if isinstance(s, Store) or (isinstance(s, Set) and s.local == micro.acc)]  # fmt: skip
    between = order[order.index(True) : len(order) - order[::-1].index(True)]
    assert (False in between) == (name != "partial sums"), "multiply-adds between the stores"


def test_groups_of_rows() -> None:
    def groups(rows: tuple[int, ...], blocks: int) -> list[tuple[tuple[int, int], ...]]:
        return MicroKernel(f32, 16, rows, blocks).groups()

    assert groups((6,), 4) == [((0, 2),), ((2, 4),), ((4, 6),)]
    assert [hi - lo for ((lo, hi),) in groups((28,), 1)] == [7, 7, 7, 7]
    assert groups((2, 14), 1) == [((k, k + 1), c) for k in (0, 1) for c in ((0, 7), (7, 14))]
    assert groups((7, 2), 2) == [((0, 1), (0, 2)), ((1, 3), (0, 2)), ((3, 5), (0, 2)),
                                 ((5, 7), (0, 2))]  # fmt: skip
    assert groups((1,), 1) == [((0, 1),)]


def test_a_panel_from_far_away_is_asked_for_twice() -> None:
    """Every line of a step: long before for the second cache, and for the first one in time."""
    micro = MicroKernel(f32, 16, (2,), 2)
    rows, segments = Rows(A, index(0), (40,)), [Segment((Level(1, 1),))]
    body = micro.accumulate(rows, Panel(B, index(0), 32, far=True), segments)
    hints = [s for s in statements(body) if isinstance(s, Prefetch)]
    asked = {(linear(s.offset)[1] * 4, s.far) for s in hints if s.buffer is B}
    assert asked == {(at + k, at == AHEAD) for at in (AHEAD, NEXT) for k in (0, LINE)}
    near = micro.accumulate(rows, Panel(B, index(0), 32), segments)
    assert not any(isinstance(s, Prefetch) for s in statements(near))


def test_loops_that_continue_each_other_merge() -> None:
    assert simplified([Level(3, 48), Level(3, 16), Level(16, 1)]) == (Level(144, 1),)
    assert simplified([Level(1, 7), Level(3, 50), Level(1, 9), Level(16, 1)]) == (
        Level(3, 50), Level(16, 1)
    )  # fmt: skip
    assert simplified([Level(1, 7)]) == (Level(1, 0),)


def test_rounds() -> None:
    assert round_width(Level(16, 1), [(14, 16)]) == 4
    assert round_width(Level(9, 1), [(14, 16)]) == 3
    assert round_width(Level(7, 1), [(14, 16)]) == 4
    assert round_width(Level(7, 1), [(14, 2)]) == 1, "step 2 of one row is step 0 of the next"


def test_tiles_fit_the_registers() -> None:
    for registers in (16, 32):
        for blocks in range(1, 9):
            rows = most_rows(blocks, registers)
            assert rows * blocks + blocks + 1 <= registers
            assert (rows + 1) * blocks + blocks + 1 > registers
    assert (most_rows(1, 32), most_rows(1, 32, chains=2), most_rows(1, 32, chains=4)) == (30, 15, 7)
    assert issue_slots(1, 1, AVX512, 0, chains=2) < issue_slots(1, 1, AVX512, 0)
    assert issue_slots(6, 4, AVX512, 0) / 24 < issue_slots(3, 4, AVX512, 0) / 12
    assert issue_slots(4, 2, AVX2, 0) < issue_slots(4, 2, AVX2, 1 << 20)


# --------------------------------------------------------------------------- the oracle's own eyes


def _vector(body: tuple[Stmt, ...], hi: int = 4) -> For:
    return loop(var("l", 8), body, "vector", hi=hi, lanes=4)


LANE, ITEM = var("l", 8), var("item", 4)
ONE = const(1, f32)
WRONG = {
    "out of bounds": (kernel(Store(Y, var("item", 1) + 96, ONE)), "which|of 96"),
    "negative": (kernel(Store(Y, index(0), A[var("item", 1) - 1])), "of 400"),
    "read only": (kernel(Store(A, index(0), ONE)), "read only"),
    "undeclared": (kernel(Set(MicroKernel(f32, 4, (1,), 1).acc, (index(0),) * 2, ONE)),
                   "declared"),
    "race": (kernel(Store(Y, index(3), ONE), items=4), "another item"),
    "one place": (kernel(_vector((Store(Y, index(3), ONE),))), "same element"),
    "nested lanes": (kernel(_vector((_vector((Store(Y, LANE, ONE),)),))), "inside a vector"),
    "open bounds": (kernel(loop(LANE, (), hi=9)), "declared"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_interpreter_sees(name: str) -> None:
    bad, message = WRONG[name]
    with pytest.raises(KernelError, match=message):
        run_kernel(bad, [np.zeros(400, np.float32)] * 2 + [None])


def test_the_interpreter_runs_guards_and_partial_rounds() -> None:
    guarded = select(compare("lt", LANE, 6), A[LANE + 394], ONE * 2)
    good = kernel(
        _vector((Store(Y, LANE, guarded),), hi=7),
        If(compare("lt", var("item", 1), 1), (Store(Y, index(9), ONE),)),
    )
    a = np.arange(400, dtype=np.float32)
    out = run_kernel(good, [a, a, None])[2]
    assert out[:7].tolist() == [394, 395, 396, 397, 398, 399, 2]
    assert np.isnan(out[7]) and out[9] == 1
    aliased = replace(Y, elements=400)
    shift = kernel(_vector((Store(aliased, LANE, A[LANE] + 1),), hi=8), params=(A, aliased))
    assert run_kernel(shift, [a, a])[1][:9].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8]
