"""Kernel IR statements become machine code that does what they say and touches nothing else.

All memory borders on pages without access: a masked-off lane that is read or written is a crash.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu.llvm_text import Arithmetic
from tilewright.compiler.codegen.cpu.lower import module_text
from tilewright.compiler.codegen.cpu.target import NAMED
from tilewright.compiler.errors import LoweringError
from tilewright.compiler.kernels.ir import (
    Buffer,
    Comment,
    Declare,
    If,
    Kernel,
    Local,
    Phase,
    Prefetch,
    Set,
    Stmt,
    Store,
    loop,
)
from tilewright.ops.expr import Expr, apply, binary, const, index, select, unary, var
from tilewright.ops.types import DType, boolean, f32, f64, i32, i64

from .running import kernel_of, listing, run

Array = np.ndarray[Any, Any]
SENTINEL = np.full(1, 0xA5A5A5A5, np.uint32).view(np.float32)[0]
both_ends = pytest.mark.parametrize("at_end", [True, False], ids=["end", "start"])


def numbers(n: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def buffers(n: int, m: int | None = None) -> tuple[Buffer, Buffer]:
    """x: f32[n], in; y: f32[m], out."""
    return Buffer("x", f32, n, "in"), Buffer("y", f32, n if m is None else m, "out")


# --------------------------------------------------------------------------- vector loops


@both_ends
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_tails_with_static_bounds_are_masked(lanes: int, at_end: bool) -> None:
    for n in (1, 2, 3, 5, 15, 16, 17, 31, 33, 48):
        (x, y), i = buffers(n), var("i", n)
        k = kernel_of((x, y), loop(i, (Store(y, i, x[i] + 1.0),), "vector", lanes=lanes))
        a = numbers(n)
        np.testing.assert_array_equal(run(k, [a, None], at_end)[1], a + 1)


@pytest.mark.parametrize(("lo", "hi"), [(3, 3), (5, 2), (0, 1), (7, 40), (16, 32), (1, 17)])
def test_vector_loops_over_part_of_a_buffer_leave_the_rest(lo: int, hi: int) -> None:
    (x, y), i = buffers(40), var("i", 40)
    k = kernel_of((x, y), loop(i, (Store(y, i, x[i]),), "vector", lo=lo, hi=hi, lanes=8))
    a = numbers(40)
    want = np.full(40, SENTINEL)
    want[lo:hi] = a[lo:hi]
    np.testing.assert_array_equal(run(k, [a, None])[1], want)


@both_ends
def test_tails_with_bounds_from_memory_are_masked(at_end: bool) -> None:
    """Every pair of bounds, the empty and the reversed ones too."""
    n = 21
    (x, y), i = buffers(n), var("i", n)
    b = Buffer("b", i64, 2, "in")
    k = kernel_of((x, b, y), loop(i, (Store(y, i, x[i]),), "vector", lo=b[0], hi=b[1], lanes=8))
    a = numbers(n)
    for lo, hi in product((0, 1, 8, 13, 21), (0, 1, 7, 9, 16, 17, 20, 21)):
        want = np.full(n, SENTINEL)
        want[lo:hi] = a[lo:hi]
        got = run(k, [a, np.array([lo, hi]), None], at_end)[2]
        np.testing.assert_array_equal(got, want, f"{lo}..{hi}")


def test_items_share_a_vector_loop() -> None:
    n, part = 100, 24
    (x, y), i, item = buffers(n), var("i", n), var("item", 5)
    bound = binary("min", item * part + part, n)
    body = loop(i, (Store(y, i, x[i] * 2.0),), "vector", lo=item * part, hi=bound, lanes=16)
    k = Kernel("test", 1, (), (x, y), (Phase(5, item, (body,)),))
    a = numbers(n)
    np.testing.assert_array_equal(run(k, [a, None])[1], a * 2)


@both_ends
@pytest.mark.parametrize("stride", [2, 3, -1, -2])
def test_strided_accesses_gather_and_scatter(stride: int, at_end: bool) -> None:
    count = 21
    n = (count - 1) * abs(stride) + 1
    (x, y), i = buffers(n, count), var("i", count)
    at = i * stride + (n - 1 if stride < 0 else 0)
    a = numbers(n)
    gather = kernel_of((x, y), loop(i, (Store(y, i, x[at]),), "vector", lanes=8))
    np.testing.assert_array_equal(run(gather, [a, None], at_end)[1], a[::stride])
    u, v = buffers(count, n)
    scatter = kernel_of((u, v), loop(i, (Store(v, at, u[i]),), "vector", lanes=8))
    want = np.full(n, SENTINEL)
    want[::stride] = a[:count]
    np.testing.assert_array_equal(run(scatter, [a[:count], None], at_end)[1], want)


def test_indices_from_memory_gather_and_scatter() -> None:
    n = 37
    order = np.random.default_rng(1).permutation(n)
    (x, y), i, t = buffers(n), var("i", n), Buffer("t", i64, n, "in")
    a = numbers(n)
    k = kernel_of((x, t, y), loop(i, (Store(y, i, x[t[i]]),), "vector", lanes=16))
    np.testing.assert_array_equal(run(k, [a, order, None])[2], a[order])
    k = kernel_of((x, t, y), loop(i, (Store(y, t[i], x[i]),), "vector", lanes=16))
    want = np.empty_like(a)
    want[order] = a
    np.testing.assert_array_equal(run(k, [a, order, None])[2], want)


def test_booleans_are_bytes_in_memory_and_in_masked_accesses() -> None:
    n = 21
    x, y, i = Buffer("x", boolean, n, "in"), Buffer("y", boolean, n, "out"), var("i", n)
    a = np.random.default_rng(2).integers(0, 2, n).astype(bool)
    for at, want in ((i, ~a), (index(n - 1) - i, ~a[::-1])):
        k = kernel_of((x, y), loop(i, (Store(y, i, unary("not", x[at])),), "vector", lanes=16))
        got = run(k, [a, None])[1].view(np.uint8)
        np.testing.assert_array_equal(got, want.astype(np.uint8))


# --------------------------------------------------------------------------- guarded loads


@both_ends
@pytest.mark.parametrize("lanes", [0, 8, 16])
def test_a_select_guards_its_loads(lanes: int, at_end: bool) -> None:
    """Neighbours beyond both ends: a window with padding."""
    n = 37
    (x, y), i = buffers(n), var("i", n)
    before = select(index(0) < i, x[i - 1], const(-1.0, f32))
    behind = select(i < n - 1, x[i + 1], const(-2.0, f32))
    how: dict[str, Any] = {"kind": "vector", "lanes": lanes} if lanes else {}
    k = kernel_of((x, y), loop(i, (Store(y, i, before + 4.0 * behind),), **how))
    a = numbers(n)
    want = np.r_[np.float32(-1), a[:-1]] + 4 * np.r_[a[1:], np.float32(-2)]
    np.testing.assert_array_equal(run(k, [a, None], at_end)[1], want)


@pytest.mark.parametrize("lanes", [0, 8])
def test_nested_selects_guard_together(lanes: int) -> None:
    """Each guard alone lets through indices that the other one forbids."""
    n, far = 21, 1 << 40
    (x, y), i = buffers(n), var("i", n)
    c = Buffer("c", boolean, n, "in")
    where = select(c[i], i, index(far) + i)
    inner = select(c[i], x[where], const(1.0, f32))
    value = select(i < 13, select(unary("not", c[i]), const(2.0, f32), x[where]), inner)
    how: dict[str, Any] = {"kind": "vector", "lanes": lanes} if lanes else {}
    k = kernel_of((x, c, y), loop(i, (Store(y, i, value),), **how))
    a, on = numbers(n), np.random.default_rng(3).integers(0, 2, n).astype(bool)
    want = np.where(on, a, np.where(np.arange(n) < 13, np.float32(2), np.float32(1)))
    np.testing.assert_array_equal(run(k, [a, on, None])[2], want)


def test_a_uniform_load_runs_only_if_some_lane_wants_it() -> None:
    """The offset is the same for all lanes, and no valid one unless the flag says so."""
    n = 21
    (x, y), i = buffers(n), var("i", n)
    at = Buffer("at", i64, 1, "in")
    guard = Buffer("guard", i32, n, "in")
    wanted = unary("not", apply("eq", (guard[i], const(0, i32)), boolean))
    value = select(wanted, x[at[0]], const(5.0, f32))
    k = kernel_of((x, at, guard, y), loop(i, (Store(y, i, value),), "vector", lanes=8))
    a = numbers(n)
    none = np.zeros(n, np.int32)
    got = run(k, [a, np.array([1 << 40]), none, None])[3]
    np.testing.assert_array_equal(got, np.float32(5))
    some = none.copy()
    some[[3, 20]] = 1
    got = run(k, [a, np.array([7]), some, None])[3]
    np.testing.assert_array_equal(got, np.where(some, a[7], np.float32(5)))


def test_masked_off_lanes_of_a_tail_do_not_open_a_guard() -> None:
    """In the tail the guard holds only in lanes past the end, so the load must not run."""
    n = 17
    (x, y), i = buffers(n), var("i", n)
    value = select(index(16) < i + 0 * i, x[index(1 << 40)], const(3.0, f32))
    beyond = select(apply("lt", (index(16), apply("add", (i, index(0)), i64)), boolean),
                    x[index(1 << 40)], const(3.0, f32))  # fmt: skip
    for v in (value, beyond):
        k = kernel_of((x, y), loop(i, (Store(y, i, v),), "vector", lanes=16))
        np.testing.assert_array_equal(run(k, [numbers(n), None])[1], np.float32(3))


@pytest.mark.parametrize("lanes", [0, 8])
def test_a_uniform_condition_branches(lanes: int) -> None:
    n = 21
    (x, y), i = buffers(n), var("i", n)
    flag = Buffer("flag", boolean, 1, "in")
    value = select(flag[0], x[i], x[i + (1 << 40)]) + select(flag[0], const(1.0, f32), x[1 << 40])
    how: dict[str, Any] = {"kind": "vector", "lanes": lanes} if lanes else {}
    k = kernel_of((x, flag, y), loop(i, (Store(y, i, value),), **how))
    a = numbers(n)
    np.testing.assert_array_equal(run(k, [a, np.array([True]), None])[2], a + 1)


def test_if_runs_one_arm() -> None:
    n = 12
    (x, y), i = buffers(n), var("i", n)
    flag = Buffer("flag", boolean, n, "in")
    arms = If(flag[i], (Store(y, i, x[i]),), (Store(y, i, -x[i]), Comment("other")))
    alone = If(unary("not", flag[i]), (Store(y, i, x[i] * 2.0),))
    a, on = numbers(n), np.arange(n) % 3 == 0
    k = kernel_of((x, flag, y), loop(i, (arms, alone)))
    np.testing.assert_array_equal(run(k, [a, on, None])[2], np.where(on, a, a * 2))
    always = If(const(False, boolean), (Store(y, index(1 << 40), x[0]),), (Store(y, i, x[i]),))
    np.testing.assert_array_equal(run(kernel_of((x, y), loop(i, (always,))), [a, None])[1], a)


# --------------------------------------------------------------------------- what is remembered


def test_loads_of_written_buffers_see_stores() -> None:
    y = Buffer("y", f32, 4, "out")
    x = Buffer("x", f32, 4, "in")
    s = Buffer("s", f32, 1, "scratch")
    k = kernel_of(
        (x, y, s),
        Store(s, index(0), x[0]), Store(y, index(0), s[0]),
        Store(s, index(0), s[0] + 1.0), Store(y, index(1), s[0]),
        Store(s, index(0), s[0] * s[0]), Store(y, index(2), s[0]), Store(y, index(3), y[2] + y[0]),
    )  # fmt: skip
    a = np.array([2, 0, 0, 0], np.float32)
    np.testing.assert_array_equal(run(k, [a, None, None])[1], np.float32([2, 3, 9, 11]))


def test_loads_of_locals_see_assignments() -> None:
    (x, y), t = buffers(3, 3), Local("t", f32)
    k = kernel_of(
        (x, y),
        Declare(t), Set(t, (), x[0]), Store(y, index(0), t.value + x[1]),
        Set(t, (), t.value + x[1]), Store(y, index(1), t.value + x[1]),
        Set(t, (), t.value + x[1]), Store(y, index(2), t.value + x[1]),
    )  # fmt: skip
    a = np.array([1, 10, 0], np.float32)
    np.testing.assert_array_equal(run(k, [a, None])[1], np.float32([11, 21, 31]))


def test_a_loop_carried_local_is_read_anew_in_each_round() -> None:
    n = 9
    (x, y), t, i = buffers(n), Local("t", f32), var("i", n)
    body = (Set(t, (), t.value * 0.5 + x[i]), Store(y, i, t.value))
    for kind in ("serial", "unroll"):
        k = kernel_of((x, y), Declare(t), Set(t, (), const(0, f32)), loop(i, body, kind))  # type: ignore[arg-type]
        a, want, acc = numbers(n), np.empty(n, np.float32), np.float32(0)
        for j in range(n):
            acc = want[j] = acc * np.float32(0.5) + a[j]
        np.testing.assert_array_equal(run(k, [a, None])[1], want)


def test_unrolled_rounds_are_told_apart() -> None:
    """The same expression under other values of unrolled variables, nested and in sequence."""
    (x, y), i, j = buffers(12), var("i", 3), var("j", 4)
    body = Store(y, i * 4 + j, x[i * 4 + j] + x[j])
    a = numbers(12)
    want = (a.reshape(3, 4) + a[:4]).reshape(-1)
    for outer, inner in product(("serial", "unroll"), repeat=2):
        k = kernel_of((x, y), loop(i, (loop(j, (body,), inner),), outer))  # type: ignore[arg-type]
        np.testing.assert_array_equal(run(k, [a, None])[1], want, f"{outer} {inner}")
    again = kernel_of((x, y), loop(j, (Store(y, j, x[j]),), "unroll"),
                      loop(j, (Store(y, j + 8, x[j + 1]),), "unroll", hi=3),
                      loop(j, (Store(y, j + 4, x[j] * 2.0),), "unroll"),
                      Store(y, index(11), x[0]))  # fmt: skip
    got = run(again, [a, None])[1]
    np.testing.assert_array_equal(got, np.r_[a[:4], a[:4] * 2, a[1:4], a[:1]])


def test_unrolled_loops_in_either_order_are_told_apart() -> None:
    (x, y), i, j = buffers(9, 18), var("i", 3), var("j", 3)
    plain = Store(y, i * 3 + j, x[i * 3 + j] * 2.0)
    turned = Store(y, i * 3 + j + 9, x[i * 3 + j] * 2.0)
    k = kernel_of((x, y), loop(i, (loop(j, (plain,), "unroll"),), "unroll"),
                  loop(j, (loop(i, (turned,), "unroll"),), "unroll"))  # fmt: skip
    a = numbers(9)
    np.testing.assert_array_equal(run(k, [a, None])[1], np.r_[a, a] * 2)


def test_what_conditional_code_learns_is_forgotten_after_it() -> None:
    """If it were kept, later uses would not be dominated by their definition, or unguarded."""
    n = 5
    (x, y), i, j = buffers(n), var("i", n), var("j", n)
    flag = Buffer("flag", boolean, n, "in")
    deep = x[i] * x[i] + 1.0
    k = kernel_of((x, flag, y), loop(i, (
        If(flag[i], (Store(y, i, deep),), (Store(y, i, deep + deep),)),
        Store(y, i, y[i] + deep),
    )))  # fmt: skip
    a, on = numbers(n), np.array([True, False, True, False, False])
    d = a * a + 1
    np.testing.assert_array_equal(run(k, [a, on, None])[2], np.where(on, d + d, d + d + d))
    # a loop that may run no round at all
    count = Buffer("count", i64, 1, "in")
    first = x[0] * 3.0
    k = kernel_of((x, count, y), loop(j, (Store(y, j, first),), hi=count[0]),
                  Store(y, index(4), first))  # fmt: skip
    got = run(k, [a, np.array([0]), None])[2]
    np.testing.assert_array_equal(got, np.r_[[SENTINEL] * 4, a[0] * 3].astype(np.float32))
    # a uniform select: the load in its arm must not serve code outside
    guarded = select(flag[0], first, const(0, f32))
    k = kernel_of((x, flag, y), Store(y, index(0), guarded), Store(y, index(1), first))
    got = run(k, [a, ~on, None])[2]
    np.testing.assert_array_equal(got[:2], np.float32([0, a[0] * 3]))


def test_values_learned_under_a_mask_are_not_used_without_it() -> None:
    """Lanes that the guard switched off hold zeros; the same load outside wants all lanes."""
    n = 24
    (x, y), i = buffers(n), var("i", n)
    c = Buffer("c", boolean, n, "in")
    a, on = numbers(n), np.arange(n) % 2 == 0
    both = (Store(y, i, select(c[i], x[i] * 2.0, const(0, f32)) + x[i] * 2.0),)
    split = (Store(y, i, select(c[i], x[i] * 2.0, const(0, f32))), Store(y, i, y[i] + x[i] * 2.0))
    arms = (Store(y, i, select(c[i], x[i] * 4.0, x[i] * 2.0)),)
    for body in (both, split, arms):
        k = kernel_of((x, c, y), loop(i, body, "vector", lanes=8))
        np.testing.assert_array_equal(run(k, [a, on, None])[2], np.where(on, a * 4, a * 2))


def test_rounds_of_one_vector_loop_are_told_apart() -> None:
    """A tail repeats the loop's body with other first lanes."""
    n = 43
    (x, y), i, j = buffers(n), var("i", n), var("j", 2)
    body = (Store(y, i, x[i] * x[i]),)
    k = kernel_of((x, y), loop(i, body, "vector", hi=16, lanes=16),
                  loop(j, (loop(i, body, "vector", lo=16, lanes=8),)))  # fmt: skip
    a = numbers(n)
    np.testing.assert_array_equal(run(k, [a, None])[1], a * a)


def test_an_input_may_be_the_output() -> None:
    """In place, element by element: what was loaded before the store stays what it was."""
    n = 43
    (x, y), i = buffers(n), var("i", n)
    k = kernel_of((x, y), loop(i, (Store(y, i, x[i] * 2.0 + x[i]),), "vector", lanes=16))
    a = numbers(n)
    np.testing.assert_array_equal(run(k, [a, a])[1], a * 2 + a)


# --------------------------------------------------------------------------- locals and lanes


@pytest.mark.parametrize("where", ["register", "stack"])
def test_locals_keep_lanes_that_a_mask_switches_off(where: str) -> None:
    """A reduction over a partial round: lanes past the end keep their earlier value."""
    n = 21
    x, y = buffers(n, 1)
    b, i, t = Buffer("b", i64, 1, "in"), var("i", n), Local("t", f32, (2,), 16)
    at = index(1) if where == "register" else b[0]
    add = Set(t, (at,), t[at] + (x[i] + 1.0))  # a masked load gives 0, and 1 must not be added
    k = kernel_of((x, b, y), Declare(t), Set(t, (at,), const(0, f32)),
                  loop(i, (add,), "vector", lanes=16),
                  Store(y, index(0), apply("hsum", (t[at],), f32)))  # fmt: skip
    a = np.arange(1, n + 1, dtype=np.float32)
    assert run(k, [a, np.array([1]), None])[2][0] == a.sum() + n


@pytest.mark.parametrize("lanes", [0, 8])
def test_locals_come_through_loops_that_may_not_run(lanes: int) -> None:
    """Sums over a range from memory, empty ones too, inside and outside of another loop."""
    n = 21
    x, b, y = Buffer("x", f32, n, "in"), Buffer("b", i64, 2, "in"), Buffer("y", f32, 2, "out")
    i, j, t, s = var("i", n), var("j", 3), Local("t", f32, (), lanes), Local("s", f32)
    how: dict[str, Any] = {"kind": "vector", "lanes": lanes} if lanes else {}
    add = loop(i, (Set(t, (), t.value + x[i]),), lo=b[0], hi=b[1], **how)
    total = apply("hsum", (t.value,), f32) if lanes else t.value
    k = kernel_of((x, b, y), Declare(t), Declare(s), Set(t, (), const(0, f32)),
                  Set(s, (), const(0, f32)), add, Store(y, index(0), total),
                  loop(j, (Set(t, (), const(0, f32)), add, Set(s, (), s.value + total))),
                  Store(y, index(1), s.value))  # fmt: skip
    a = np.arange(1, n + 1, dtype=np.float32)
    for lo, hi in ((0, 21), (0, 8), (3, 4), (5, 20), (4, 4), (9, 2)):
        want = a[lo:hi].sum()
        got = run(k, [a, np.array([lo, hi]), None])[2]
        np.testing.assert_array_equal(got, [want, 3 * want], f"{lo}..{hi}")


def test_locals_come_through_branches() -> None:
    """Set in one arm, in both, in none; the branch inside a loop, the loop inside a branch."""
    n = 12
    (x, y), i, j = buffers(n), var("i", n), var("j", 4)
    flag = Buffer("flag", boolean, n, "in")
    t, u = Local("t", f32), Local("u", f32, (2,))
    k = kernel_of((x, flag, y), Declare(t), Declare(u), Set(t, (), const(0, f32)),
                  Set(u, (index(0),), const(1, f32)), Set(u, (index(1),), const(2, f32)),
                  loop(i, (
                      If(flag[i], (Set(t, (), t.value + x[i]), Set(u, (index(0),), u[1])),
                         (loop(j, (Set(u, (index(1),), u[1] + 1.0),)),)),
                      If(unary("not", flag[i]), (Set(t, (), -t.value),)),
                      Store(y, i, t.value + u[0] * 10.0 + u[1] * 100.0),
                  )))  # fmt: skip
    a, on = np.arange(n, dtype=np.float32), np.arange(n) % 3 == 1
    want, tv, u0, u1 = [], 0.0, 1.0, 2.0
    for v, c in zip(a, on, strict=True):
        tv, u0, u1 = (tv + v, u1, u1) if c else (-tv, u0, u1 + 4)
        want.append(tv + u0 * 10 + u1 * 100)
    np.testing.assert_array_equal(run(k, [a, on, None])[2], np.float32(want))


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("op", ["hsum", "hmax", "hmin", "hprod"])
def test_lanes_are_combined_and_nan_wins(op: str, lanes: int) -> None:
    (x, y), i, t = buffers(lanes, 1), var("i", lanes), Local("t", f32, (), lanes)
    k = kernel_of((x, y), Declare(t), loop(i, (Set(t, (), x[i]),), "vector", lanes=lanes),
                  Store(y, index(0), apply(op, (t.value,), f32)))  # fmt: skip
    a = np.random.default_rng(5).integers(1, 4, lanes).astype(np.float32)
    a[lanes // 2] = -5
    fold = {"hsum": np.sum, "hmax": np.max, "hmin": np.min, "hprod": np.prod}[op]
    assert run(k, [a, None])[1][0] == fold(a)
    for at in range(lanes):
        poisoned = a.copy()
        poisoned[at] = np.nan
        assert np.isnan(run(k, [poisoned, None])[1][0]), f"{op} lost NaN in lane {at}"


@pytest.mark.parametrize("dtype", [f64, i32, i64, boolean], ids=str)
def test_lanes_of_other_types_are_combined(dtype: DType) -> None:
    lanes = 8
    x, i, t = Buffer("x", dtype, lanes, "in"), var("i", lanes), Local("t", dtype, (), lanes)
    ops = ("hsum", "hmax", "hmin", "hprod")
    y = Buffer("y", dtype, 4, "out")
    results = (Store(y, index(n), apply(op, (t.value,), dtype)) for n, op in enumerate(ops))
    fill = loop(i, (Set(t, (), x[i]),), "vector", lanes=lanes)
    k = kernel_of((x, y), Declare(t), fill, results)
    a = np.array([3, -2, 1, 2, -4, 1, 2, 5]).astype(dtype.numpy)
    want = np.array([a.sum(), a.max(), a.min(), a.prod()]).astype(dtype.numpy)
    np.testing.assert_array_equal(run(k, [a, None])[1], want)
    if dtype is boolean:
        mixed = np.arange(8) == 3
        np.testing.assert_array_equal(run(k, [mixed, None])[1], [True, True, False, False])


@pytest.mark.parametrize("lanes", [0, 8])
def test_maximum_and_minimum_propagate_nan(lanes: int) -> None:
    values = np.array([np.nan, -np.inf, -1, 0, 2, np.inf], np.float32)
    a, b = (v.reshape(-1) for v in np.meshgrid(values, values))
    n = a.size
    u, v, y, i = (
        Buffer("u", f32, n, "in"),
        Buffer("v", f32, n, "in"),
        Buffer("y", f32, n, "out"),
        var("i", n),
    )
    how: dict[str, Any] = {"kind": "vector", "lanes": lanes} if lanes else {}
    for op, fn in (("max", np.maximum), ("min", np.minimum)):
        for x0, x1, p, q in ((u[i], v[i], a, b), (u[i], const(0.5, f32), a, 0.5),
                             (const(0.5, f32), u[i], 0.5, a),
                             (u[i], const(float("nan"), f32), a, np.nan),
                             (const(float("nan"), f32), u[i], np.nan, a)):  # fmt: skip
            k = kernel_of((u, v, y), loop(i, (Store(y, i, binary(op, x0, x1)),), **how))
            np.testing.assert_array_equal(run(k, [a, b, None])[2], fn(p, q).astype(np.float32))


def test_locals_with_dynamic_indices_live_on_the_stack() -> None:
    n = 9
    (x, y), i, t = buffers(n), var("i", n), Local("t", f32, (3, 3))
    k = kernel_of((x, y), Declare(t), loop(i, (Set(t, (i % 3, i // 3), x[i]),)),
                  loop(i, (Store(y, i, t[i // 3, i % 3]),)))  # fmt: skip
    a = numbers(n)
    np.testing.assert_array_equal(run(k, [a, None])[1], a.reshape(3, 3).T.reshape(-1))


def tile(rows: int, blocks: int, lanes: int) -> Kernel:
    """The inner loop of a matrix product: rows x blocks accumulators, one broadcast, one panel."""
    depth = 64
    a = Buffer("a", f32, rows * depth, "in")
    b = Buffer("b", f32, depth * blocks * lanes, "const")
    c = Buffer("c", f32, rows * blocks * lanes, "out")
    acc = Local("acc", f32, (rows, blocks), lanes)
    held, one = Local("held", f32, (blocks,), lanes), Local("one", f32)
    r, j, k, lane = var("r", rows), var("j", blocks), var("k", depth), var("l", lanes)

    def lanewise(s: Stmt) -> Stmt:
        return loop(lane, (s,), "vector", lanes=lanes)

    def each(s: Stmt) -> Stmt:
        return loop(r, (loop(j, (s,), "unroll"),), "unroll")

    total = apply("fma", (one.value, held[j], acc[r, j]), f32)
    step = (
        loop(j, (lanewise(Set(held, (j,), b[(k * blocks + j) * lanes + lane])),), "unroll"),
        loop(r, (Set(one, (), a[r * depth + k]),
                 loop(j, (lanewise(Set(acc, (r, j), total)),), "unroll")), "unroll"),
    )  # fmt: skip
    return kernel_of(
        (a, b, c), Declare(acc), Declare(held), Declare(one),
        each(Set(acc, (r, j), const(0, f32))), loop(k, step),
        each(lanewise(Store(c, (r * blocks + j) * lanes + lane, acc[r, j]))),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows", "blocks"),
    [("x86-64-avx512", 28, 1), ("x86-64-avx512", 9, 3), ("x86-64-avx512", 4, 6),
     ("x86-64-avx2", 4, 3), ("x86-64-avx2", 6, 2), ("aarch64-neon", 8, 3), ("aarch64-neon", 4, 5)],
)  # fmt: skip
def test_a_tile_of_accumulators_stays_in_registers(name: str, rows: int, blocks: int) -> None:
    target = NAMED[name]
    lanes = target.lanes(4)
    text = listing(tile(rows, blocks, lanes), target)
    inner = innermost(text)
    fused = [line for line in inner if "fmadd" in line or "fmla" in line]
    assert len(fused) == rows * blocks, text
    assert not [line for line in inner if "rsp" in line or "[sp" in line], text


def innermost(text: str) -> list[str]:
    """The lines of the basic block with the most multiply-adds."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith(".L"):
            blocks.append([])
        blocks[-1].append(line)
        if line.split() and line.split()[0].startswith(("b.", "j")):
            blocks.append([])
    return max(blocks, key=lambda b: sum("fmadd" in x or "fmla" in x for x in b))


def test_tiles_compute_matrix_products() -> None:
    rows, blocks, lanes, depth = 3, 2, 8, 64
    a, b = numbers(rows * depth), numbers(depth * blocks * lanes, 1)
    got = run(tile(rows, blocks, lanes), [a, b, None])[2].reshape(rows, -1)
    want = a.reshape(rows, depth).astype(float) @ b.reshape(depth, -1)
    np.testing.assert_allclose(got, want, 0, 1e-5 * np.abs(want).max())


def test_prefetches_are_hints() -> None:
    (x, y), i = buffers(8), var("i", 8)
    k = kernel_of((x, y), loop(i, (Prefetch(x, i + (1 << 40)), Store(y, i, x[i]))))
    a = numbers(8)
    np.testing.assert_array_equal(run(k, [a, None])[1], a)
    assert "prefetch" in listing(k, NAMED["x86-64-avx2"])


# --------------------------------------------------------------------------- what is refused


def broken() -> dict[str, tuple[Kernel, str]]:
    (x, y), i, j = buffers(16), var("i", 16), var("j", 16)
    t, wide = Local("t", f32), Local("w", f32, (), 16)
    n = Buffer("n", i64, 1, "in")
    stranger = Buffer("stranger", f32, 16, "in")

    def vector(*body: Stmt) -> Stmt:
        return loop(i, body, "vector", lanes=16)

    def free(e: Expr) -> Stmt:
        return Store(y, index(0), e)

    bodies = {
        "vector loops cannot nest": vector(loop(j, (Store(y, i, x[j]),), "vector", lanes=16)),
        "no static bounds": loop(j, (Store(y, j, x[j]),), "unroll", hi=n[0]),
        "used outside its loop": free(x[j]),
        "used before it is declared": free(t.value),
        "scalar local t": vector(Declare(t), Set(t, (), x[i])),
        "all lanes store to one place": vector(free(x[i])),
        "outside a vector loop": free(wide.value),
        "no parameter stranger": free(stranger[0]),
        "must not differ between lanes": vector(If(i < 3, (Store(y, i, x[i]),))),
        "'frobnicate'": free(apply("frobnicate", (x[0],), f32)),
        "only a local with lanes": free(apply("hsum", (x[0],), f32)),
    }
    return {said: (kernel_of((x, n, y), Declare(wide), s), said) for said, s in bodies.items()}


@pytest.mark.parametrize(("kernel", "said"), broken().values(), ids=broken().keys())
def test_invalid_kernels_are_refused_by_name(kernel: Kernel, said: str) -> None:
    with pytest.raises(LoweringError, match=f"kernel template test: .*{said}"):
        module_text(kernel, Arithmetic())
