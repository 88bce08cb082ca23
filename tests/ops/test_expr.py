"""The expression language: interning, simplification of indices, substitution, printing."""

from __future__ import annotations

import gc
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ops import expr as ex
from tilewright.ops.errors import OperatorError
from tilewright.ops.expr import (
    Expr,
    binary,
    bounds,
    cast,
    compare,
    const,
    floordiv,
    format_expr,
    index,
    load,
    mod,
    reduce,
    select,
    unary,
    var,
)
from tilewright.ops.interning import table
from tilewright.ops.interpreter import evaluate_expr
from tilewright.ops.traverse import substitute, walk
from tilewright.ops.types import boolean, f32, f64, i32, i64

I, J, K = var("i", 6), var("j", 5), var("k", 4, lo=-2)  # noqa: E741
GRID = (I, J, K)
X = load("x", (I,), f32)
Y = load("y", (I,), f32)
N = load("n", (I,), i64)

# --------------------------------------------------------------------------- interning


def test_equal_expressions_are_one_object() -> None:
    assert X + Y is X + Y
    assert ex.exp(X * 2) is ex.exp(X * 2.0)
    assert X + Y is not Y + X


def test_threads_that_make_one_expression_at_once_get_one_object() -> None:
    """Fails within milliseconds where looking up and adding can be interrupted."""
    rounds, rest = 40, threading.Barrier(2)
    made: list[list[Expr]] = [[], []]
    unlike: list[Expr] = []

    def make(mine: int) -> None:
        for r in range(rounds):
            made[mine] = [var(f"t{k % 7}", 100) * 3 + (k + r) for k in range(200)]
            rest.wait()
            if mine == 0:
                unlike.extend(x for x, y in zip(*made, strict=True) if x is not y)
            rest.wait()
            made[mine] = []  # entries are dropped while the other makes new ones

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(make, k) for k in (0, 1)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    assert not unlike


def test_constants_are_told_apart() -> None:
    assert const(0.0, f32) is not const(-0.0, f32)
    assert const(1, i64) is not const(1, i32)
    assert const(1, i64) is not const(True, boolean)
    assert const(1.0, f32) is not const(1.0, f64)
    assert const(math.nan, f32) is const(math.nan, f32)


def test_unused_expressions_are_freed() -> None:
    places = [index(k) for k in range(1000, 1050)]  # numbers of places stay for a while
    gc.collect()  # what other tests left in cycles
    before = len(table)
    made = [load("gone", (k,), f32) * 3 for k in places]
    assert len(table) >= before + 100
    del made
    gc.collect()
    assert len(table) <= before + 2


def test_an_expression_is_no_condition() -> None:
    with pytest.raises(TypeError, match="no truth value"):
        bool(X < Y)


# --------------------------------------------------------------------------- element types


def test_numbers_take_the_type_of_the_other_side() -> None:
    assert (X + 1).args[1] is const(1.0, f32)
    assert (2 / cast(X, f64)).args[0] is const(2.0, f64)
    assert (load("m", (I,), i32) * 3).args[1] is const(3, i32)


def test_element_types_do_not_mix() -> None:
    with pytest.raises(OperatorError, match="f32 and i64"):
        X + N
    with pytest.raises(OperatorError, match="f32 and f64"):
        select(X < Y, X, cast(X, f64))


def test_result_types() -> None:
    assert (X < Y).dtype is compare("eq", N, 3).dtype is unary("isnan", X).dtype is boolean
    assert reduce("sum", (I,), X).dtype is f32
    assert cast(N, f32).dtype is f32


@pytest.mark.parametrize("call", [lambda: unary("cube", X), lambda: binary("plus", X, Y)])
def test_unknown_operations_are_refused(call: Any) -> None:
    with pytest.raises(OperatorError, match="unknown"):
        call()


def test_cast_to_its_own_type_is_nothing() -> None:
    assert cast(X, f32) is X
    assert cast(const(2, i64), f32) is const(2.0, f32)
    assert cast(const(math.nan, f32), i32).op == "cast"  # any value will do: no folding


# --------------------------------------------------------------------------- floats stay as written


def test_float_arithmetic_is_left_alone() -> None:
    assert (X + Y) - Y is not X
    assert (X * 0.0).op == "mul"
    assert compare("eq", X, X).op == "eq"  # false for NaN


# --------------------------------------------------------------------------- indices


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (I + J - I, J),
        (J + I, I + J),
        ((I * 4 + J * 8) // 4, I + J * 2),
        ((I * 8 + J) // 8, I),
        (mod(I * 8 + J, 8), J),
        (floordiv(I * 8 + J, 8) * 8 + mod(I * 8 + J, 8), I * 8 + J),
        (mod(I, 6), I),
        (I // 6, index(0)),
        (floordiv(I // 2, 2), I // 4),
        ((K + 2) // 4, index(0)),
        (ex.maximum(I, 0), I),
        (ex.minimum(I, 5), I),
        (ex.minimum(I, 9 - J), I),  # 9 - J >= 5
        (-(I * -1), I),
        (index(7) // 2, index(3)),
        (mod(index(-7), 3), index(2)),
    ],
)
def test_indices_simplify(got: Expr, want: Expr) -> None:
    assert got is want


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (I < 6, True),
        (I < 0, False),
        (I >= 0, True),
        (K <= -3, False),
        (compare("eq", I, 6), False),
        (compare("ne", I, 6), True),
        ((I < 6) & (J < 9), True),
        ((I < 0) | (J < 0), False),
    ],
)
def test_decided_comparisons_fold(got: Expr, want: bool) -> None:
    assert got is const(want, boolean)


def test_open_comparisons_stay() -> None:
    assert (I < 5).op == "lt"
    assert ((I < 5) & (J < 9)) is (I < 5)
    assert (N < 5).op == "lt"  # data has no bounds


def test_blocks_and_lanes_of_an_offset_come_apart() -> None:
    """Also where a block's number is a local of a kernel, or from a table: data without bounds."""
    at, lane = load("at", (), i64), var("lane", 16)
    for block in (at, load("table", (at + 1,), i64)):
        assert (block * 16 + lane) // 16 is block and (block * 16 + lane) % 16 is lane


def test_select_with_a_known_condition() -> None:
    assert select(I < 6, X, Y) is X
    assert select(I < 0, X, Y) is Y
    assert select(I < 3, X, X) is X


Drawn = tuple[Expr, npt.NDArray[np.int64]]


def _leaf_values() -> dict[Expr, npt.NDArray[np.int64]]:
    i, j, k = np.meshgrid(np.arange(6), np.arange(5), np.arange(-2, 2), indexing="ij")
    return {I: i, J: j, K: k}


LEAVES = _leaf_values()


def _combine(op: str, a: Drawn, b: Drawn) -> Drawn:
    x, y = a[1], b[1]
    values = {
        "add": x + y, "sub": x - y, "max": np.maximum(x, y), "min": np.minimum(x, y),
        "mul": x * y, "select": np.where(x < y, x, y - 1),
    }  # fmt: skip
    if op == "select":
        return select(a[0] < b[0], a[0], b[0] - 1), values[op]
    return binary(op, a[0], b[0]), values[op]


def _scale(op: str, a: Drawn, c: int) -> Drawn:
    if op == "mul":
        return a[0] * c, a[1] * c
    if op == "floordiv":
        return a[0] // c, a[1] // c
    return a[0] % c, a[1] % c


indices: st.SearchStrategy[Drawn] = st.recursive(
    st.sampled_from(sorted(LEAVES.items(), key=lambda p: str(p[0])))
    | st.integers(-9, 9).map(lambda c: (index(c), np.full((6, 5, 4), c, np.int64))),
    lambda inner: st.one_of(
        st.builds(
            _combine, st.sampled_from(["add", "add", "sub", "max", "min", "mul", "select"]),
            inner, inner,
        ),
        st.builds(_scale, st.just("mul"), inner, st.integers(-4, 9)),
        st.builds(
            _scale, st.sampled_from(["floordiv", "mod"]), inner,
            st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 16, 24]),
        ),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300)
@given(indices)
def test_simplified_indices_keep_their_values_and_bounds(drawn: Drawn) -> None:
    e, want = drawn
    got = evaluate_expr(e, GRID, {})
    np.testing.assert_array_equal(got, want, err_msg=str(e))
    limits = bounds(e)
    if limits is not None:
        assert limits[0] <= want.min() and want.max() <= limits[1], f"{e} in {limits}"


@pytest.mark.parametrize(
    ("e", "want"),
    [
        ((I + 1) // 4 * 4 + (I + 1) % 4, LEAVES[I] + 1),
        ((I * 4 + 3) % 6, (LEAVES[I] * 4 + 3) % 6),
        ((I * 4 + 3) // 6, (LEAVES[I] * 4 + 3) // 6),
        ((7 - I) % 4, (7 - LEAVES[I]) % 4),
        ((I * 8 - J - 20) // 8, (LEAVES[I] * 8 - LEAVES[J] - 20) // 8),
        ((K * 6 + J) // 4 // 3, (LEAVES[K] * 6 + LEAVES[J]) // 12),
    ],
)
def test_division_with_an_offset(e: Expr, want: npt.NDArray[np.int64]) -> None:
    np.testing.assert_array_equal(evaluate_expr(e, GRID, {}), want, err_msg=str(e))


@settings(max_examples=100)
@given(indices, indices, st.sampled_from(["lt", "le", "eq", "ne"]))
def test_comparisons_of_indices_keep_their_values(a: Drawn, b: Drawn, op: str) -> None:
    direct = {"lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal}[op]
    e = compare(op, a[0], b[0])
    np.testing.assert_array_equal(evaluate_expr(e, GRID, {}), direct(a[1], b[1]), err_msg=str(e))


@settings(max_examples=100)
@given(indices, indices)
def test_substitution_is_composition(outer: Drawn, inner: Drawn) -> None:
    """e[i := f] at a point is e at (f there, j, k)."""
    inside = mod(inner[0], 6)
    e = substitute(outer[0], {I: inside})
    i = inner[1] % 6
    j, k = LEAVES[J], LEAVES[K]
    want = outer[1][i, j, k + 2]
    np.testing.assert_array_equal(evaluate_expr(e, GRID, {}), want, err_msg=str(e))


# --------------------------------------------------------------------------- reductions, traversal


def test_free_variables() -> None:
    assert reduce("sum", (I,), load("x", (I, J), f32)).free == {J}
    assert (X * Y).free == {I}
    assert const(1.0, f32).free == frozenset()


def test_reducing_over_nothing_is_nothing() -> None:
    assert reduce("sum", (), X) is X


def test_substitution_leaves_bound_variables() -> None:
    e = reduce("sum", (J,), load("x", (I, J), f32))
    assert substitute(e, {I: K + 2}) is reduce("sum", (J,), load("x", (K + 2, J), f32))
    assert substitute(e, {J: K}) is reduce("sum", (K,), load("x", (I, K), f32))
    assert substitute(e, {}) is e


def test_substituting_whole_nodes() -> None:
    e = unary("exp", X) + Y
    assert substitute(e, {X: Y * 2}) is unary("exp", Y * 2) + Y


def test_walk_gives_each_node_once_and_arguments_first() -> None:
    shared = X * Y
    e = shared + unary("exp", shared)
    order = walk(e)
    assert len(order) == len(set(order)) and order[-1] is e
    place = {n: k for k, n in enumerate(order)}
    assert all(place[a] < place[n] for n in order for a in n.args)
    assert place[I] < place[X]


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (X * (Y + 1), "x[i] * (y[i] + 1.0)"),
        (X - (Y - X), "x[i] - (y[i] - x[i])"),
        ((X - Y) - X, "x[i] - y[i] - x[i]"),
        (I * 4 - 3, "i * 4 - 3"),
        ((I + J) // 3, "(i + j) // 3"),
        (select(X < Y, X, Y), "(x[i] if x[i] < y[i] else y[i])"),
        (cast(N, f32), "f32(n[i])"),
        (reduce("max", (J,), load("x", (I, J), f32)), "max(j in 0..5: x[i, j])"),
        (ex.exp(-X), "exp(neg(x[i]))"),
    ],
)
def test_printing(e: Expr, text: str) -> None:
    assert format_expr(e) == repr(e) == text


def test_sources_can_be_renamed_when_printing() -> None:
    assert format_expr(load(7, (I,), f32), lambda s: f"blob{s}") == "blob7[i]"


# --------------------------------------------------------------------------- the interpreter itself


def test_a_load_outside_its_array_needs_a_guard() -> None:
    x = np.arange(5.0)
    with pytest.raises(IndexError, match="without a guard"):
        evaluate_expr(X, (I,), {"x": x})
    # the last point is guarded, and what stands there does not matter
    got = evaluate_expr(select(I < 5, X, -1.0), (I,), {"x": x})
    np.testing.assert_array_equal(got, [0, 1, 2, 3, 4, -1])


def test_reductions_count_every_point() -> None:
    x = np.arange(30, dtype=np.float32).reshape(6, 5)
    e = reduce("sum", (J,), load("x", (I, J), f32) + 1) * reduce("max", (J,), const(2.0, f32))
    np.testing.assert_array_equal(evaluate_expr(e, (I,), {"x": x}), (x + 1).sum(1) * 2)
    assert evaluate_expr(reduce("sum", (I, J), const(1, i32)), (), {}) == 30
