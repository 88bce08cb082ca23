"""The operator that moves a tensor between memory layouts."""

from __future__ import annotations

import numpy.typing as npt

from .expr import Expr
from .operator import Elementwise, operator
from .types import TensorType


@operator("reformat", traits=(Elementwise(),))
class Reformat:
    """x itself; the result's blob says in which layout it lies. Inserted by layout assignment."""

    def infer(x: TensorType) -> TensorType:
        return TensorType(x.dtype, x.shape)

    def compute(x: Expr) -> Expr:
        return x

    def reference(x: npt.NDArray) -> npt.NDArray:
        return x

    def samples(s):  # type: ignore[no-untyped-def]
        yield s.case(s.numbers(2, 3, 5))
