"""What a graph under construction refuses, where it is made, and what numbers become in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import GraphError
from tilewright.compiler.graph.evaluate import evaluate


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda g: g.input("n", (-1, 2)), "'n'.*negative dimension"),
        (lambda g: g.input("n", (1.5,)), r"'n' of shape \(1.5,\).*float"),
        (lambda g: g.input("n", ("batch", 3)), "'n'.*str"),
        (lambda g: g.input("n", 3), "'n' of shape 3"),
        (lambda g: g.input("n", (1 << 31, 1 << 31)), "'n'.*more than any machine has"),
        (lambda g: g.input("n", (1,), "complex64"), "'n'.*no element type for 'complex64'"),
        (lambda g: g.parameter("p", np.array([None])), "'p'.*no element type"),
        (lambda g: g.output(None), "None is no value of a graph"),
        (lambda g: g.output(np.zeros(3)), "no value of a graph"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Callable[[tw.Graph], Any], why: str) -> None:
    with pytest.raises(GraphError, match=why):
        make(tw.Graph("g"))


def test_an_array_may_stand_on_the_left() -> None:
    """Left to itself numpy makes an array of one value per element."""
    g = tw.Graph("g")
    x = g.input("x", (2, 3))
    a = np.float32([1, 2, 4])
    g.output(a * x, "y")
    g.output(a - x, "z")
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = evaluate(g.build(), {"x": given})
    np.testing.assert_array_equal(found["y"], a * given)
    np.testing.assert_array_equal(found["z"], a - given)


def test_numbers_that_integers_cut_off_are_refused() -> None:
    g = tw.Graph("g")
    x = g.input("x", (3,), "i64")
    assert (x * 2.0).dtype == x.dtype
    for number in (0.5, np.nan, np.float32([1, 2.5, 3]), 1e30):
        with pytest.raises(GraphError, match=r"mul of %x.*i64 cannot hold that number; cast"):
            x * number
    with pytest.raises(GraphError, match="u8 cannot hold"):
        g.input("b", (3,), "u8") - np.int64(300)
