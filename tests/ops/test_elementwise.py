"""What elementwise operators refuse, and integer division, which must never trap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.ops import library as _library  # noqa: F401  registers every operator
from tilewright.ops.errors import OperatorError
from tilewright.ops.interpreter import evaluate_expr, expressions, run_compute
from tilewright.ops.operator import REGISTRY, Elementwise
from tilewright.ops.samples import cases
from tilewright.ops.traverse import walk
from tilewright.ops.types import TensorType, bf16, boolean, dtype_of, f32, f64, i32, u8

PAIRS = sorted(n for n, op in REGISTRY.items() if op.has(Elementwise) and len(op.inputs) == 2)


def first_types(name: str) -> tuple[list[TensorType], dict[str, Any]]:
    case = next(iter(cases(REGISTRY[name])))
    types = [TensorType(dtype_of(x.dtype), x.shape) for x in case.inputs if x is not None]
    return types, REGISTRY[name].bind(case.attrs)


@pytest.mark.parametrize("name", PAIRS)
def test_shapes_must_broadcast(name: str) -> None:
    (x, y), attrs = first_types(name)
    assert REGISTRY[name].infer_types([x.with_shape((2, 3)), y.with_shape((2, 3))], attrs)
    with pytest.raises(OperatorError, match=r"\[2, 3\] and \[4\] do not broadcast"):
        REGISTRY[name].infer_types([x.with_shape((2, 3)), y.with_shape((4,))], attrs)


@pytest.mark.parametrize("name", sorted({*PAIRS} - {"pow"}))
def test_element_types_must_agree(name: str) -> None:
    (x, y), attrs = first_types(name)
    other = f64 if y.dtype is f32 else f32
    with pytest.raises(OperatorError):
        REGISTRY[name].infer_types([x, y.with_dtype(other)], attrs)


@pytest.mark.parametrize(
    ("name", "types", "attrs", "why"),
    [
        ("add", [boolean, boolean], {}, "needs numbers"),
        ("add", [bf16, bf16], {}, "bf16"),
        ("hardmax", [bf16], {}, "bf16"),
        ("gru", [bf16, bf16, bf16], {}, "bf16"),
        ("neg", [u8], {}, "with a sign"),
        ("sqrt", [i32], {}, "needs a float"),
        ("mod", [f32, f32], {"fmod": 0}, "fmod=1"),
        ("mod", [i32, i32], {"fmod": 2}, "fmod is 0 or 1"),
        ("bit_shift", [i32, i32], {"direction": "LEFT"}, "unsigned"),
        ("bit_shift", [u8, u8], {"direction": "UP"}, "direction"),
        ("bitwise_and", [f32, f32], {}, "needs integers"),
        ("logical_and", [f32, f32], {}, "needs booleans"),
        ("where", [f32, f32, f32], {}, "must be boolean"),
        ("where", [boolean, f32, f64], {}, "one element type"),
        ("less", [boolean, boolean], {}, "needs numbers"),
        ("cast", [f32], {"to": "float99"}, "no element type"),
        ("cast", [f32], {"to": 1}, "names an element type"),
        ("sum", [], {}, "at least one"),
        ("mean", [i32, i32], {}, "needs a float"),
        ("celu", [f32], {"alpha": 0.0}, "alpha"),
        ("gelu", [f32], {"approximate": "fast"}, "approximate"),
        ("dropout", [f32], {"ratio": 2.0}, "ratio"),
    ],
)
def test_misuse_is_explained(name: str, types: list[Any], attrs: dict[str, Any], why: str) -> None:
    op = REGISTRY[name]
    with pytest.raises(OperatorError, match=why):
        op.infer_types([TensorType(t, (2, 3)) for t in types], op.bind(attrs))


@pytest.mark.parametrize(
    ("name", "shapes"), [("clip", [(3,), (2, 3), None]), ("prelu", [(3,), (2, 3)])]
)
def test_the_first_input_is_not_stretched(name: str, shapes: list[Any]) -> None:
    op = REGISTRY[name]
    types = [None if s is None else TensorType(f32, s) for s in shapes]
    with pytest.raises(OperatorError, match="broadcast to"):
        op.infer_types(types, op.bind({}))


def test_pow_keeps_the_type_of_its_base() -> None:
    op = REGISTRY["pow"]
    assert op.infer_types([TensorType(f32, (2, 1)), TensorType(i32, (3,))], {}) == (
        TensorType(f32, (2, 3)),
    )


def test_clip_takes_max_where_the_limits_cross() -> None:
    x = np.asarray([1.0, 5.0, 9.0])
    got = run_compute(REGISTRY["clip"], [x, np.asarray(7.0), np.asarray(3.0)], {})
    np.testing.assert_array_equal(got[0], [3.0, 3.0, 3.0])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", ["div", "mod"])
def test_integer_division_never_traps(name: str, dtype: Any) -> None:
    """Processors fault on x / 0 and lowest / -1: the divisor that reaches them is another one."""
    op = REGISTRY[name]
    low = np.iinfo(dtype).min
    x = np.asarray([low, low, 7, -7, 7, 0, -7], dtype)
    y = np.asarray([-1, 0, 0, 0, -1, 0, 2], dtype)
    t = TensorType(dtype_of(x.dtype), x.shape)
    [(e, grid)] = expressions(op, [t, t], op.bind({}))
    divisions = [n for n in walk(e) if n.op in ("truncdiv", "mod", "fmod")]
    assert divisions
    for n in divisions:
        divisor = evaluate_expr(n.args[1], grid, {0: x, 1: y})
        assert not np.isin(divisor, [0, -1]).any()
    want = {"div": [low, 0, 0, 0, -7, 0, -3], "mod": [0, 0, 0, 0, 0, 0, 1]}[name]
    np.testing.assert_array_equal(run_compute(op, [x, y], {})[0], want)
