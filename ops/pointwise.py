"""What the declarations of elementwise operators share: type rules, samples, one-line functions.

Elementwise operators take inputs of one element type, broadcast as numpy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from .expr import Expr, binary, unary
from .operator import (
    Elementwise,
    Inplace,
    Operator,
    Trait,
    operator,
    require,
    require_float,
    require_same_dtype,
)
from .samples import Array, Case, Sampler
from .types import TensorType, bf16, boolean, broadcast_shapes

POINTWISE: Final[tuple[Trait, ...]] = (Elementwise(),)
IN_PLACE: Final[tuple[Trait, ...]] = (Elementwise(), Inplace(0))

Samples = Callable[[Sampler], Iterator[Case]]


# --------------------------------------------------------------------------- types


def refuse_bf16(*types: TensorType | None) -> None:
    """Refuse bf16, which is stored, converted and multiplied; what else there is to compute is
    computed in f32."""
    for t in types:
        require(
            t is None or t.dtype is not bf16, f"bf16 is not computed with, got {t}: cast to f32"
        )


def require_numbers(*types: TensorType | None) -> None:
    """Floats or integers."""
    refuse_bf16(*types)
    for t in types:
        require(t is None or t.dtype is not boolean, f"needs numbers, got {t}")


def require_floats(*types: TensorType | None) -> None:
    require_float(*types)
    refuse_bf16(*types)


def require_integers(*types: TensorType) -> None:
    for t in types:
        require(t.dtype.is_integer, f"needs integers, got {t}")


def like(x: TensorType) -> TensorType:
    """x's element type and shape, row-major."""
    return TensorType(x.dtype, x.shape)


def broadcast(*types: TensorType) -> TensorType:
    """The row-major type of an elementwise result. Raises OperatorError where element types differ
    or shapes do not broadcast."""
    require(len(types) > 0 and None not in types, "needs at least one input, and none left out")
    require_same_dtype(*types)
    if len({t.shape for t in types}) == 1:
        return like(types[0])
    return TensorType(types[0].dtype, broadcast_shapes(*(t.dims for t in types)))


def like_numbers(x: TensorType) -> TensorType:
    require_numbers(x)
    return like(x)


def like_floats(x: TensorType) -> TensorType:
    require_floats(x)
    return like(x)


def arithmetic(*types: TensorType) -> TensorType:
    """The result type of arithmetic on floats or integers."""
    out = broadcast(*types)
    require_numbers(*types)
    return out


# --------------------------------------------------------------------------- samples


def special_values(s: Sampler) -> Array:
    """NaN, infinities, both zeros, and a plain number."""
    return np.asarray([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0], s.floats(1).dtype)


def unary_floats(lo: float = -4.0, hi: float = 4.0) -> Samples:
    """Cases of one float input in [lo, hi), and one of special values."""

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.floats(3, 7, lo=lo, hi=hi))
        yield s.case(s.floats(1, 13, 17, lo=lo, hi=hi))
        yield s.case(s.floats(lo=lo, hi=hi))
        yield s.case(special_values(s))

    return samples


def unary_numbers(s: Sampler) -> Iterator[Case]:
    yield s.case(s.numbers(3, 7))
    yield s.case(s.numbers())
    if s.dtype.is_float:
        yield s.case(special_values(s))


def binary_numbers(s: Sampler) -> Iterator[Case]:
    """Two inputs: equal shapes, broadcasting both ways, rank 0, no elements, special values."""
    yield s.case(s.numbers(3, 7), s.numbers(3, 7))
    yield s.case(s.numbers(2, 1, 13), s.numbers(5, 1))
    yield s.case(s.numbers(1, 3, 1, 1), s.numbers(2, 3, 4, 5))
    yield s.case(s.numbers(17), s.numbers())
    yield s.case(s.numbers(0, 3), s.numbers(1, 3))
    if s.dtype.is_float:
        x = special_values(s)
        yield s.case(x, x[:, None])


def variadic_numbers(s: Sampler) -> Iterator[Case]:
    yield s.case(s.numbers(3, 7))
    yield s.case(s.numbers(3, 7), s.numbers(7), s.numbers(2, 1, 1))
    yield s.case(s.numbers(2, 1, 3, 1), s.numbers(13), s.numbers(), s.numbers(3, 1))
    if s.dtype.is_float:
        x = special_values(s)
        yield s.case(x, x[:, None], s.numbers(1))


# --------------------------------------------------------------------------- functions


def unary_call(name: str) -> Callable[[Expr], Expr]:
    """The primitive `name` as a `compute`."""
    return lambda x: unary(name, x)


def numpy_erf(x: Array) -> Array:
    """The error function, which numpy lacks."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype))


def declare_function(
    name: str,
    doc: str,
    compute: Callable[[Expr], Expr],
    reference: Callable[[Array], Array],
    samples: Samples,
) -> Operator:
    """Register a function of one float tensor without attributes."""
    parts = {
        "__doc__": doc,
        "infer": like_floats,
        "compute": compute,
        "reference": reference,
        "samples": samples,
    }
    return operator(name, traits=IN_PLACE)(type(name, (), parts))


def power_of_positive(x: Expr, exponent: float) -> Expr:
    """x ** exponent for x >= 0: square roots where the exponent is a small multiple of 1/4, which
    are correctly rounded one by one and much faster than a power."""
    quarters = exponent * 4
    if quarters not in (1.0, 2.0, 3.0, 4.0):
        return binary("pow", x, exponent)
    if quarters == 4:
        return x
    root = unary("sqrt", x)
    if quarters == 2:
        return root
    return unary("sqrt", root) if quarters == 1 else root * unary("sqrt", root)


def over_power(x: Expr, base: Expr, exponent: float) -> Expr:
    """x / base ** exponent for base >= 0. With 3/4 it takes no division, and one square root
    instead of two: base ** -3/4 is r * sqrt(r) with r = 1 / sqrt(base)."""
    if exponent != 0.75:
        return x / power_of_positive(base, exponent)
    root = unary("rsqrt", base)
    return x * (root * unary("sqrt", root))
