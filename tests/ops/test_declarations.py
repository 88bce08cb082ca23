"""Every registered operator keeps its promises, on its own samples and in every element type:
`infer` agrees with the numpy reference, `compute` and `decompose` mean what the reference says, and
the traits are true.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tilewright.compiler.graph.builder import GraphBuilder, Value
from tilewright.compiler.graph.evaluate import evaluate, narrow, widen
from tilewright.ops import library as _library  # noqa: F401  registers every operator
from tilewright.ops.errors import OperatorError
from tilewright.ops.interpreter import Array, expressions, run_compute
from tilewright.ops.operator import (
    REGISTRY,
    Contraction,
    Elementwise,
    Inplace,
    Opaque,
    Operator,
    Recurrence,
    View,
)
from tilewright.ops.samples import Case, cases
from tilewright.ops.traverse import walk
from tilewright.ops.types import (
    DTYPES,
    ROW_MAJOR,
    DType,
    TensorType,
    boolean,
    dtype_of,
    f32,
    f64,
    i32,
    i64,
)

from .closeness import assert_close

UNDER_TEST = (f32, f64, i32, i64, boolean)

every_operator = pytest.mark.parametrize("name", sorted(REGISTRY))
with_compute = pytest.mark.parametrize(
    "name", sorted(n for n, op in REGISTRY.items() if op.compute is not None)
)
with_decompose = pytest.mark.parametrize(
    "name", sorted(n for n, op in REGISTRY.items() if op.decompose is not None)
)


def types_of(case: Case) -> list[TensorType | None]:
    return [None if x is None else TensorType(dtype_of(x.dtype), x.shape) for x in case.inputs]


def accepted(op: Operator) -> Iterator[tuple[str, Case, tuple[TensorType, ...]]]:
    """The samples that `infer` takes, with the output types. Under f32 it must take all of them;
    under other element types only those that hold such elements are looked at."""
    for dtype in UNDER_TEST:
        for k, case in enumerate(cases(op, dtype)):
            if dtype is not f32 and not holds(case, dtype):
                continue
            try:
                outs = op.infer_types(types_of(case), op.bind(case.attrs))
            except OperatorError:
                if dtype is f32:
                    raise
                continue
            yield f"{op.name}, {dtype} sample {k}", case, outs


def holds(case: Case, dtype: DType) -> bool:
    return any(x is not None and x.dtype == dtype.numpy for x in case.inputs)


def reference(op: Operator, inputs: list[Array | None], attrs: dict[str, Any]) -> list[Array]:
    padded = inputs + [None] * ((op.max_inputs or len(inputs)) - len(inputs))
    with np.errstate(all="ignore"):
        out = op.reference(*padded, **op.bind(attrs))
    return [np.asarray(y) for y in (out if isinstance(out, tuple) else (out,))]


def truth(op: Operator, case: Case, outs: tuple[TensorType, ...]) -> list[Array]:
    """The reference in float64, integers in the declared type."""
    found = reference(op, [None if x is None else widen(x) for x in case.inputs], case.attrs)
    return [
        y.astype(np.float64) if t.dtype.is_float else narrow(y, t.dtype)
        for y, t in zip(found, outs, strict=True)
    ]


def tolerance(case: Case, outs: tuple[TensorType, ...]) -> float:
    """Both sides compute in float64: far less than a kernel is allowed, except that constants and
    conversions may be rounded to a narrower type."""
    types = [t for t in (*types_of(case), *outs) if t is not None and t.dtype.is_float]
    narrowest = min((t.dtype.bits for t in types), default=64)
    return case.tolerance * {64: 1e-5, 32: 0.1, 16: 100.0}[narrowest]


@every_operator
def test_samples_infer_and_reference_agree(name: str) -> None:
    op = REGISTRY[name]
    tried = 0
    for what, case, outs in accepted(op):
        tried += 1
        results = reference(op, list(case.inputs), case.attrs)
        assert len(results) == len(outs), f"{what}: {len(results)} arrays for {len(outs)} types"
        for y, t in zip(results, outs, strict=True):
            assert y.shape == t.dims, f"{what}: the reference gives {y.shape}, infer says {t}"
            assert t.layout == ROW_MAJOR, f"{what}: infer must not choose a layout, but says {t}"
            # float32 references may compute wider; anything else must come as declared
            fits = y.dtype == t.dtype.numpy or (t.dtype.bits < 64 and y.dtype.kind == "f")
            assert fits or y.dtype.kind == t.dtype.kind == "f", f"{what}: {y.dtype} for {t}"
            if t.dtype is f64:
                assert y.dtype == np.float64, f"{what}: the reference loses precision: {y.dtype}"
    assert tried, f"{name} has no samples: give it some"


@every_operator
def test_declaration_is_complete_and_its_traits_hold(name: str) -> None:
    op = REGISTRY[name]
    assert op.doc, f"{name} needs a docstring"
    template = any(op.has(t) for t in (Contraction, Recurrence, Opaque))
    assert op.compute or op.decompose or template, f"nothing says how to run {name}"
    assert not op.has(Elementwise) or op.compute, f"{name} is elementwise without compute"
    inplace = op.trait(Inplace)
    if inplace is not None and op.max_inputs is not None:
        assert 0 <= inplace.input < op.max_inputs
    for what, case, outs in accepted(op):
        first = case.inputs[inplace.input] if inplace is not None else None
        if first is not None and first.shape == outs[0].dims:
            assert first.dtype.itemsize >= outs[0].dtype.bytes, f"{what} does not fit in place"
        if op.has(View):
            source, (y, *_) = case.inputs[0], reference(op, list(case.inputs), case.attrs)
            assert source is not None
            assert source.tobytes() == y.tobytes(), f"{what} is no view of its input"


@with_compute
def test_compute_means_what_the_reference_says(name: str) -> None:
    op = REGISTRY[name]
    for what, case, outs in accepted(op):
        for (e, _), t in zip(
            expressions(op, types_of(case), op.bind(case.attrs)), outs, strict=True
        ):
            assert e.dtype is t.dtype, f"{what}: compute gives {e.dtype}, infer says {t}"
        got = run_compute(op, case.inputs, case.attrs)
        want = truth(op, case, outs)
        for k, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_close(a, b, tolerance(case, outs), f"{what}, output {k}")


@with_compute
def test_compute_stays_within_its_inputs(name: str) -> None:
    """Loads name inputs that exist, with one index per axis, in the input's element type."""
    op = REGISTRY[name]
    for what, case, _ in accepted(op):
        types = types_of(case)
        for e, _grid in expressions(op, types, op.bind(case.attrs)):
            for n in walk(e):
                if n.op == "load":
                    t = types[n.payload]
                    assert t is not None, f"{what} loads an absent input"
                    assert (len(n.args), n.dtype) == (t.rank, t.dtype), f"{what}: {n} of {t}"


@with_decompose
def test_decomposition_means_what_the_reference_says(name: str) -> None:
    op = REGISTRY[name]
    assert op.decompose is not None
    for what, case, outs in accepted(op):
        b = GraphBuilder()
        feeds: dict[str, Array] = {}
        values: list[Value | None] = []
        for k, x in enumerate(case.inputs):
            if x is None:
                values.append(None)
            elif k in case.constant:
                values.append(b.constant(x))
            else:
                values.append(b.input(f"x{k}", x.shape, x.dtype))
                feeds[f"x{k}"] = x
        values += [None] * ((op.max_inputs or len(values)) - len(values))
        made = op.decompose(b, *values, **op.bind(case.attrs))
        results = made if isinstance(made, tuple) else (made,)
        for k, (v, t) in enumerate(zip(results, outs, strict=True)):
            assert v.type == t, f"{what}: decomposes into {v.type}, infer says {t}"
            b.output(v, f"y{k}")
        got = evaluate(b.build(), feeds)
        for k, want in enumerate(truth(op, case, outs)):
            y = got[f"y{k}"]
            y = y.astype(np.float64) if y.dtype.kind == "f" else y
            assert_close(y, want, tolerance(case, outs), f"{what}, output {k}")


def test_every_element_type_has_a_cast_target() -> None:
    cast = REGISTRY["cast"]
    x = TensorType(f32, (2,))
    for name in DTYPES:
        assert cast.infer_types([x], {"to": name})[0].dtype.name == name
