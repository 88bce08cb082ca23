"""The matrices of Winograd's convolution F(m x m, 3 x 3), and how to apply them in few operations.

    Y = A^T [(G w G^T) * (B^T d B)] A        d: a x a inputs, a = m + 2; Y: m x m results

Toom and Cook's construction (Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and
Gray, arXiv:1509.09308): the product of polynomials is evaluated at a - 1 points and at infinity.
Column k of A^T and row k of G are powers of point k, G's divided by the product of the distances to
the other points; row k of B^T holds the coefficients of the polynomial that vanishes at those.

Any distinct points give the same function; what they decide is the error. Points in pairs +-p halve
the work. The customary (0, +-1, +-2) of F(4) mix numbers from 1/24 to 8 and err several times as
much as a direct sum in one chain; (0, +-3/4, +-3/2) take two operations more a column, and err less
than three times as much (`Transforms.noise`). All entries of A^T and B^T are exact in float32. G is
applied in float64, when a program is linked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...ops.expr import Expr, apply, const
from ..graph.arrays import freeze

Array = npt.NDArray[Any]
Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]
Hold = Callable[[Expr], Expr]
"""Computes a value here and now and returns what reads it."""

TAPS: Final = 3
POINTS: Final[dict[int, tuple[Fraction, ...]]] = {
    2: tuple(map(Fraction, ("0", "1", "-1"))),
    4: tuple(map(Fraction, ("0", "3/4", "-3/4", "3/2", "-3/2"))),
}
"""Evaluation points by m, beside infinity."""


@dataclass(frozen=True, slots=True)
class Transforms:
    """The three matrices of F(m, 3). data: B^T [a, a]; weights: G [a, 3]; result: A^T [m, a]."""

    m: int
    data: Matrix
    weights: Matrix
    result: Matrix

    @property
    def size(self) -> int:
        """Inputs per axis of a tile, a."""
        return self.m + TAPS - 1

    @property
    def amplification(self) -> float:
        """How much more than a direct sum the bound of a result's error may be.

        Every step is a sum of products, so the error of a result is at most one unit roundoff for
        each rounding on the longest path to it, times what the steps make of absolute values:
        |A^T| (|G| |w| |G^T| * |B^T| |d| |B|) |A|. Along one axis, result i takes from tap j at most
        sum_k |A_ik| |G_kj| sum_l |B_kl| times the largest input; two axes square that.
        """
        return max(
            self._most(lambda a, g, b, tap=tap: abs(a * g[tap]) * sum(map(abs, b)))
            for tap in range(TAPS)
        )

    @property
    def noise(self) -> float:
        """Root mean square error of long sums of independent terms, relative to a direct sum.

        The roundings of a sum of C products are independent, and grow with its terms. Those of
        point (k, l) have the variance |B_k|^2 |B_l|^2 |G_k|^2 |G_l|^2 times that of w d, against
        which a direct sum has 9 times as many terms; result (i, j) gathers them with
        A_ik^2 A_jl^2. That makes sum_k A_ik^2 |B_k|^2 |G_k|^2 / 9 for the worst i = j.
        """

        def square(x: Sequence[Fraction]) -> Fraction:
            return sum((v * v for v in x), start=Fraction(0))

        return self._most(lambda a, g, b: a * a * square(g) * square(b)) ** 0.5 / TAPS**2

    def error(self, channels: int) -> float:
        """Bound of the largest error as a fraction of the largest result, for inputs and weights
        that are independent and of mean zero, in unit roundoffs.

        A direct sum of n such terms is off by sqrt(n / 2) of its own root mean square, as its
        partial sums grow to that. 2 m stands for the transforms, which matter for few channels.
        """
        return 2 * self.m + self.noise * (TAPS**2 * channels / 2) ** 0.5

    def _most(self, part: Callable[..., Fraction]) -> float:
        """The largest sum over points of part(A_ik, G_k, B_k), squared for two axes."""
        most = max(
            sum(part(a, g, b) for a, g, b in zip(row, self.weights, self.data, strict=True))
            for row in self.result
        )
        return float(most) ** 2


@cache
def transforms(m: int) -> Transforms:
    """The matrices of F(m, 3) for the points in `POINTS`."""
    points = POINTS[m]
    zero, one = Fraction(0), Fraction(1)
    others = [[q for q in points if q is not p] for p in points]
    data = [[*_from_roots(rest), zero] for rest in others] + [_from_roots(points)]
    weights = [
        [p**j / prod((p - q for q in rest), start=one) for j in range(TAPS)]
        for p, rest in zip(points, others, strict=True)
    ] + [[zero] * (TAPS - 1) + [one]]
    result = [[p**i for p in points] + [one if i == m - 1 else zero] for i in range(m)]
    return Transforms(m, _frozen(data), _frozen(weights), _frozen(result))


def _frozen(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(map(tuple, rows))


def _from_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the monic polynomial with these roots."""
    found = [Fraction(1)]
    for r in roots:
        found = [low - r * high for low, high in zip([Fraction(0), *found], [*found, Fraction(0)],
                                                     strict=True)]  # fmt: skip
    return found


def transformed_weights(w: Array, m: int) -> Array:
    """G w G^T of weights [..., 3, 3] as [a * a, ...], in float64.

    Weights that are infinite, be it that they are not those that were meant, give NaN without a
    warning of numpy's, as they do in kernels.
    """
    some = w.shape[:-2]
    taps = w.reshape(*some, TAPS * TAPS).transpose(len(some), *range(len(some)))
    taps = np.ascontiguousarray(taps, np.float64)
    with np.errstate(invalid="ignore"):
        return (_both_axes(m) @ taps.reshape(len(taps), -1)).reshape(-1, *some)


@cache
def _both_axes(m: int) -> Array:
    """G for both axes, [a * a, 9]."""
    g = np.array(transforms(m).weights, np.float64)
    return freeze(np.kron(g, g))


# --------------------------------------------------------------------------- few operations


@dataclass(frozen=True, slots=True)
class _Steps:
    """How a matrix is applied: inputs in `pairs` are replaced by their sum and difference, in turn;
    then come the rows of `matrix`. A row in `twins` shares two shorter rows, even and odd, with
    another one: they are even + factor * odd and even - factor * odd."""

    pairs: tuple[tuple[int, int], ...]
    matrix: Matrix
    twins: Mapping[int, tuple[int, Row, Row, Fraction]]


def applied(
    matrix: Matrix, x: Sequence[Expr], hold: Hold, rows: Sequence[int] | None = None
) -> list[Expr]:
    """matrix @ x, or those rows of it. Values of one dtype; `hold` keeps what several rows share.

    Points in pairs make rows and columns in pairs. Two columns that differ at most in signs, row by
    row, act only through the sum and the difference of their inputs. Two rows that differ in some
    signs are the sum and the difference of two shorter rows.
    """
    steps = _steps(matrix)
    x = list(x)
    for i, k in steps.pairs:
        x[i], x[k] = hold(x[i] + x[k]), hold(x[i] - x[k])
    done: dict[int, Expr] = {}
    wanted = range(len(steps.matrix)) if rows is None else rows
    for i, row in enumerate(steps.matrix):
        if i in done or i not in wanted:
            continue
        if i not in steps.twins:
            done[i] = _dot(row, x)
            continue
        twin, even_row, odd_row, factor = steps.twins[i]
        even, odd = hold(_dot(even_row, x)), hold(_dot(odd_row, x))
        done[i], done[twin] = _plus(factor, odd, even), _plus(-factor, odd, even)
    return [done[i] for i in wanted]


@cache
def _steps(matrix: Matrix) -> _Steps:
    """Finds pairs of columns, then pairs of rows in what is left."""
    pairs = []
    columns = [tuple(c) for c in zip(*matrix, strict=True)]
    for i in range(len(columns)):
        for k in range(i + 1, len(columns)):
            if _are_twins(columns[i], columns[k]) and any(columns[i]):
                pairs.append((i, k))
                columns[i], columns[k] = _split(columns[i], columns[k])
                break
    rows = _frozen([list(r) for r in zip(*columns, strict=True)])
    twins: dict[int, tuple[int, Row, Row, Fraction]] = {}
    taken: set[int] = set()
    for i, row in enumerate(rows):
        twin = next((k for k in range(i + 1, len(rows)) if _are_twins(row, rows[k])), None)
        if i in taken or twin is None:
            continue
        taken.add(twin)
        same, flip = _split(row, rows[twin])
        factor = next(c for c in reversed(flip) if c)
        twins[i] = twin, same, tuple(c / factor for c in flip), factor
    return _Steps(tuple(pairs), rows, twins)


def _split(p: Row, q: Row) -> tuple[Row, Row]:
    """(p + q) / 2 and (p - q) / 2 of twins."""
    zero = Fraction(0)
    return (
        tuple(a if a == b else zero for a, b in zip(p, q, strict=True)),
        tuple(a if a != b else zero for a, b in zip(p, q, strict=True)),
    )


def _are_twins(p: Row, q: Row) -> bool:
    """Equal up to some signs, but neither equal nor opposite."""
    alike = all(abs(a) == abs(b) for a, b in zip(p, q, strict=True))
    return alike and p != q and p != tuple(-b for b in q)


def _dot(row: Sequence[Fraction], x: Sequence[Expr]) -> Expr:
    """A sum of multiples, starting with one that needs no multiplication where there is one."""
    terms = sorted(((c, v) for c, v in zip(row, x, strict=True) if c), key=lambda t: t[0] != 1)
    c, v = terms[0]
    total = v if c == 1 else v * _number(c, v)
    for c, v in terms[1:]:
        total = _plus(c, v, total)
    return total


def _plus(factor: Fraction, x: Expr, total: Expr) -> Expr:
    """factor * x + total."""
    if factor == 1:
        return total + x
    if factor == -1:
        return total - x
    return apply("fma", (x, _number(factor, x), total), x.dtype)


def _number(c: Fraction, like: Expr) -> Expr:
    return const(float(c), like.dtype)
