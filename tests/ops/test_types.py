"""Element types, tensor types, layouts and broadcasting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.ops.errors import OperatorError
from tilewright.ops.types import (
    DTYPES,
    ROW_MAJOR,
    Layout,
    SymDim,
    TensorType,
    bf16,
    boolean,
    broadcast_shapes,
    dtype_of,
    f32,
    i64,
    parse_type,
    row_major_strides,
    u8,
)

shapes = st.lists(st.integers(0, 70), max_size=5).map(tuple)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_dtype_width_and_storage_agree(name: str) -> None:
    t = DTYPES[name]
    assert t.bytes == t.numpy.itemsize
    assert dtype_of(name) is dtype_of(t) is t
    assert str(t) == name
    if t is not bf16:  # stored as uint16, which is a type of its own
        assert dtype_of(t.numpy) is t


def test_dtype_of_accepts_numpy_names_and_types() -> None:
    assert dtype_of("float32") is dtype_of(np.float32) is dtype_of(np.dtype("<f4")) is f32
    assert dtype_of(np.uint16).name == "u16"
    assert dtype_of(bool) is boolean


@pytest.mark.parametrize("value", ["complex64", "float99", np.dtype("U3"), "bf17"])
def test_dtype_of_names_what_it_knows(value: str) -> None:
    with pytest.raises(OperatorError, match=r"no element type.*f16, bf16, f32"):
        dtype_of(value)


def test_kinds() -> None:
    assert f32.is_float and not f32.is_integer
    assert u8.is_integer and not u8.is_float
    assert not boolean.is_integer and not boolean.is_float


@given(shapes)
def test_strides_address_every_element_once(shape: tuple[int, ...]) -> None:
    small = tuple(min(d, 4) for d in shape)
    want = np.empty(small, np.int8).strides
    if 0 not in small:  # numpy leaves the strides of empty arrays open
        assert row_major_strides(small) == want
    assert len(row_major_strides(small)) == len(small)


def test_blocked_layout_pads_its_axis() -> None:
    t = TensorType(f32, (2, 19, 5, 7), Layout(axis=1, block=16))
    assert t.physical_shape == (2, 2, 5, 7, 16)
    assert t.size == 2 * 19 * 5 * 7
    assert t.nbytes == 2 * 2 * 5 * 7 * 16 * 4
    assert str(t) == "f32[2,19,5,7]@1x16"


def test_part_of_a_larger_tensor() -> None:
    t = TensorType(f32, (2, 32, 5, 7), Layout(1, 16).part(1, 96))
    assert str(t) == "f32[2,32,5,7]@1x16@1/96"
    assert t.physical_shape == (2, 2, 5, 7, 16) and t.whole_shape == (2, 6, 5, 7, 16)
    assert t.strides == (6 * 560, 560, 112, 16, 1)
    assert t.nbytes == 2 * 2 * 560 * 4 and t.span == 6 * 560 + 2 * 560
    assert t.runs == (2, 2 * 560 * 4, 6 * 560 * 4) and not t.is_dense
    assert t.position(1, 48) == 3 * 560 * 4
    assert t.layout.order == Layout(1, 16)
    one = TensorType(f32, (1, 32, 5, 7), t.layout)
    assert one.is_dense and one.runs == (1, one.nbytes, one.nbytes)
    rows = TensorType(u8, (3, 4, 5), ROW_MAJOR.part(2, 9))
    assert rows.runs == (12, 5, 9) and rows.strides == (36, 9, 1) and rows.position(2, 4) == 4


def test_row_major_tensor() -> None:
    t = TensorType(i64, (3, 0))
    assert (t.rank, t.size, t.nbytes, t.physical_shape) == (2, 0, 0, (3, 0))
    assert t.is_static and not t.layout.is_blocked
    scalar = TensorType(u8, ())
    assert (scalar.size, scalar.nbytes, str(scalar)) == (1, 1, "u8[]")


def test_with_changes_one_part() -> None:
    t = TensorType(f32, (4, 6), Layout(1, 8))
    assert t.with_dtype(u8) == TensorType(u8, (4, 6), Layout(1, 8))
    assert t.with_layout(ROW_MAJOR) == TensorType(f32, (4, 6))
    # a layout speaks of axes: another shape does not keep it
    assert t.with_shape([24]) == TensorType(f32, (24,))


def test_symbolic_dimension_has_no_size_yet() -> None:
    t = TensorType(f32, (SymDim("batch"), 3))
    assert not t.is_static and str(t) == "f32[batch,3]"
    with pytest.raises(OperatorError, match=r"batch of f32\[batch,3\] is not bound"):
        _ = t.size


@given(
    st.sampled_from(sorted(DTYPES)),
    st.lists(st.integers(0, 999) | st.sampled_from([SymDim("n"), SymDim("t_1")]), max_size=5),
    st.integers(0, 9),
    st.sampled_from([0, 4, 8, 16]),
    st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 999])),
)
def test_types_print_and_parse_back(
    name: str, shape: list[int | SymDim], axis: int, block: int, part: tuple[int, int]
) -> None:
    layout = Layout(axis % len(shape), block) if shape and block else ROW_MAJOR
    if shape and part[1]:
        layout = layout.part(part[0] % len(shape), part[1])
    t = TensorType(DTYPES[name], tuple(shape), layout)
    assert parse_type(str(t)) == t


@pytest.mark.parametrize(
    "text", ["", "f32", "f32[1,2", "q7[1]", "f32[1]@x8", "f32[1]@0/x", "f32[1] and more"]
)
def test_parse_refuses_other_text(text: str) -> None:
    with pytest.raises(OperatorError, match="is not a tensor type such as"):
        parse_type(text)


@given(st.lists(shapes, min_size=1, max_size=3), st.data())
def test_broadcasting_is_that_of_numpy(full: list[tuple[int, ...]], data: st.DataObject) -> None:
    # shapes that have a chance to fit: suffixes of one shape with some axes shrunk to 1
    base = full[0]
    parts = [base]
    for _ in full[1:]:
        cut = data.draw(st.integers(0, len(base)))
        parts.append(tuple(data.draw(st.sampled_from([d, d, d, 1, 2])) for d in base[cut:]))
    try:
        want = np.broadcast_shapes(*parts)
    except ValueError:
        with pytest.raises(OperatorError, match="do not broadcast together"):
            broadcast_shapes(*parts)
    else:
        assert broadcast_shapes(*parts) == want


def test_clashing_shapes_are_named() -> None:
    with pytest.raises(OperatorError, match=r"\[2, 3\] and \[4\] do not broadcast"):
        broadcast_shapes((2, 3), (4,))
