"""Activation functions: elementwise, of floats (relu and prelu of integers too)."""

# mypy: disable-error-code="misc"
# (an operator's class is a namespace: its functions have no self)

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .expr import Expr, exp, maximum, minimum, select, unary
from .operator import operator, require
from .pointwise import (
    IN_PLACE,
    arithmetic,
    declare_function,
    like_floats,
    like_numbers,
    numpy_erf,
    special_values,
    unary_floats,
    unary_numbers,
)
from .samples import Array, Case, Sampler
from .types import TensorType

# --------------------------------------------------------------------------- building blocks


def _sigmoid(x: Expr) -> Expr:
    return 1 / (1 + exp(-x))


def _softplus(x: Expr) -> Expr:
    """log(1 + exp(x)) without overflow."""
    return maximum(x, 0) + unary("log1p", exp(-unary("abs", x)))


def _expm1(x: Expr) -> Expr:
    return unary("expm1", x)


def _sigmoid_of(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _softplus_of(x: Array) -> Array:
    return np.asarray(np.logaddexp(x, x.dtype.type(0)))


_SMOOTH = unary_floats(-9, 9)


# --------------------------------------------------------------------------- without attributes

declare_function(
    "sigmoid", "1 / (1 + exp(-x)). ONNX: Sigmoid.", _sigmoid, _sigmoid_of, unary_floats(-20, 20)
)
declare_function(
    "log_sigmoid",
    "log(sigmoid(x)), in the form that keeps its accuracy far below 0. ONNX: LogSigmoid.",
    lambda x: minimum(x, 0) - unary("log1p", exp(-unary("abs", x))),
    lambda x: -_softplus_of(-x),
    unary_floats(-20, 20),
)
declare_function(
    "silu",
    "x * sigmoid(x). ONNX: Mul(x, Sigmoid(x)), or Swish with alpha=1.",
    lambda x: x / (1 + exp(-x)),
    lambda x: x * _sigmoid_of(x),
    _SMOOTH,
)
declare_function(
    "softplus", "log(1 + exp(x)). ONNX: Softplus.", _softplus, _softplus_of, unary_floats(-20, 20)
)
declare_function(
    "softsign",
    "x / (1 + |x|). ONNX: Softsign.",
    lambda x: x / (1 + unary("abs", x)),
    lambda x: x / (1 + np.abs(x)),
    _SMOOTH,
)
declare_function(
    "mish",
    "x * tanh(softplus(x)). ONNX: Mish.",
    lambda x: x * unary("tanh", _softplus(x)),
    lambda x: x * np.tanh(_softplus_of(x)),
    _SMOOTH,
)
declare_function(
    "hard_swish",
    "x * max(0, min(1, x / 6 + 0.5)). ONNX: HardSwish.",
    lambda x: x * maximum(0, minimum(1, x * (1 / 6) + 0.5)),
    lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    _SMOOTH,
)


@operator("relu", traits=IN_PLACE)
class Relu:
    """max(x, 0). ONNX: Relu."""

    infer = like_numbers
    samples = unary_numbers

    def compute(x: Expr) -> Expr:
        return maximum(x, 0)

    def reference(x: Array) -> Array:
        return np.asarray(np.maximum(x, x.dtype.type(0)))


@operator("prelu", inputs=("x", "slope"), traits=IN_PLACE)
class PRelu:
    """x, times slope where x < 0; slope broadcasts to x. ONNX: PRelu."""

    def infer(x: TensorType, slope: TensorType) -> TensorType:
        out = arithmetic(x, slope)
        require(out.shape == x.shape, f"slope {slope} does not broadcast to {x}")
        return out

    def compute(x: Expr, slope: Expr) -> Expr:
        return select(x < 0, x * slope, x)

    def reference(x: Array, slope: Array) -> Array:
        return np.asarray(np.where(x < 0, x * slope, x))

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3, 5, 7), s.numbers(3, 1, 1), constant=(1,))
        yield s.case(s.numbers(3, 7), s.numbers(3, 7))
        yield s.case(s.numbers(13), s.numbers())
        if s.dtype.is_float:
            yield s.case(special_values(s), s.floats(1, lo=0.1, hi=0.5))


# --------------------------------------------------------------------------- with attributes


@operator("leaky_relu", attrs={"alpha": 0.01}, traits=IN_PLACE)
class LeakyRelu:
    """x, times alpha where x < 0. ONNX: LeakyRelu."""

    def infer(x: TensorType, *, alpha: float) -> TensorType:
        return like_floats(x)

    def compute(x: Expr, *, alpha: float) -> Expr:
        return select(x < 0, x * alpha, x)

    def reference(x: Array, *, alpha: float) -> Array:
        return np.asarray(np.where(x < 0, alpha * x, x))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13), alpha=0.3)
        yield s.case(s.floats(3, 13), alpha=-1.5)


@operator("elu", attrs={"alpha": 1.0}, traits=IN_PLACE)
class Elu:
    """x, and alpha * (exp(x) - 1) where x < 0. ONNX: Elu."""

    def infer(x: TensorType, *, alpha: float) -> TensorType:
        return like_floats(x)

    def compute(x: Expr, *, alpha: float) -> Expr:
        return select(x < 0, alpha * _expm1(x), x)

    def reference(x: Array, *, alpha: float) -> Array:
        return np.asarray(np.where(x < 0, alpha * np.expm1(x), x))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13, lo=-100, hi=100), alpha=0.3)


_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


@operator("selu", attrs={"alpha": _SELU_ALPHA, "gamma": _SELU_GAMMA}, traits=IN_PLACE)
class Selu:
    """gamma * x, and gamma * alpha * (exp(x) - 1) where x < 0. ONNX: Selu."""

    def infer(x: TensorType, *, alpha: float, gamma: float) -> TensorType:
        return like_floats(x)

    def compute(x: Expr, *, alpha: float, gamma: float) -> Expr:
        return gamma * select(x < 0, alpha * _expm1(x), x)

    def reference(x: Array, *, alpha: float, gamma: float) -> Array:
        return np.asarray(np.where(x < 0, gamma * alpha * np.expm1(x), gamma * x))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13), alpha=2.0, gamma=3.0)


@operator("celu", attrs={"alpha": 1.0}, traits=IN_PLACE)
class Celu:
    """x, and alpha * (exp(x / alpha) - 1) where x < 0. ONNX: Celu."""

    def infer(x: TensorType, *, alpha: float) -> TensorType:
        require(alpha != 0, "alpha divides x and cannot be 0")
        return like_floats(x)

    def compute(x: Expr, *, alpha: float) -> Expr:
        return select(x < 0, alpha * _expm1(x / alpha), x)

    def reference(x: Array, *, alpha: float) -> Array:
        return np.asarray(np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha)))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13), alpha=2.5)
        yield s.case(s.floats(3, 13), alpha=-0.5)


@operator("gelu", attrs={"approximate": "none"}, traits=IN_PLACE)
class Gelu:
    """x * Phi(x), Phi being the normal distribution: 0.5 * x * (1 + erf(x / sqrt(2))), or with
    approximate="tanh" 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))). ONNX: Gelu."""

    def infer(x: TensorType, *, approximate: str) -> TensorType:
        require(
            approximate in ("none", "tanh"), f'approximate is "none" or "tanh", got {approximate!r}'
        )
        return like_floats(x)

    def compute(x: Expr, *, approximate: str) -> Expr:
        if approximate == "none":
            return 0.5 * x * (1 + unary("erf", x * math.sqrt(0.5)))
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1 + unary("tanh", inner))

    def reference(x: Array, *, approximate: str) -> Array:
        if approximate == "none":
            return np.asarray(0.5 * x * (1 + numpy_erf(x / math.sqrt(2))))
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))

    def samples(s: Sampler) -> Iterator[Case]:
        for approximate in ("none", "tanh"):
            yield s.case(s.floats(3, 7, lo=-5, hi=5), approximate=approximate)
            yield s.case(s.floats(1, 13, 17), approximate=approximate)
            yield s.case(special_values(s), approximate=approximate)


@operator("swish", attrs={"alpha": 1.0}, traits=IN_PLACE)
class Swish:
    """x * sigmoid(alpha * x). ONNX: Swish."""

    def infer(x: TensorType, *, alpha: float) -> TensorType:
        return like_floats(x)

    def compute(x: Expr, *, alpha: float) -> Expr:
        return x / (1 + exp(-alpha * x))

    def reference(x: Array, *, alpha: float) -> Array:
        return np.asarray(x * _sigmoid_of(alpha * x))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13, lo=-9, hi=9), alpha=0.5)
        yield s.case(s.floats(3, 13, lo=-9, hi=9), alpha=-1.5)


@operator("quick_gelu", attrs={"alpha": 1.702}, traits=IN_PLACE)
class QuickGelu:
    """x * sigmoid(1.702 * x), which is close to gelu. com.microsoft: QuickGelu."""

    samples, infer, compute = Swish.samples, Swish.infer, Swish.compute
    reference = Swish.reference


@operator("hard_sigmoid", attrs={"alpha": 0.2, "beta": 0.5}, traits=IN_PLACE)
class HardSigmoid:
    """max(0, min(1, alpha * x + beta)). ONNX: HardSigmoid."""

    def infer(x: TensorType, *, alpha: float, beta: float) -> TensorType:
        return like_floats(x)

    def compute(x: Expr, *, alpha: float, beta: float) -> Expr:
        return maximum(0, minimum(1, alpha * x + beta))

    def reference(x: Array, *, alpha: float, beta: float) -> Array:
        return np.asarray(np.clip(alpha * x + beta, 0, 1))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13), alpha=1 / 6, beta=0.4)


@operator("thresholded_relu", attrs={"alpha": 1.0}, traits=IN_PLACE)
class ThresholdedRelu:
    """x where x > alpha, else 0. ONNX: ThresholdedRelu."""

    def infer(x: TensorType, *, alpha: float) -> TensorType:
        return like_floats(x)

    def compute(x: Expr, *, alpha: float) -> Expr:
        return select(x > alpha, x, 0)

    def reference(x: Array, *, alpha: float) -> Array:
        return np.asarray(np.where(x > alpha, x, x.dtype.type(0)))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13), alpha=-0.5)


@operator("shrink", attrs={"bias": 0.0, "lambd": 0.5}, traits=IN_PLACE)
class Shrink:
    """0 where |x| <= lambd; beyond it, x moved toward 0 by bias. ONNX: Shrink."""

    def infer(x: TensorType, *, bias: float, lambd: float) -> TensorType:
        return like_floats(x)

    def compute(x: Expr, *, bias: float, lambd: float) -> Expr:
        return select(x < -lambd, x + bias, select(x > lambd, x - bias, 0))

    def reference(x: Array, *, bias: float, lambd: float) -> Array:
        inner = np.where(x > lambd, x - bias, x.dtype.type(0))
        return np.asarray(np.where(x < -lambd, x + bias, inner))

    def samples(s: Sampler) -> Iterator[Case]:
        yield from _SMOOTH(s)
        yield s.case(s.floats(3, 13), lambd=1.0, bias=0.25)
