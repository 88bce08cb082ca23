"""Constants with a factor per channel, computed whenever somebody reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...ops.types import bf16
from .bfloat16 import bits_of, values_of
from .ir import Array, Blob, Deferred

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """Writes parts of a constant times a factor for each index of an axis, worked out in float64
    and rounded once. factor: one for each index."""

    weights: Blob
    factor: Vector
    axis: int

    def __call__(self, out: Array, where: tuple[slice, ...]) -> None:
        w = self.weights.value
        assert w is not None
        kind = self.weights.type.dtype
        factor = self.factor.reshape(*(1,) * self.axis, -1, *(1,) * (w.ndim - 1 - self.axis))
        # along the other axes the factor has one element, which any slice has to keep
        mine = tuple(s if k == self.axis else slice(None) for k, s in enumerate(where))
        with np.errstate(all="ignore"):
            if kind is bf16:
                out[...] = bits_of(values_of(w[where]) * factor[mine])
                return
            # a float64 copy of all would take longer to write than the products to compute
            np.multiply(w[where], factor[mine], out=out, dtype=np.float64, casting="same_kind")


def scaled(weights: Blob, factor: Vector, axis: int) -> Deferred:
    """The constant times the factor, as a constant of the same type."""
    kind = weights.type
    return Deferred(kind.dtype.numpy, kind.dims, (weights,), Scaled(weights, factor, axis))
