"""Einstein summation, decomposed into transposes, reshapes, matrix products and sums.

Operands are combined from left to right. For each pair the labels fall into four classes: shared
and needed later (batch), shared and not needed later (contracted), and those of one side only. So
two operands become [batch, rows, k] and [batch, k, columns], whatever the equation says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import OperatorError
from .operator import REQUIRED, Builder, Value, operator, require, require_same_dtype
from .samples import Case, Sampler
from .types import TensorType

Array = npt.NDArray[Any]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """Labels of the axes of each operand and of the result, and the size that each label has. The
    axes that "..." stands for are labelled "0", "1", ... from the right."""

    operands: tuple[Labels, ...]
    result: Labels
    sizes: dict[str, int]


def parse_equation(equation: str, shapes: tuple[tuple[int, ...], ...]) -> Equation:
    """Raises OperatorError for an equation that is malformed or does not fit the shapes."""
    require(isinstance(equation, str), f"the equation must be a string, got {equation!r}")
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    require(len(terms) == len(shapes), f"the equation {equation!r} has {len(terms)} operands, "
                                       f"but there are {len(shapes)} inputs")  # fmt: skip
    operands = tuple(
        _labels(t, len(shape), equation) for t, shape in zip(terms, shapes, strict=True)
    )
    sizes: dict[str, int] = {}
    for labels, shape in zip(operands, shapes, strict=True):
        for name, size in zip(labels, shape, strict=True):
            known = sizes.get(name, 1)
            if known != size and 1 not in (known, size):
                what = f"the label {name!r}" if name.isalpha() else "the axes under '...'"
                raise OperatorError(f"{what} of {equation!r} cannot have both size {known} and "
                                    f"{size}")  # fmt: skip
            sizes[name] = size if known == 1 else known
    dots = tuple(sorted((n for n in sizes if not n.isalpha()), key=int, reverse=True))
    if arrow:
        before, ellipsis, after = right.partition("...")
        result = (*before, *(dots if ellipsis else ()), *after)
    else:
        once = (n for n in sizes if n.isalpha() and left.count(n) == 1)
        result = (*dots, *sorted(once))
    unknown = [n for n in result if n not in sizes]
    require(not unknown, f"the result of {equation!r} has {unknown[:1]}, which no operand has")
    require(len(set(result)) == len(result), f"the result of {equation!r} repeats a label")
    return Equation(operands, result, sizes)


def _labels(term: str, rank: int, equation: str) -> Labels:
    before, ellipsis, after = term.partition("...")
    letters = before + after
    require(not letters or (letters.isascii() and letters.isalpha()),
            f"{term!r} in {equation!r} is not made of letters and '...'")  # fmt: skip
    hidden = rank - len(letters)
    fits = hidden >= 0 if ellipsis else hidden == 0
    require(fits, f"{term!r} in {equation!r} does not fit an operand of rank {rank}")
    return (*before, *(str(k) for k in reversed(range(hidden))), *after)


@dataclass(frozen=True, slots=True)
class _Term:
    """A value under construction and the labels of its axes."""

    value: Any
    labels: Labels

    def arrange(self, b: Builder, labels: Labels) -> Any:
        """The value with its axes in this order."""
        if labels == self.labels:
            return self.value
        return b.op("transpose", self.value, perm=tuple(self.labels.index(n) for n in labels))

    def drop(self, b: Builder, needed: set[str]) -> _Term:
        """Sum over the labels that nothing needs."""
        gone = tuple(k for k, n in enumerate(self.labels) if n not in needed)
        if not gone:
            return self
        value = b.op("reduce_sum", self.value, axes=gone, keepdims=0)
        return _Term(value, tuple(n for n in self.labels if n in needed))


def _diagonal(b: Builder, term: _Term) -> _Term:
    """Repeated labels become one: in a square matrix of n * n elements in a row, every (n + 1)-th
    is on the diagonal."""
    for name in dict.fromkeys(term.labels):
        while term.labels.count(name) > 1:
            first = term.labels.index(name)
            second = term.labels.index(name, first + 1)
            others = tuple(k for k in range(len(term.labels)) if k not in (first, second))
            labels = (*(term.labels[k] for k in others), name)
            value = b.op("transpose", term.value, perm=(*others, first, second))
            *dims, n, m = value.type.dims
            require(n == m, f"the label {name!r} repeats in one operand with sizes {n} and {m}")
            value = b.op("reshape", value, shape=(*dims, n * n), allowzero=1)
            value = b.op("slice", value, starts=(0,), ends=(n * n,), axes=(-1,), steps=(n + 1,))
            term = _Term(value, labels)
    return term


def _widen(b: Builder, term: _Term, sizes: dict[str, int]) -> _Term:
    """Axes of size 1 whose label is longer elsewhere are repeated."""
    shape = tuple(sizes[n] for n in term.labels)
    if shape == term.value.type.dims:
        return term
    return _Term(b.op("expand", term.value, shape=shape), term.labels)


def _contract(b: Builder, x: _Term, y: _Term, needed: set[str], sizes: dict[str, int]) -> _Term:
    x, y = x.drop(b, needed | set(y.labels)), y.drop(b, needed | set(x.labels))
    x, y = _widen(b, x, sizes), _widen(b, y, sizes)
    batch = tuple(n for n in x.labels if n in y.labels and n in needed)
    inner = tuple(n for n in x.labels if n in y.labels and n not in needed)
    rows = tuple(n for n in x.labels if n not in y.labels)
    columns = tuple(n for n in y.labels if n not in x.labels)

    def size(labels: Labels) -> tuple[int, ...]:
        return tuple(sizes[n] for n in labels)

    left = x.arrange(b, (*batch, *rows, *inner))
    outer = size((*batch, *rows, *columns))
    if not inner:
        right = y.arrange(b, (*batch, *columns))
        shape = (*size(batch), *size(rows), *(1,) * len(columns))
        left = b.op("reshape", left, shape=shape, allowzero=1)
        shape = (*size(batch), *(1,) * len(rows), *size(columns))
        right = b.op("reshape", right, shape=shape, allowzero=1)
        return _Term(b.op("mul", left, right), (*batch, *rows, *columns))
    right = y.arrange(b, (*batch, *inner, *columns))
    k = prod(size(inner))
    left = b.op("reshape", left, shape=(*size(batch), prod(size(rows)), k), allowzero=1)
    right = b.op("reshape", right, shape=(*size(batch), k, prod(size(columns))), allowzero=1)
    value = b.op("reshape", b.op("matmul", left, right), shape=outer, allowzero=1)
    return _Term(value, (*batch, *rows, *columns))


@operator("einsum", inputs=("xs*",), attrs={"equation": REQUIRED})
class Einsum:
    """Einstein summation of any number of operands, "..." and repeated labels included.

    A result with a repeated label is refused. ONNX: Einsum.
    """

    def infer(*xs: TensorType, equation: str) -> TensorType:
        require(len(xs) >= 1 and None not in xs, "needs at least one operand")
        require_same_dtype(*xs)
        require(xs[0].dtype.kind != "b", f"is not defined for bool, got {xs[0]}")
        eq = parse_equation(equation, tuple(x.dims for x in xs))
        for labels, x in zip(eq.operands, xs, strict=True):
            pairs = set(zip(labels, x.dims, strict=True))
            require(len(pairs) == len(set(labels)),
                    f"{x} repeats a label of {equation!r} with unequal sizes")  # fmt: skip
        return xs[0].with_shape(eq.sizes[n] for n in eq.result)

    def decompose(b: Builder, *xs: Value, equation: str) -> Any:
        eq = parse_equation(equation, tuple(x.type.dims for x in xs))
        terms = [_diagonal(b, _Term(x, labels)) for x, labels in zip(xs, eq.operands, strict=True)]
        out = terms[0]
        for k, term in enumerate(terms[1:], 2):
            needed = set(eq.result).union(*(t.labels for t in terms[k:]))
            out = _contract(b, out, term, needed, eq.sizes)
        out = out.drop(b, set(eq.result))
        return out.arrange(b, eq.result)

    def reference(*xs: Array, equation: str) -> Array:
        y = np.einsum(equation.replace(" ", ""), *xs, optimize=len(xs) > 2)
        return np.asarray(y, xs[0].dtype)

    def samples(s: Sampler) -> Iterator[Case]:
        n = s.numbers
        yield s.case(n(3, 5), n(5, 7), equation="ij,jk->ik", constant=(1,))
        yield s.case(n(2, 3, 5, 4), n(2, 7, 5, 4), equation="bqhd,bkhd->bhqk")
        yield s.case(n(3, 5), equation="i j -> j i")
        yield s.case(n(3, 5, 2), equation="ijk->j")
        yield s.case(n(4, 4), equation="ii")
        yield s.case(n(2, 3, 3), equation="...ii->...i")
        yield s.case(n(3), n(5), equation="i,j")
        yield s.case(n(2, 1, 3, 4), n(5, 4, 3), equation="...ij,...jk")
        yield s.case(n(2, 3), n(3, 4), n(4, 2), equation="ab,bc,cd->ad")
        yield s.case(n(3, 4), n(3, 4), equation="ij,ij->")
        yield s.case(n(2, 3, 4), n(1, 3, 5), equation="aij,aik->jk")
