"""Names, values, sizes and tables as text."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.compiler.errors import TextError
from tilewright.compiler.text import (
    Scanner,
    format_type,
    format_value,
    human_bytes,
    human_time,
    quote,
    table,
)
from tilewright.ops.types import DTYPES, Layout, SymDim, TensorType

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(list(DTYPES.values()))
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=12)
names = st.text() | st.sampled_from(["a", "a.b", "1", "a b", '"', "\n", "%", "", "#x", "\ud800"])


@given(names)
def test_names_come_back(name: str) -> None:
    assert Scanner(quote(name)).name("a name") == name
    assert "\n" not in quote(name)


def test_names_are_bare_where_they_can_be() -> None:
    assert quote("conv1.w_2") == "conv1.w_2"
    assert quote("1x") == '"1x"'
    assert quote("é") == '"\\u00e9"'
    assert quote("as", reserved=("as",)) == '"as"'


@given(values)
def test_values_come_back(value: Any) -> None:
    scanner = Scanner(format_value(value))
    read = scanner.value()
    assert scanner.done
    assert repr(read) == repr(value)  # repr tells 1 from 1.0 and True


def test_nan_comes_back() -> None:
    assert math.isnan(Scanner(format_value(math.nan)).value())


def test_values_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match="a dict cannot be the value"):
        format_value({})


@given(
    st.sampled_from(list(DTYPES.values())),
    st.lists(st.integers(0, 1 << 40) | names.map(SymDim), max_size=4),
    st.integers(0, 64),
)
def test_types_come_back(dtype: Any, shape: list[Any], block: int) -> None:
    layout = Layout(len(shape) - 1, block) if shape and block else Layout()
    t = TensorType(dtype, tuple(shape), layout)
    assert Scanner(format_type(t)).type() == t


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("f32[1,3", "expected ','"),
        ("f33[1]", "no element type 'f33'"),
        ("f32[1]@1x4", "does not fit 1 dimensions"),
        ("f32[99999999999999999999]", "at most 18 digits"),
        ("f32", "expected '[' after the element type, the text ends"),
    ],
)
def test_wrong_types(text: str, why: str) -> None:
    with pytest.raises(TextError) as e:
        Scanner(text).type()
    assert why in str(e.value)


@pytest.mark.parametrize("text", ["[1, 2", "[1 2]", '"open', '"\\q"', "[" * 50, "nul", "1" * 9999])
def test_wrong_values(text: str) -> None:
    with pytest.raises(TextError, match="line 1, column"):
        Scanner(text).value()


def test_the_place_is_underlined() -> None:
    scanner = Scanner("first\n\tsecond third")
    scanner.word("a word")
    scanner.word("a word")
    with pytest.raises(TextError) as e:
        scanner.fail("not this one")
    assert str(e.value) == (
        "line 2, column 9: not this one\n"
        "  |  second third\n"
        "  |         ^^^^^"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3250586, "3.1 MiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0029, "2.90 ms"),
        (61.04, "61.0 s"),
        (4.5e-6, "4.50 us"),
        (1e-9, "1.00 ns"),
        (0, "0.00 ns"),
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_tables_are_aligned() -> None:
    text = table([("conv", 10), ("relu", 2)], header=("op", "us"), right="lr")
    assert text == "op    us\nconv  10\nrelu   2"
    assert table([]) == ""
