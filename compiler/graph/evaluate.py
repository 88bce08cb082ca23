"""Run a graph with the operators' numpy references: the truth that kernels are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.types import DType, bf16, f16, f32
from ..errors import GraphError
from .bfloat16 import bits_of, values_of
from .ir import Graph, Op

Array = npt.NDArray[Any]


def evaluate_op(op: Op, inputs: list[Array | None], wide: bool = True) -> tuple[Array, ...]:
    """The reference outputs of one op. wide: floats are promoted to float64 first."""
    if wide:
        inputs = [None if x is None else widen(x) for x in inputs]
    padded = inputs + [None] * ((op.definition.max_inputs or len(inputs)) - len(inputs))
    with np.errstate(all="ignore"):
        out = op.definition.reference(*padded, **op.attributes)
    return tuple(np.asarray(y) for y in (out if isinstance(out, tuple) else (out,)))


def widen(x: Array) -> Array:
    return x.astype(np.float64) if x.dtype in (np.float32, np.float16) else x


def narrow(x: Array, dtype: DType) -> Array:
    """Bring a float64 result back to the declared element type, floats to the bits of bf16."""
    if dtype is bf16 and x.dtype.kind == "f":
        return bits_of(x)
    with np.errstate(all="ignore"):
        return x.astype(dtype.numpy) if x.dtype != dtype.numpy else x


def evaluate(graph: Graph, feeds: Mapping[str, Array], wide: bool = True) -> dict[str, Array]:
    """Outputs by name. wide (the default) computes every float in float64 and keeps it so; integer
    results keep their types. Arrays of bf16 are given as bits, and handed out as floats (in float32
    where not wide, rounded to bf16 after every op). Blobs are dropped after their last use.

    Raises GraphError when an input is missing or a reference disagrees with the inferred shape.
    """
    values: dict[str, Array] = {}
    for n in graph.inputs:
        if n not in feeds:
            raise GraphError(f"no value for the input {n!r} of graph {graph.name!r}")
        values[n] = floats(np.asarray(feeds[n]), graph.type(n).dtype)
    last = {n: k for k, op in enumerate(graph.ops) for n in op.reads}
    for k, op in enumerate(graph.ops):
        ins = [
            None if n is None
            else values[n] if n in values else floats(graph.blobs[n].value, graph.type(n).dtype)
            for n in op.inputs
        ]  # fmt: skip
        results = evaluate_op(op, ins, wide)
        for n, y in zip(op.outputs, results, strict=True):
            t = graph.type(n)
            if y.shape != t.dims:
                raise GraphError(f"{op.operator} (node {op.name!r}): the reference gives shape "
                                 f"{list(y.shape)} where {t} was inferred")  # fmt: skip
            keep_wide = wide and t.dtype in (f32, f16, bf16)
            values[n] = y if keep_wide else _narrowed(y, t.dtype)
        for n in op.reads:
            if last[n] == k and n not in graph.outputs:
                values.pop(n, None)
    out: dict[str, Array] = {}
    for n in graph.outputs:
        v = values.get(n)
        out[n] = v if v is not None else floats(graph.blobs[n].value, graph.type(n).dtype)
    return out


def floats(x: Array | None, dtype: DType) -> Array:
    """An array of the caller's, or a constant, as references compute with it: bf16 as float32."""
    held = np.asarray(x)
    return values_of(held) if dtype is bf16 and held.dtype == dtype.numpy else held


def _narrowed(x: Array, dtype: DType) -> Array:
    return floats(narrow(x, dtype), dtype)
