"""Instructions counted in Kernel IR, and what a machine with given rates needs for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu.llvm_text import Arithmetic
from tilewright.compiler.inspect.instructions import WINDOW, Busy, busy, counted, operation
from tilewright.compiler.inspect.machine import CLASSES, Rates
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
    seq,
)
from tilewright.ops.expr import Expr, apply, binary, compare, const, index, select, unary, var
from tilewright.ops.types import f32, f64, i64

HOST = Arithmetic(fma=True, rsqrt14=True)
LANES = 16
RATES = Rates(64, 1.0, 1.0, 1.0, 2.0, 0.25, 0.125, 1.0, 2.0, 0.5)
X, Y = Buffer("x", f32, 1 << 20, "in"), Buffer("y", f32, 1 << 20, "out")
ROWS = Buffer("rows", i64, 5, "const")


def wide(*body: Stmt) -> For:
    return loop(lane, body, "vector", lanes=LANES)


lane = var("l", LANES)
item, i, k, u = var("item", 3), var("i", 10), var("k", 7), var("u", 4)
acc, held = Local("acc", f32, (4,), LANES), Local("held", f32, (), LANES)


def counts(body: Iterable[Stmt], items: int = 1, **tables: np.ndarray) -> dict[str, float]:
    """Vectors of a phase by class, those that are there."""
    phase = Phase(items, item, tuple(body))
    known = {ROWS: tables["rows"]} if tables else {}
    total = counted(phase, HOST, 64, known).total()
    return {name: float(n) for name, n in zip(CLASSES, total, strict=True) if n}


def test_loops_multiply_and_partial_rounds_count_as_whole_ones() -> None:
    longer = var("l", 40)
    body = loop(longer, (Store(Y, i * 48 + longer, X[longer + i * 40] + 1.0),), "vector",
                lanes=LANES)  # fmt: skip
    assert counts([loop(i, (body,))], items=3) == {"load": 90.0, "add": 90.0, "store": 90.0}


def test_what_a_loop_does_not_change_is_computed_once() -> None:
    value = X[lane] * 2.0 + X[lane + k * 16]
    inner = loop(k, (wide(Store(Y, (i * 7 + k) * 16 + lane, value)),))
    assert counts([loop(i, (inner,))]) == {
        "load": 71.0, "multiply": 1.0, "add": 70.0,
        "store": 70.0,
    }  # fmt: skip


def test_unrolled_loops_share_what_does_not_depend_on_them() -> None:
    one = wide(Set(acc, (u,), apply("fma", (X[i * 4 + u], X[lane + i * 16], acc[u]), f32)))
    found = counts([Declare(acc), loop(i, (loop(u, (one,), "unroll"),))])
    assert found == {"broadcast": 40.0, "load": 10.0, "multiply": 40.0}


def test_what_is_set_in_a_loop_changes_in_it() -> None:
    body = seq(
        Declare(held), wide(Set(held, (), X[lane])),
        loop(i, (wide(Set(held, (), unary("sqrt", held.value))),)),
    )  # fmt: skip
    assert counts(body) == {"load": 1.0, "sqrt": 10.0}


def test_equal_values_are_loaded_once_as_long_as_nothing_is_written() -> None:
    twice = seq(*(Store(Y, lane + 16 * n, X[lane]) for n in range(2)))
    assert counts([wide(*twice)]) == {"load": 1.0, "store": 2.0}
    again = seq(*(Store(Y, lane + 16 * n, Y[lane + 64]) for n in range(2)))
    assert counts([wide(*again)])["load"] == 2.0


def test_locals_that_no_register_holds_are_memory() -> None:
    body = seq(
        Declare(acc), loop(i, (wide(Set(acc, (i % 4,), X[lane + i * 16])),)),
        loop(i, (wide(Store(Y, lane + i * 16, acc[i % 4])),)),
    )  # fmt: skip
    assert counts(body) == {"load": 20.0, "store": 20.0}


def test_branches_and_bounds_count_as_often_as_they_are_taken() -> None:
    some = If(compare("lt", i, index(3)), (wide(Store(Y, lane, X[lane + i * 16])),))
    assert counts([loop(i, (some,))])["store"] == pytest.approx(3)
    rows = loop(k, (wide(Store(Y, lane, X[lane + k * 16])),), hi=binary("min", i, index(4)))
    assert counts([loop(i, (rows,))])["store"] == pytest.approx(0 + 1 + 2 + 3 + 6 * 4)


def test_tables_say_how_often_loops_run() -> None:
    inner = wide(Store(Y, lane, X[lane + k * 16]))
    body = [loop(i, (loop(k, (inner,), lo=ROWS[i], hi=ROWS[i + 1]),), hi=4)]
    assert counts(body) == {}, "nobody knows"
    four = var("i", 4)
    body = [loop(four, (loop(k, (inner,), lo=ROWS[four], hi=ROWS[four + 1]),))]
    assert counts(body, rows=np.array([0, 1, 1, 4, 6]))["load"] == pytest.approx(6)


def test_values_of_one_lane_count_for_nothing() -> None:
    one = Local("one", f32)
    body = seq(Declare(one), Set(one, (), X[0] * X[1]), Store(Y, index(0), one.value))
    assert counts(body) == {}


def test_strided_lanes_are_shuffled() -> None:
    assert counts([wide(Store(Y, lane, X[lane * 2]))]) == {"load": 1, "shuffle": 1, "store": 1}
    square = Local("square", f32, (LANES,), LANES)
    assert counts([Declare(square), Transpose(square)]) == {"shuffle": 64.0}


@pytest.mark.parametrize(
    ("value", "classes"),
    [
        (lambda a: a * 2.0 + 1.0, {"multiply": 1, "add": 1}),
        (lambda a: a / 3.0, {"divide": 1}),
        (lambda a: binary("max", a, 0.0), {"add": 1}),
        (lambda a: binary("max", a, a * 2.0), {"multiply": 1, "add": 1, "simple": 2}),
        (lambda a: select(compare("lt", a, const(0.0, f32)), a * 0.1, a),
         {"multiply": 1, "simple": 2}),
        (lambda a: select(compare("lt", a, const(0.0, f32)), const(0.0, f32), a), {"simple": 1}),
        (lambda a: unary("neg", a) * 2.0, {"multiply": 1}),
    ],
)  # fmt: skip
def test_classes(value: object, classes: dict[str, float]) -> None:
    assert callable(value)
    body = wide(Store(Y, lane, value(X[lane])))
    assert counts([body]) == {"load": 1, "store": 1} | classes


def test_operations_consist_of_what_the_code_generator_writes() -> None:
    found = dict(operation("exp", ((f32, None),), f32, LANES, HOST))
    assert found["multiply"] == 64 * 11 and found["add"] == 64 * 4
    plain = dict(operation("exp", ((f32, None),), f32, LANES, replace(HOST, fma=False)))
    assert plain["multiply"] == found["multiply"] and plain["add"] > found["add"]
    assert dict(operation("div", ((f64, None), (f64, None)), f64, LANES, HOST)) == {"divide": 128}
    assert not operation("sin", ((f32, None),), f32, LANES, HOST), "the C library does that"


def kernel(*phases: Iterable[Stmt]) -> Kernel:
    made = tuple(Phase(1, item, tuple(body)) for body in phases)
    return Kernel("test", 1, (), (X, Y), made)


def adding(n: int) -> For:
    return loop(i, (wide(Store(Y, lane, X[lane + i * 16] + 1.0)),), hi=n)


def test_the_busiest_unit_binds() -> None:
    assert busy(kernel([adding(10)]), HOST, RATES) == Busy(stores=20.0)
    many: Expr = X[lane + i * 16]
    for _ in range(5):
        many = many / 3.0 + 1.0
    found = busy(kernel([loop(i, (wide(Store(Y, lane, many)),))]), HOST, RATES)
    assert found == Busy(arithmetic=10 * 5 / 0.25) and found.bound == "arithmetic"


def test_units_of_one_class_do_not_add_up_but_all_pipes_do() -> None:
    value = X[lane + i * 16]
    for _ in range(6):
        value = binary("max", value * 1.5, 0.0)
    body = [loop(i, (wide(Store(Y, lane, value)),))]
    assert busy(kernel(body), HOST, RATES).seconds == pytest.approx(60.0)
    narrow = replace(RATES, any=1.5)
    assert busy(kernel(body), HOST, narrow).seconds == pytest.approx(80.0)


def test_long_parts_run_one_after_the_other() -> None:
    def parts(rounds: int) -> list[Stmt]:
        t = var("t", rounds)
        load_only = loop(t, (wide(Set(held, (), held.value + X[lane + t * 16])),))
        store_only = loop(t, (wide(Store(Y, lane + t * 16, held.value)),))
        return [Declare(held), wide(Set(held, (), const(0.0, f32))), load_only, store_only]

    short, long = WINDOW // 8, 2 * WINDOW
    assert busy(kernel(parts(short)), HOST, RATES) == Busy(stores=2.0 * short)
    found = busy(kernel(parts(long)), HOST, RATES)
    assert found.seconds == pytest.approx(long + 2 * long) and found.bound == "stores"
    both = busy(kernel(parts(short), parts(short)), HOST, RATES)
    assert both.stores == pytest.approx(4.0 * short), "phases wait for each other"
