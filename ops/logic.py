"""Comparisons, tests, logic on booleans and on bits, and the choice between two tensors."""

# mypy: disable-error-code="misc"
# (an operator's class is a namespace: its functions have no self)

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from .expr import Expr, binary, compare, const, logical_and, logical_or, select, unary
from .operator import REQUIRED, Elementwise, Inplace, operator, require, require_same_dtype
from .pointwise import (
    IN_PLACE,
    POINTWISE,
    arithmetic,
    broadcast,
    like,
    like_floats,
    refuse_bf16,
    require_integers,
    special_values,
    unary_call,
    unary_floats,
)
from .samples import Array, Case, Sampler
from .types import TensorType, boolean, broadcast_shapes

Pair = Callable[[Expr, Expr], Expr]


# --------------------------------------------------------------------------- comparisons


def _compared(x: TensorType, y: TensorType) -> TensorType:
    return arithmetic(x, y).with_dtype(boolean)


def _equated(x: TensorType, y: TensorType) -> TensorType:
    refuse_bf16(x, y)
    return broadcast(x, y).with_dtype(boolean)


def _comparison_samples(s: Sampler) -> Iterator[Case]:
    # few distinct integers, so that equal pairs occur
    def some(*shape: int) -> Array:
        x = s.numbers(*shape, lo=-2, hi=3)
        return np.asarray(np.rint(x)) if s.dtype.is_float else x

    yield s.case(some(3, 7), some(3, 7))
    yield s.case(some(2, 1, 13), some(5, 1))
    yield s.case(some(), some(17))
    if s.dtype.is_float:
        x = special_values(s)
        yield s.case(x, x[:, None])


def _declare_comparison(
    name: str, doc: str, infer: Callable[..., TensorType], compute: Pair, reference: np.ufunc
) -> None:
    parts = {
        "__doc__": doc,
        "infer": infer,
        "compute": compute,
        "reference": reference,
        "samples": _comparison_samples,
    }
    operator(name, inputs=("x", "y"), traits=POINTWISE)(type(name, (), parts))


_declare_comparison(
    "equal", "x == y, booleans too. ONNX: Equal.", _equated,
    lambda x, y: compare("eq", x, y), np.equal,
)  # fmt: skip
_declare_comparison("less", "x < y. ONNX: Less.", _compared, lambda x, y: x < y, np.less)
_declare_comparison(
    "less_or_equal", "x <= y. ONNX: LessOrEqual.", _compared, lambda x, y: x <= y, np.less_equal
)
_declare_comparison("greater", "x > y. ONNX: Greater.", _compared, lambda x, y: x > y, np.greater)
_declare_comparison(
    "greater_or_equal", "x >= y. ONNX: GreaterOrEqual.", _compared,
    lambda x, y: x >= y, np.greater_equal,
)  # fmt: skip


# --------------------------------------------------------------------------- tests of one float


def _to_bool(x: TensorType) -> TensorType:
    return like_floats(x).with_dtype(boolean)


@operator("is_nan", traits=POINTWISE)
class IsNaN:
    """Where x is not a number. ONNX: IsNaN."""

    infer = _to_bool
    compute = unary_call("isnan")
    reference = np.isnan
    samples = unary_floats()


@operator("is_inf", attrs={"detect_negative": 1, "detect_positive": 1}, traits=POINTWISE)
class IsInf:
    """Where x is infinite, of the signs asked for. ONNX: IsInf."""

    def infer(x: TensorType, *, detect_negative: int, detect_positive: int) -> TensorType:
        return _to_bool(x)

    def compute(x: Expr, *, detect_negative: int, detect_positive: int) -> Expr:
        if detect_negative and detect_positive:
            return unary("isinf", x)
        if not detect_negative and not detect_positive:
            return const(False, boolean)
        return compare("eq", x, math.inf if detect_positive else -math.inf)

    def reference(x: Array, *, detect_negative: int, detect_positive: int) -> Array:
        negative = np.isneginf(x) & bool(detect_negative)
        return np.asarray(negative | (np.isposinf(x) & bool(detect_positive)))

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(3, 7))
        for negative in (0, 1):
            for positive in (0, 1):
                yield s.case(special_values(s), detect_negative=negative, detect_positive=positive)


# --------------------------------------------------------------------------- logic


def _booleans(*types: TensorType) -> TensorType:
    for t in types:
        require(t.dtype is boolean, f"needs booleans, got {t}")
    return broadcast(*types)


def _boolean_samples(s: Sampler) -> Iterator[Case]:
    yield s.case(s.bools(3, 7), s.bools(3, 7))
    yield s.case(s.bools(2, 1, 13), s.bools(5, 1))
    yield s.case(s.bools(), s.bools(17))


def _declare_connective(name: str, doc: str, compute: Pair, reference: np.ufunc) -> None:
    parts = {
        "__doc__": doc,
        "infer": _booleans,
        "compute": compute,
        "reference": reference,
        "samples": _boolean_samples,
    }
    operator(name, inputs=("x", "y"), traits=IN_PLACE)(type(name, (), parts))


_declare_connective("logical_and", "Both are true. ONNX: And.", logical_and, np.logical_and)
_declare_connective("logical_or", "At least one is true. ONNX: Or.", logical_or, np.logical_or)
_declare_connective(
    "logical_xor", "Just one is true. ONNX: Xor.", lambda x, y: binary("xor", x, y), np.logical_xor
)


@operator("logical_not", traits=IN_PLACE)
class LogicalNot:
    """True where x is false. ONNX: Not."""

    reference = np.logical_not

    def infer(x: TensorType) -> TensorType:
        return like(_booleans(x))

    def compute(x: Expr) -> Expr:
        return unary("not", x)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.bools(3, 7))
        yield s.case(s.bools())


# --------------------------------------------------------------------------- bits


def _bits(*types: TensorType) -> TensorType:
    require_integers(*types)
    return broadcast(*types)


def _bit_samples(s: Sampler) -> Iterator[Case]:
    for dtype in ("i64", "i32", "u8"):
        lo = 0 if dtype == "u8" else -99
        yield s.case(
            s.ints(3, 7, lo=lo, hi=99, dtype=dtype), s.ints(2, 1, 1, lo=lo, hi=99, dtype=dtype)
        )


def _declare_bitwise(name: str, doc: str, op: str, reference: Callable[..., Array]) -> None:
    parts = {
        "__doc__": doc,
        "infer": _bits,
        "compute": lambda x, y: binary(op, x, y),
        "reference": reference,
        "samples": _bit_samples,
    }
    operator(name, inputs=("x", "y"), traits=IN_PLACE)(type(name, (), parts))


_declare_bitwise("bitwise_and", "x & y. ONNX: BitwiseAnd.", "and", np.bitwise_and)
_declare_bitwise("bitwise_or", "x | y. ONNX: BitwiseOr.", "or", np.bitwise_or)
_declare_bitwise("bitwise_xor", "x ^ y. ONNX: BitwiseXor.", "xor", np.bitwise_xor)


@operator("bitwise_not", traits=IN_PLACE)
class BitwiseNot:
    """Every bit flipped. ONNX: BitwiseNot."""

    infer = _bits
    compute = unary_call("bitnot")
    reference = np.invert

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.ints(3, 7, lo=-99, hi=99))
        yield s.case(s.ints(13, lo=-99, hi=99, dtype="i32"))
        yield s.case(s.ints(13, hi=256, dtype="u8"))


@operator("bit_shift", inputs=("x", "y"), attrs={"direction": REQUIRED}, traits=IN_PLACE)
class BitShift:
    """x shifted by y bits, direction "LEFT" or "RIGHT", of unsigned integers; 0 where y is not less
    than the number of bits. ONNX: BitShift."""

    def infer(x: TensorType, y: TensorType, *, direction: str) -> TensorType:
        require(
            direction in ("LEFT", "RIGHT"), f'direction is "LEFT" or "RIGHT", got {direction!r}'
        )
        require(x.dtype.kind == "u", f"needs unsigned integers, got {x}")
        return _bits(x, y)

    def compute(x: Expr, y: Expr, *, direction: str) -> Expr:
        fits = y < x.dtype.bits
        by = select(fits, y, 0)
        return select(fits, binary("shl" if direction == "LEFT" else "shr", x, by), 0)

    def reference(x: Array, y: Array, *, direction: str) -> Array:
        return np.asarray(np.left_shift(x, y) if direction == "LEFT" else np.right_shift(x, y))

    def samples(s: Sampler) -> Iterator[Case]:
        for direction in ("LEFT", "RIGHT"):
            for dtype in ("u8", "u32", "u64"):
                x, y = s.ints(3, 7, hi=250, dtype=dtype), s.ints(3, 1, hi=8, dtype=dtype)
                yield s.case(x, y, direction=direction)
        big = np.asarray([[0], [7], [8], [200]], np.uint8)
        yield s.case(s.ints(1, 5, hi=256, dtype="u8"), big, direction="LEFT")


# --------------------------------------------------------------------------- choice


@operator("where", inputs=("condition", "x", "y"), traits=(Elementwise(), Inplace(1)))
class Where:
    """x where the condition holds, else y; all three broadcast. ONNX: Where."""

    reference = np.where

    def infer(condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
        require(condition.dtype is boolean, f"the condition must be boolean, got {condition}")
        require_same_dtype(x, y)
        if condition.shape == x.shape == y.shape:
            return like(x)
        return TensorType(x.dtype, broadcast_shapes(condition.dims, x.dims, y.dims))

    def compute(condition: Expr, x: Expr, y: Expr) -> Expr:
        return select(condition, x, y)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.bools(3, 7), s.numbers(3, 7), s.numbers(3, 7))
        yield s.case(s.bools(3, 1, 1), s.numbers(1, 5, 1), s.numbers(13))
        yield s.case(s.bools(), s.numbers(1, 7), s.numbers())
        if s.dtype.is_float:
            x = special_values(s)
            yield s.case(np.isnan(x), s.floats(1), x)
