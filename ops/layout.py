"""The operator that moves a tensor between memory layouts."""

from __future__ import annotations

from collections.abc import Iterator

from .expr import Expr
from .operator import Elementwise, Relayout, operator
from .samples import Array, Case, Sampler
from .types import TensorType


@operator("reformat", traits=(Elementwise(), Relayout()))
class Reformat:
    """x itself; the result's blob says in which layout it lies. Inserted by layout assignment."""

    def infer(x: TensorType) -> TensorType:
        return TensorType(x.dtype, x.shape)

    def compute(x: Expr) -> Expr:
        return x

    def reference(x: Array) -> Array:
        return x

    def samples(s: Sampler) -> Iterator[Case]:
        yield s.case(s.numbers(2, 3, 5))
