"""Arithmetic, rounding, elementary functions and conversions, element by element."""

# mypy: disable-error-code="misc"
# (an operator's class is a namespace: its functions have no self)

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Final

import numpy as np

from .expr import Expr, binary, cast, compare, const, logical_or, maximum, minimum, select, unary
from .operator import REQUIRED, View, operator, require, require_float
from .pointwise import (
    IN_PLACE,
    POINTWISE,
    arithmetic,
    binary_numbers,
    broadcast,
    declare_function,
    like,
    like_floats,
    like_numbers,
    numpy_erf,
    require_numbers,
    special_values,
    unary_call,
    unary_floats,
    unary_numbers,
    variadic_numbers,
)
from .samples import Array, Case, Sampler
from .types import TensorType, bf16, boolean, dtype_of, f64

# --------------------------------------------------------------------------- arithmetic


@operator("add", inputs=("x", "y"), traits=IN_PLACE)
class Add:
    """x + y. ONNX: Add."""

    infer = arithmetic
    reference = np.add
    samples = binary_numbers

    def compute(x: Expr, y: Expr) -> Expr:
        return x + y


@operator("sub", inputs=("x", "y"), traits=IN_PLACE)
class Sub:
    """x - y. ONNX: Sub."""

    infer = arithmetic
    reference = np.subtract
    samples = binary_numbers

    def compute(x: Expr, y: Expr) -> Expr:
        return x - y


@operator("mul", inputs=("x", "y"), traits=IN_PLACE)
class Mul:
    """x * y. ONNX: Mul."""

    infer = arithmetic
    reference = np.multiply
    samples = binary_numbers

    def compute(x: Expr, y: Expr) -> Expr:
        return x * y


def _trapping(x: Expr, y: Expr) -> Expr:
    """Where an integer division x / y would trap on some processors: by 0, and lowest / -1."""
    zero = compare("eq", y, 0)
    return zero if x.dtype.kind == "u" else logical_or(zero, compare("eq", y, -1))


@operator("div", inputs=("x", "y"), traits=IN_PLACE)
class Div:
    """x / y; integers are rounded toward zero, and x / 0 is 0 for them. ONNX: Div."""

    infer = arithmetic
    samples = binary_numbers

    def compute(x: Expr, y: Expr) -> Expr:
        if x.dtype.is_float:
            return x / y
        trap = _trapping(x, y)
        return select(trap, x * y, binary("truncdiv", x, select(trap, 1, y)))

    def reference(x: Array, y: Array) -> Array:
        if x.dtype.kind == "f":
            return np.asarray(x / y)
        return np.asarray((x - np.fmod(x, y)) // y)


@operator("mod", inputs=("x", "y"), attrs={"fmod": 0}, traits=IN_PLACE)
class Mod:
    """The remainder of x / y: with fmod=0 it has the sign of y (integers only), with fmod=1 the
    sign of x. Integers modulo 0 give 0. ONNX: Mod."""

    def infer(x: TensorType, y: TensorType, *, fmod: int) -> TensorType:
        require(fmod in (0, 1), f"fmod is 0 or 1, got {fmod}")
        require(fmod == 1 or not x.dtype.is_float, f"floats need fmod=1, got {x} and fmod=0")
        return arithmetic(x, y)

    def compute(x: Expr, y: Expr, *, fmod: int) -> Expr:
        if x.dtype.is_integer:
            y = select(_trapping(x, y), 1, y)
        return binary("fmod" if fmod else "mod", x, y)

    def reference(x: Array, y: Array, *, fmod: int) -> Array:
        return np.asarray(np.fmod(x, y) if fmod else np.mod(x, y))

    def samples(s: Sampler) -> Iterator[Case]:
        modes = (1,) if s.dtype.is_float else (0, 1)
        for fmod in modes:
            for case in binary_numbers(s):
                yield s.case(*case.inputs, fmod=fmod)


@operator("pow", inputs=("x", "y"), traits=IN_PLACE)
class Pow:
    """x to the power y, in x's element type; y may have another one. ONNX: Pow.

    Integers go through float64, as in onnxruntime: exact up to 2**53.
    """

    def infer(x: TensorType, y: TensorType) -> TensorType:
        require_numbers(x, y)
        return broadcast(x, y.with_dtype(x.dtype))

    def compute(x: Expr, y: Expr) -> Expr:
        if x.dtype.is_float:
            return binary("pow", x, cast(y, x.dtype))
        return cast(binary("pow", cast(x, f64), cast(y, f64)), x.dtype)

    def reference(x: Array, y: Array) -> Array:
        if x.dtype.kind == "f":
            return np.asarray(np.power(x, y.astype(x.dtype)))
        return np.asarray(np.power(x.astype(np.float64), y.astype(np.float64)).astype(x.dtype))

    def samples(s: Sampler) -> Iterator[Case]:
        if s.dtype.is_float:
            yield s.case(s.floats(3, 7, lo=0.1, hi=4), s.floats(7))
            yield s.case(s.floats(1, 13), s.ints(3, 1, lo=-3, hi=5))
            yield s.case(s.floats(5, 7), s.floats())  # a negative x gives NaN
            x = special_values(s)
            yield s.case(x, x[:, None])
            for y in (2.0, 0.5, -1.0):
                yield s.case(s.floats(3, 7, lo=0.1, hi=4), np.asarray(y, x.dtype), constant=(1,))
        else:
            yield s.case(s.numbers(3, 7), s.numbers(3, 1, lo=0, hi=6))
            # 9**2.5 is 243 exactly; an inexact result next to an integer would be cut either way
            yield s.case(s.numbers(7, lo=9, hi=10), np.asarray([2.5], np.float32))


@operator("neg", traits=IN_PLACE)
class Neg:
    """-x, of floats and signed integers. ONNX: Neg."""

    reference = np.negative
    samples = unary_numbers

    def infer(x: TensorType) -> TensorType:
        require(x.dtype.kind != "u", f"needs numbers with a sign, got {x}")
        return like_numbers(x)

    def compute(x: Expr) -> Expr:
        return -x


@operator("abs", traits=IN_PLACE)
class Abs:
    """|x|. ONNX: Abs."""

    infer = like_numbers
    reference = np.abs
    samples = unary_numbers

    def compute(x: Expr) -> Expr:
        return x if x.dtype.kind == "u" else unary("abs", x)


@operator("sign", traits=IN_PLACE)
class Sign:
    """-1, 0 or 1; NaN stays NaN. ONNX: Sign."""

    infer = like_numbers
    reference = np.sign
    samples = unary_numbers

    def compute(x: Expr) -> Expr:
        positive = select(x > 0, 1, x)
        return positive if x.dtype.kind == "u" else select(x < 0, -1, positive)


@operator("min", inputs=("xs*",), traits=IN_PLACE)
class Min:
    """The least of all inputs; NaN wherever one is NaN. ONNX: Min."""

    infer = arithmetic
    samples = variadic_numbers

    def compute(*xs: Expr) -> Expr:
        return reduce(minimum, xs)

    def reference(*xs: Array) -> Array:
        return np.asarray(reduce(np.minimum, xs))


@operator("max", inputs=("xs*",), traits=IN_PLACE)
class Max:
    """The greatest of all inputs; NaN wherever one is NaN. ONNX: Max."""

    infer = arithmetic
    samples = variadic_numbers

    def compute(*xs: Expr) -> Expr:
        return reduce(maximum, xs)

    def reference(*xs: Array) -> Array:
        return np.asarray(reduce(np.maximum, xs))


@operator("sum", inputs=("xs*",), traits=IN_PLACE)
class Sum:
    """The sum of all inputs, added from the left. ONNX: Sum."""

    infer = arithmetic
    samples = variadic_numbers

    def compute(*xs: Expr) -> Expr:
        return reduce(lambda a, b: a + b, xs)

    def reference(*xs: Array) -> Array:
        return np.asarray(reduce(np.add, xs))


@operator("mean", inputs=("xs*",), traits=IN_PLACE)
class Mean:
    """The mean of all inputs, of floats. ONNX: Mean."""

    samples = variadic_numbers

    def infer(*xs: TensorType) -> TensorType:
        out = arithmetic(*xs)
        require_float(*xs)
        return out

    def compute(*xs: Expr) -> Expr:
        return reduce(lambda a, b: a + b, xs) / len(xs)

    def reference(*xs: Array) -> Array:
        return np.asarray(reduce(np.add, xs) / len(xs))


@operator("clip", inputs=("x", "min?", "max?"), traits=IN_PLACE)
class Clip:
    """x held between min and max, max where they cross; NaN stays NaN. ONNX: Clip.

    The limits are scalars in ONNX; here anything that broadcasts to x's shape.
    """

    def infer(x: TensorType, lo: TensorType | None, hi: TensorType | None) -> TensorType:
        present = [t for t in (x, lo, hi) if t is not None]
        out = arithmetic(*present)
        require(
            out.shape == x.shape,
            f"limits must broadcast to {x}, got {lo or 'no min'} and {hi or 'no max'}",
        )
        return out

    def compute(x: Expr, lo: Expr | None, hi: Expr | None) -> Expr:
        x = x if lo is None else maximum(x, lo)
        return x if hi is None else minimum(x, hi)

    def reference(x: Array, lo: Array | None, hi: Array | None) -> Array:
        x = x if lo is None else np.asarray(np.maximum(x, lo))
        return x if hi is None else np.asarray(np.minimum(x, hi))

    def samples(s: Sampler) -> Iterator[Case]:
        lo, hi = (np.asarray(v, s.numbers(1).dtype) for v in (1, 3))
        yield s.case(s.numbers(3, 7), lo, hi, constant=(1, 2))
        yield s.case(s.numbers(3, 7), lo, None, constant=(1,))
        yield s.case(s.numbers(3, 7), None, hi, constant=(2,))
        yield s.case(s.numbers(3, 7), hi, lo)
        yield s.case(s.numbers(3, 7), s.numbers(7), s.numbers(3, 1))
        yield s.case(s.numbers(13), None, None)
        if s.dtype.is_float:
            yield s.case(special_values(s), lo, hi)


# --------------------------------------------------------------------------- functions of one float


# name in ONNX (ours is its snake case), what it is, numpy's truth, where samples lie
_FUNCTIONS: Final[tuple[tuple[str, str, Callable[[Array], Array], float, float], ...]] = (
    ("Exp", "e to the power x", np.exp, -10, 10),
    ("Log", "The natural logarithm; NaN below 0", np.log, 1e-3, 1e3),
    ("Sqrt", "The square root; NaN below 0", np.sqrt, 0, 100),
    ("Floor", "The greatest integer <= x", np.floor, -9, 9),
    ("Ceil", "The least integer >= x", np.ceil, -9, 9),
    ("Erf", "The error function", numpy_erf, -4, 4),
    ("Sin", "The sine of x radians", np.sin, -1e3, 1e3),
    ("Cos", "The cosine of x radians", np.cos, -1e3, 1e3),
    ("Tan", "The tangent of x radians", np.tan, -1.5, 1.5),
    ("Asin", "The inverse sine in radians; NaN outside [-1, 1]", np.arcsin, -1, 1),
    ("Acos", "The inverse cosine in radians; NaN outside [-1, 1]", np.arccos, -1, 1),
    ("Atan", "The inverse tangent in radians", np.arctan, -20, 20),
    ("Sinh", "The hyperbolic sine", np.sinh, -4, 4),
    ("Cosh", "The hyperbolic cosine", np.cosh, -4, 4),
    ("Tanh", "The hyperbolic tangent", np.tanh, -10, 10),
    ("Asinh", "The inverse hyperbolic sine", np.arcsinh, -100, 100),
    ("Acosh", "The inverse hyperbolic cosine; NaN below 1", np.arccosh, 1, 100),
    ("Atanh", "The inverse hyperbolic tangent; NaN outside [-1, 1]", np.arctanh, -0.99, 0.99),
)

for _onnx, _doc, _truth, _lo, _hi in _FUNCTIONS:
    _name = _onnx.lower()
    declare_function(
        _name, f"{_doc}. ONNX: {_onnx}.", unary_call(_name), _truth, unary_floats(_lo, _hi)
    )

declare_function(
    "reciprocal", "1 / x. ONNX: Reciprocal.", lambda x: 1 / x, lambda x: 1 / x, unary_floats(0.1, 9)
)


def _halves(s: Sampler) -> Iterator[Case]:
    yield s.case(np.arange(-7, 8).astype(s.floats(1).dtype) / 2)
    yield from unary_floats(-9, 9)(s)


declare_function(
    "round",
    "The nearest integer, halves to even. ONNX: Round.",
    unary_call("round"),
    np.rint,
    _halves,
)


# --------------------------------------------------------------------------- copies, conversions


@operator("identity", traits=(*IN_PLACE, View()))
class Identity:
    """x itself. ONNX: Identity."""

    infer = like

    def compute(x: Expr) -> Expr:
        return x

    def reference(x: Array) -> Array:
        return x

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(3, 7))
        yield s.case(s.numbers())
        yield s.case(s.bools(13))


@operator("dropout", attrs={"ratio": 0.5}, traits=IN_PLACE)
class Dropout:
    """Dropout as it is at inference: x itself, and a mask that keeps everything. ONNX: Dropout."""

    def infer(x: TensorType, *, ratio: float) -> tuple[TensorType, TensorType]:
        require(0 <= ratio <= 1, f"ratio {ratio} is no probability")
        y = like_floats(x)
        return y, y.with_dtype(boolean)

    def compute(x: Expr, *, ratio: float) -> tuple[Expr, Expr]:
        return x, const(True, boolean)

    def reference(x: Array, *, ratio: float) -> tuple[Array, Array]:
        return x, np.ones(x.shape, np.bool_)

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(3, 7))
        yield s.case(s.floats(1, 13, 1), ratio=0.1)


@operator("cast", attrs={"to": REQUIRED}, traits=POINTWISE)
class Cast:
    """x in the element type `to`, by name ("f32", "i64", "bool", ...). ONNX: Cast.

    Floats are cut toward zero to become integers (out of range: any value), integers wrap around,
    and anything but 0 is true.
    """

    def infer(x: TensorType, *, to: str) -> TensorType:
        require(isinstance(to, str), f'`to` names an element type such as "f32", got {to!r}')
        target = dtype_of(to)
        return x.with_dtype(target)

    def compute(x: Expr, *, to: str) -> Expr:
        target = dtype_of(to)
        if target is boolean and x.dtype is not boolean:
            return compare("ne", x, 0)
        return cast(x, target)

    def reference(x: Array, *, to: str) -> Array:
        """Values of bf16 are floats here, rounded by whoever stores them."""
        target = dtype_of(to)
        if target is bf16:
            return x if x.dtype.kind == "f" else x.astype(np.float64)
        return x.astype(target.numpy)

    def samples(s: Sampler) -> Iterator[Case]:
        for to in ("f32", "f64", "i32", "i64", "bool"):
            yield s.case(s.numbers(3, 7), to=to)
        yield s.case(s.ints(13, lo=-300, hi=300), to="i8")
        yield s.case(s.ints(13, lo=-300, hi=300), to="u8")
        yield s.case(s.floats(2, 7, lo=0, hi=99), to="u8")
        yield s.case(special_values(s), to="bool")
