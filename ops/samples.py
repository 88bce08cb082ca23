"""Test cases that operators declare: `samples(s)` yields `s.case(...)`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .operator import Operator
from .types import DType, dtype_of, f32

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One call: input arrays (None where an optional one is absent), attributes, and how far a
    float32 result may be from the float64 reference, as a fraction of max |reference|."""

    inputs: tuple[Array | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    constant: tuple[int, ...] = ()  # positions of inputs that a model holds as constants


class Sampler:
    """Makes seeded random arrays for cases. `floats` honours the element type under test."""

    def __init__(self, seed: int, dtype: DType = f32) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype

    def case(
        self, *inputs: Array | None, tolerance: float = 1e-5, constant: tuple[int, ...] = (),
        **attrs: Any,
    ) -> Case:  # fmt: skip
        return Case(inputs, attrs, tolerance, constant)

    def floats(self, *shape: int, lo: float | None = None, hi: float | None = None) -> Array:
        """Normal numbers, or uniform in [lo, hi)."""
        if lo is None or hi is None:
            x = self.rng.standard_normal(shape)
        else:
            x = self.rng.uniform(lo, hi, shape)
        return np.asarray(x, self.dtype.numpy if self.dtype.is_float else np.float32)

    def numbers(self, *shape: int, lo: int = -9, hi: int = 10) -> Array:
        """Numbers of the element type under test, float or integer."""
        if self.dtype.is_float:
            return self.floats(*shape)
        if self.dtype.kind == "b":
            return self.bools(*shape)
        low = max(lo, 0) if self.dtype.kind == "u" else lo
        return self.rng.integers(low, hi, shape).astype(self.dtype.numpy)

    def ints(self, *shape: int, lo: int = 0, hi: int = 10, dtype: str = "i64") -> Array:
        return np.asarray(self.rng.integers(lo, hi, shape), dtype_of(dtype).numpy)

    def bools(self, *shape: int) -> Array:
        return np.asarray(self.rng.integers(0, 2, shape), np.bool_)


def cases(op: Operator, dtype: DType = f32) -> Iterator[Case]:
    """The operator's cases for one element type, reproducible per operator and type."""
    if op.samples is None:
        return
    seed = zlib.crc32(f"{op.name}/{dtype}".encode())
    yield from op.samples(Sampler(seed, dtype))
