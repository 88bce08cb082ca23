"""Loads of lanes at known distances: whole vectors and shuffles that read nothing they must not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tilewright.compiler.kernels import access
from tilewright.compiler.kernels.ir import Buffer, Kernel, Phase, Store, loop
from tilewright.ops.expr import Expr, binary, const, index, select, var
from tilewright.ops.types import f32

from .running import host as this_machine
from .running import run, text_for

N = 40
SIZE = 176  # elements of the buffer read: whole vectors of 4, 8 and 16 lanes

PATTERNS: dict[str, Callable[[Expr], Expr]] = {
    "every second": lambda i: i * 2 + 3,
    "every third": lambda i: i * 3 + 1,
    "every fourth": lambda i: i * 4,
    "backwards": lambda i: 150 - i,
    "twice each": lambda i: i // 2 + 5,
    "eight times each": lambda i: i // 8 + 2,
    "across blocks": lambda i: (i + 3) // 4 * 8 + (i + 3) % 4 + 1,
    "blocks reversed": lambda i: 88 - i // 8 * 8 + i % 8,
}


def kernel(lanes: int, at: Expr, i: Expr, lo: Expr | int, hi: Expr | int, items: int = 1,
           guard: Expr | None = None) -> Kernel:  # fmt: skip
    x, y = Buffer("x", f32, SIZE, "in"), Buffer("y", f32, N, "out")
    item = var("item", items)
    value = x[at] if guard is None else select(guard, x[at], const(-1.0, f32))
    swap = loop(i, (Store(y, i, value),), "vector", lo=lo, hi=hi, lanes=lanes)
    return Kernel("test", 1, (), (x, y), (Phase(items, item, (swap,)),))


def check(made: Kernel, wanted: Callable[[int], int | None]) -> None:
    x = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    places = [wanted(k) for k in range(N)]
    truth = np.array([-1.0 if p is None else x[p] for p in places], np.float32)
    for at_end in (False, True):  # one element too far on either side is a crash
        np.testing.assert_array_equal(run(made, [x, None], at_end)[1], truth)


def place(pattern: str, k: int) -> int:
    at = PATTERNS[pattern](index(k))
    return int(at.payload)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_static_rounds_and_their_tail(pattern: str, lanes: int) -> None:
    i = var("i", N)
    check(kernel(lanes, PATTERNS[pattern](i), i, 0, N), lambda k: place(pattern, k))


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("part", [16, 10])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rounds_that_begin_where_the_item_says(pattern: str, part: int, lanes: int) -> None:
    """At multiples of the lanes, or anywhere."""
    items = -(-N // part)
    i, item = var("i", N), var("item", items)
    hi = binary("min", item * part + part, N)
    check(kernel(lanes, PATTERNS[pattern](i), i, item * part, hi, items),
          lambda k: place(pattern, k))  # fmt: skip


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_guards_keep_lanes_from_reading(pattern: str, lanes: int) -> None:
    """The offset leaves the buffer where the guard does not hold."""
    i = var("i", N)
    at = PATTERNS[pattern](i) + (i // 30) * 1_000_000 - 2
    made = kernel(lanes, at, i, 0, N, guard=(i >= 3) & (i < 30))
    check(made, lambda k: place(pattern, k) - 2 if 3 <= k < 30 else None)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_whole_rounds_need_no_gather(pattern: str) -> None:
    i = var("i", N)
    assert "gather" not in text_for(kernel(8, PATTERNS[pattern](i), i, 0, N), this_machine())


def test_a_gather_remains_where_windows_would_be_many() -> None:
    i = var("i", N)
    assert "gather" in text_for(kernel(8, i * 5, i, 0, 32), this_machine())


def test_windows_stay_between_the_first_and_the_last_element_read() -> None:
    (first, second) = access.windows([2 * k for k in range(8)], 15, None) or ()
    assert (first.start, second.start) == (0, 7)
    (narrow,) = access.windows([0, 0, 1, 1, 2, 2, 3, 3], 15, None) or ()
    assert (narrow.start, narrow.width) == (0, 4)
    (whole,) = access.windows([0, 0, 1, 1, 2, 2, 3, 3], 16, 4) or ()
    assert (whole.start, whole.width) == (-4, 8)
    (cut,) = access.windows([0, 0, 1, 1, 2, 2, 3, 3], 17, 4) or ()  # the last vector is not whole
    assert (cut.start, cut.width) == (0, 4)
