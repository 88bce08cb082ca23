"""Converters of operators that onnxruntime's optimizer puts into models (domain com.microsoft)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..graph.builder import Value
from .onnx_call import Call, Converter, Result, Unsupported, converts
from .onnx_compute import check_kernel_shape, simplified_layer_normalization

_DOMAIN = "com.microsoft"
_ACTIVATIONS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "": ("identity", ()),
    "Relu": ("relu", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "LeakyRelu": ("leaky_relu", ("alpha",)),
    "HardSigmoid": ("hard_sigmoid", ("alpha", "beta")),
    "Clip": ("clip", ("min", "max")),
}
"""What may follow a convolution: the operator, and what its parameters are, in their order."""


def _microsoft(*op_types: str) -> Callable[[Converter], Converter]:
    return converts(*op_types, domain=_DOMAIN)


@_microsoft("Gelu")
def _gelu(c: Call) -> Result:
    return c.forward()


@_microsoft("QuickGelu")
def _quick_gelu(c: Call) -> Result:
    return c.forward()


@_microsoft("BiasGelu", "FastGelu")
def _bias_gelu(c: Call) -> Result:
    x, bias = c.need(0, "input"), c.value(1)
    x = x if bias is None else c.op("add", x, bias)
    approximate = "tanh" if c.op_type == "FastGelu" else "none"
    result: Result = c.emit("gelu", x, approximate=approximate)
    return result


_microsoft("SimplifiedLayerNormalization")(simplified_layer_normalization)


@_microsoft("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip_layer_normalization(c: Call) -> Result:
    """input + skip (+ bias), normalised over the last axis; output 3 is that sum."""
    if c.wants(1) or c.wants(2):
        raise Unsupported("its mean and deviation are only there for training")
    simplified = c.op_type.startswith("SkipSimplified")
    gamma = c.need(2, "gamma")
    beta = None if simplified else c.value(3)
    bias = c.value(3 if simplified else 4)
    total: Value = c.op("add", c.need(0, "input"), c.need(1, "skip"))
    if bias is not None:
        total = c.op("add", total, bias)
    epsilon = c.attr("epsilon", 1e-12)
    operator = "rms_normalization" if simplified else "layer_normalization"
    y = c.op(operator, total, gamma, beta, axis=-1, epsilon=epsilon)
    return (y[0] if isinstance(y, tuple) else y, None, None, total)


@_microsoft("FusedConv")
def _fused_conv(c: Call) -> Result:
    """A convolution, Z added to it where that is given, and an activation."""
    name, params = c.attr("activation", ""), c.attr("activation_params", ())
    operator, known = _ACTIVATIONS.get(name, ("", ()))
    if not operator or len(params) != len(known):
        raise Unsupported(f"its activation {name!r} with {len(params)} parameters is unknown")
    x, w = c.need(0, "X"), c.need(1, "W")
    check_kernel_shape(c, w.type)
    own = ("kernel_shape", "activation", "activation_params")
    attrs = {k: c.attr(k, None) for k in c.attrs if k not in own}
    y: Value = c.op("conv", x, w, c.value(2), **attrs)
    z = c.value(3)
    if z is not None:
        y = c.op("add", y, z)
    if operator == "clip":  # its limits are inputs
        result: Result = c.emit(operator, y, *(c.like(v, y) for v in params))
    else:
        result = c.emit(operator, y, **dict(zip(known, params, strict=True)))
    return result


@_microsoft("FusedMatMul")
def _fused_matmul(c: Call) -> Result:
    """alpha * a @ b, each possibly transposed."""
    if c.attr("transBatchA", 0) or c.attr("transBatchB", 0):
        raise Unsupported("transposed batches are not supported")
    operands = []
    for k, name in ((0, "A"), (1, "B")):
        v = c.need(k, name)
        rank = v.type.rank
        if c.attr(f"trans{name}", 0) and rank > 1:
            v = c.op("transpose", v, perm=(*range(rank - 2), rank - 1, rank - 2))
        operands.append(v)
    alpha = c.attr("alpha", 1.0)
    if alpha == 1.0:
        result: Result = c.emit("matmul", *operands)
        return result
    result = c.emit("mul", c.op("matmul", *operands), c.like(alpha, operands[0]))
    return result
