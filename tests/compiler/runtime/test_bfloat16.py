"""Inputs of bfloat16: numpy has no such type, so arrays hold bits, or are of ml_dtypes."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.api.executable import Executable, random_input
from tilewright.compiler.errors import InputError
from tilewright.compiler.graph.bfloat16 import bits_of, values_of

ml_dtypes = pytest.importorskip("ml_dtypes")
X = np.float32([[1.5, -2, 0.25], [3, -0.5, 100]])


@pytest.fixture(scope="module")
def exe() -> Executable:
    g = tw.Graph("g")
    g.output(g.transpose(g.input("x", (2, 3), "bf16"), perm=(1, 0)), "y")
    return tw.compile(g)


def test_arrays_of_bits_and_of_values_are_the_same(exe: Executable) -> None:
    values = X.astype(ml_dtypes.bfloat16)
    for given in (bits_of(X), values, np.asfortranarray(values), values[:, ::-1][:, ::-1]):
        assert np.array_equal(values_of(exe(given)), X.T)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3)])
def test_bits_have_the_shape_of_values(shape: tuple[int, ...]) -> None:
    x = np.full(shape, 1.5, np.float32)
    assert bits_of(x).shape == values_of(bits_of(x)).shape == shape
    g = tw.Graph("g")
    g.output(g.cast(g.cast(g.constant(x), to="bf16"), to="f32"), "y")
    assert np.array_equal(tw.compile(g)(), x)


def test_what_else_is_given_is_not_read_as_bits(exe: Executable) -> None:
    """An array of other numbers as uint16 would be taken for bits without a word."""
    for given in (X, X.astype(np.float16), X.astype(np.int64)):
        with pytest.raises(InputError, match=r"'x' must be bfloat16.*astype\(ml_dtypes.bfloat16\)"):
            exe(given)
    for wrong in (bits_of(X[:1]), X[:1].astype(ml_dtypes.bfloat16)):
        with pytest.raises(InputError, match=r"must have shape \[2, 3\], got \[1, 3\]"):
            exe(wrong)
    g = tw.Graph("g")
    g.output(g.transpose(g.input("x", (2, 3), "u16"), perm=(1, 0)), "y")
    with pytest.raises(InputError, match="'x' must be uint16"):
        tw.compile(g)(X.astype(ml_dtypes.bfloat16))


def test_it_is_said_what_arrays_hold(exe: Executable) -> None:
    assert "x: uint16[2, 3] (bits of bfloat16)" in repr(exe)


def test_made_up_inputs_are_numbers_of_a_usual_size(exe: Executable) -> None:
    x = values_of(random_input(exe.inputs[0]))
    assert 0.1 < np.abs(x).mean() < 10
