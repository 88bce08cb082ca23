"""Operations on every element type mean what numpy says, scalar and in lanes, and never trap."""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from tilewright.ops.expr import Expr, apply, binary, cast, compare, const, unary
from tilewright.ops.types import (
    DTYPES,
    DType,
    bf16,
    boolean,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)

from .running import apply_native

Array = np.ndarray[Any, Any]
INTEGERS = (i8, i16, i32, i64, u8, u16, u32, u64)
FLOATS = (f16, f32, f64)
lanes_and_scalar = pytest.mark.parametrize("lanes", [0, 8], ids=["scalar", "lanes"])


def limits(t: DType) -> tuple[int, int]:
    info = np.iinfo(t.numpy)
    return int(info.min), int(info.max)


def wrap(value: int, t: DType) -> int:
    """The value that t's bits hold."""
    value &= (1 << t.bits) - 1
    return value - (1 << t.bits) if t.kind == "i" and value >> (t.bits - 1) else value


def pairs(t: DType) -> tuple[Array, Array]:
    """All pairs of interesting numbers."""
    lo, hi = limits(t)
    some = sorted(
        {wrap(v, t) for v in (lo, lo + 1, -100, -7, -3, -2, -1, 0, 1, 2, 3, 7, 10, hi - 1, hi)}
    )
    a, b = zip(*product(some, some), strict=True)
    return np.array(a, t.numpy), np.array(b, t.numpy)


def of(fn: Callable[..., Expr], *arrays: Array, out: DType, kind: DType, lanes: int) -> Array:
    return apply_native(fn, *arrays, out=out, kinds=[kind] * len(arrays), lanes=lanes)


# --------------------------------------------------------------------------- integers


def quotient(a: int, b: int) -> int:
    """Toward zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


DIVISIONS: dict[str, Callable[[int, int], int]] = {
    "floordiv": operator.floordiv, "mod": operator.mod, "truncdiv": quotient,
    "div": quotient, "fmod": lambda a, b: a - quotient(a, b) * b,
}  # fmt: skip


@lanes_and_scalar
@pytest.mark.parametrize("t", INTEGERS, ids=str)
def test_integer_division_rounds_as_named_and_never_traps(t: DType, lanes: int) -> None:
    """x / 0 = 0, and INT_MIN / -1 wraps. By a variable and by a constant."""
    a, b = pairs(t)
    for op, fn in DIVISIONS.items():
        want = [0 if y == 0 else wrap(fn(int(x), int(y)), t) for x, y in zip(a, b, strict=True)]
        got = of(lambda x, y, op=op: apply(op, (x, y), t), a, b, out=t, kind=t, lanes=lanes)
        np.testing.assert_array_equal(got, np.array(want, t.numpy), op)


@lanes_and_scalar
@pytest.mark.parametrize("t", [i8, i32, i64, u8, u32, u64], ids=str)
def test_integer_division_by_constants(t: DType, lanes: int) -> None:
    a = np.unique(pairs(t)[0])
    for op, fn in DIVISIONS.items():
        for d in sorted({wrap(v, t) for v in (0, 1, -1, 3, -7, 16, limits(t)[0], limits(t)[1])}):
            want = [0 if d == 0 else wrap(fn(int(x), d), t) for x in a]
            got = of(
                lambda x, op=op, d=d: apply(op, (x, const(d, t)), t), a, out=t, kind=t, lanes=lanes
            )
            np.testing.assert_array_equal(got, np.array(want, t.numpy), f"{op} by {d}")


@lanes_and_scalar
@pytest.mark.parametrize("t", INTEGERS, ids=str)
def test_shifts_by_the_width_or_more_drain_the_number(t: DType, lanes: int) -> None:
    lo, hi = limits(t)
    values = sorted({wrap(v, t) for v in (0, 1, -1, -100, 77, lo, hi)})
    counts = (0, 1, 3, t.bits - 1, t.bits, t.bits + 1, 127)
    a, b = (np.array(v, t.numpy) for v in zip(*product(values, counts), strict=True))
    for op, fn in (("shl", operator.lshift), ("shr", operator.rshift)):
        want = [wrap(fn(int(x), int(y)), t) for x, y in zip(a, b, strict=True)]
        got = of(lambda x, y, op=op: binary(op, x, y), a, b, out=t, kind=t, lanes=lanes)
        np.testing.assert_array_equal(got, np.array(want, t.numpy), op)


@lanes_and_scalar
@pytest.mark.parametrize("t", INTEGERS, ids=str)
def test_integer_arithmetic_wraps(t: DType, lanes: int) -> None:
    a, b = pairs(t)
    two = {"sub": operator.sub, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
           "max": max, "min": min, "add": operator.add, "mul": operator.mul}  # fmt: skip
    for op, fn in two.items():
        want = [wrap(fn(int(x), int(y)), t) for x, y in zip(a, b, strict=True)]
        got = of(lambda x, y, op=op: apply(op, (x, y), t), a, b, out=t, kind=t, lanes=lanes)
        np.testing.assert_array_equal(got, np.array(want, t.numpy), op)
    one = {"neg": operator.neg, "abs": abs, "bitnot": operator.invert, "floor": int}
    for op, f1 in one.items():
        want = [wrap(f1(int(x)), t) for x in a]
        got = of(lambda x, op=op: unary(op, x), a, out=t, kind=t, lanes=lanes)
        np.testing.assert_array_equal(got, np.array(want, t.numpy), op)


@lanes_and_scalar
def test_constant_index_arithmetic_wraps_at_64_bits(lanes: int) -> None:
    a = np.array([0, 1, -1, 5, 1 << 62, -(1 << 63)], np.int64)
    big = const((1 << 63) - 1, i64)
    got = of(
        lambda x: x + apply("add", (big, const(1, i64)), i64), a, out=i64, kind=i64, lanes=lanes
    )
    np.testing.assert_array_equal(got, np.array([wrap(int(v) + (1 << 63), i64) for v in a]))
    got = of(lambda x: (x + (1 << 62)) * 4, a, out=i64, kind=i64, lanes=lanes)
    np.testing.assert_array_equal(got, np.array([wrap(4 * (int(v) + (1 << 62)), i64) for v in a]))


@lanes_and_scalar
@pytest.mark.parametrize("t", (*INTEGERS, *FLOATS, boolean), ids=str)
def test_comparisons_know_the_sign_of_their_type(t: DType, lanes: int) -> None:
    if t in INTEGERS:
        a, b = pairs(t)
    else:
        some = [0, 1] if t is boolean else [-np.inf, -1, -0.0, 0.0, 1, 1.5, np.inf, np.nan]
        a, b = (np.array(v, t.numpy) for v in zip(*product(some, some), strict=True))
    for op in ("lt", "le", "eq", "ne"):
        got = of(lambda x, y, op=op: compare(op, x, y), a, b, out=boolean, kind=t, lanes=lanes)
        np.testing.assert_array_equal(got, getattr(operator, op)(a, b), op)


@lanes_and_scalar
def test_logic_on_booleans(lanes: int) -> None:
    a, b = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    for op, fn in (("and", operator.and_), ("or", operator.or_), ("xor", operator.xor),
                   ("max", operator.or_), ("min", operator.and_)):  # fmt: skip
        got = of(lambda x, y, op=op: binary(op, x, y), a, b, out=boolean, kind=boolean, lanes=lanes)
        np.testing.assert_array_equal(got, fn(a, b), op)
    got = of(lambda x: unary("not", x), a, out=boolean, kind=boolean, lanes=lanes)
    np.testing.assert_array_equal(got, ~a)


# --------------------------------------------------------------------------- floats


@lanes_and_scalar
@pytest.mark.parametrize("t", FLOATS, ids=str)
def test_float_arithmetic_is_that_of_ieee_754(t: DType, lanes: int) -> None:
    some = [-np.inf, -1e4, -2.5, -1, -0.0, 0.0, 1e-3, 0.5, 1, 1.5, 2.5, 1e4, np.inf, np.nan]
    a, b = (np.array(v, t.numpy) for v in zip(*product(some, some), strict=True))
    two: dict[str, Any] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
        "max": np.maximum, "min": np.minimum, "mod": np.mod, "fmod": np.fmod,
    }  # fmt: skip
    with np.errstate(all="ignore"):
        for op, fn in two.items():
            got = of(lambda x, y, op=op: apply(op, (x, y), t), a, b, out=t, kind=t, lanes=lanes)
            np.testing.assert_array_equal(got, fn(a, b), op)
        one: dict[str, Any] = {
            "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor,
            "ceil": np.ceil, "trunc": np.trunc, "round": np.rint,
        }  # fmt: skip
        for op, fn in one.items():
            got = of(lambda x, op=op: unary(op, x), a, out=t, kind=t, lanes=lanes)
            np.testing.assert_array_equal(got, fn(a), op)
            np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]),
                                          np.signbit(fn(a)[~np.isnan(got)]), op)  # fmt: skip
        for op, fn in (("isnan", np.isnan), ("isinf", np.isinf)):
            got = of(lambda x, op=op: unary(op, x), a, out=boolean, kind=t, lanes=lanes)
            np.testing.assert_array_equal(got, fn(a), op)


@lanes_and_scalar
def test_bf16_computes_in_float32_and_rounds_to_nearest_even(lanes: int) -> None:
    a = as_bf16(np.array([1.0, -2.5, 0.1, 3e38, np.inf, np.nan, -0.0, 1e-40], np.float32))
    got = of(lambda x: x * const(1.1, bf16), a, out=bf16, kind=bf16, lanes=lanes)
    tenth = wide(as_bf16(np.array([1.1], np.float32)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(wide(got), wide(as_bf16(wide(a) * tenth)))
    got = of(lambda x: binary("max", x, const(-0.3, bf16)), a, out=bf16, kind=bf16, lanes=lanes)
    limit = wide(as_bf16(np.array([-0.3], np.float32)))
    np.testing.assert_array_equal(wide(got), np.maximum(wide(a), limit))


@lanes_and_scalar
@pytest.mark.parametrize("t", [f16, bf16, f32], ids=str)
def test_constants_beyond_a_types_range_are_infinite(t: DType, lanes: int) -> None:
    one = np.ones(5, np.float32)
    for value in (1e39, -1e39, 7e4 if t is f16 else 3.4028236e38):
        got = of(
            lambda x, v=value: cast(cast(x, t) * const(v, t), f32),
            one,
            out=f32,
            kind=f32,
            lanes=lanes,
        )
        np.testing.assert_array_equal(got, np.inf if value > 0 else -np.inf)


# --------------------------------------------------------------------------- conversions


def as_bf16(x: Array) -> Array:
    """float32 to the bits of the nearest bf16, ties to even; NaN stays NaN."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    out = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), out)


def wide(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def samples(t: DType) -> Array:
    if t is boolean:
        return np.array([0, 1, 1], bool)
    if t in INTEGERS:
        return np.unique(pairs(t)[0])
    edges = [0.0, -0.0, 0.4, 0.5, 0.99, 1.0, 1.5, 2.5, -0.5, -1.0, -1.99, -3.5, 127.0, 127.6, 128.0,
             -128.9, 255.9, 256.0, 32767.5, -32769.0, 65519.0, 65520.0, 1.00390625, 1.01171875,
             2147483520.0, 2147483648.0, -2147483648.0, 4294967040.0, 4294967296.0, 9.2233715e18,
             9.223372e18, -9.3e18, 1.8446743e19, 2e19, 3e38, 1e-40, 6e-8, np.inf, -np.inf,
             np.nan]  # fmt: skip
    with np.errstate(over="ignore"):
        if t is bf16:
            return as_bf16(np.array(edges, np.float32))
        return np.array(edges).astype(t.numpy)


def converted(x: Array, src: DType, to: DType) -> Array:
    """What a conversion means: floats truncate and saturate, NaN is 0, integers wrap, anything to
    bool is x != 0, floats round to nearest even."""
    values = wide(x).astype(np.float64) if src is bf16 else x
    if to is boolean:
        return np.asarray(values != 0)
    if src.is_float and to in INTEGERS:
        lo, hi = limits(to)
        cut = [
            0 if v != v else lo if v <= lo else hi if v >= hi else int(v) for v in values.tolist()
        ]
        return np.array(cut, to.numpy)
    if to in INTEGERS:
        return np.array([wrap(int(v), to) for v in values.tolist()], to.numpy)
    with np.errstate(over="ignore"):
        if to is bf16:
            return as_bf16(values.astype(np.float32))
        return np.asarray(values.astype(to.numpy))


@lanes_and_scalar
@pytest.mark.parametrize("src", DTYPES.values(), ids=str)
def test_conversions_between_all_types(src: DType, lanes: int) -> None:
    x = samples(src)
    for to in DTYPES.values():
        got = of(lambda v, to=to: cast(v, to), x, out=to, kind=src, lanes=lanes)
        want = converted(x, src, to)
        if to is bf16:
            got, want = wide(got), wide(want)
        np.testing.assert_array_equal(got, want, f"{src} to {to}")


def test_uniform_numbers_convert_to_every_type() -> None:
    """Constants and loop variables are known while compiling."""
    x = np.zeros(5, np.int32)
    for value, to in product((0, 1, -1, 300, (1 << 31) - 1, -(1 << 40) - 5), DTYPES.values()):
        got = of(
            lambda _, v=value, to=to: apply("cast", (const(v, i64),), to),
            x,
            out=to,
            kind=i32,
            lanes=8,
        )
        want = converted(np.full(5, value), i64, to)
        if to is bf16:
            got, want = wide(got), wide(want)
        np.testing.assert_array_equal(got, want, f"{value} to {to}")
