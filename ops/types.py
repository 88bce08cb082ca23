"""Element types, tensor types and memory layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt

from .errors import OperatorError


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """An element type: its name in printed IR, kind, width, and the numpy type that stores it.

    There is one object of each, below: types are compared and looked up often, by identity.
    """

    name: str
    kind: str  # "f" float, "i" signed, "u" unsigned, "b" bool
    bits: int
    numpy: np.dtype

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


f16: Final = DType("f16", "f", 16, np.dtype(np.float16))
# numpy has no bfloat16: its values are stored as raw bits
bf16: Final = DType("bf16", "f", 16, np.dtype(np.uint16))
f32: Final = DType("f32", "f", 32, np.dtype(np.float32))
f64: Final = DType("f64", "f", 64, np.dtype(np.float64))
i8: Final = DType("i8", "i", 8, np.dtype(np.int8))
i16: Final = DType("i16", "i", 16, np.dtype(np.int16))
i32: Final = DType("i32", "i", 32, np.dtype(np.int32))
i64: Final = DType("i64", "i", 64, np.dtype(np.int64))
u8: Final = DType("u8", "u", 8, np.dtype(np.uint8))
u16: Final = DType("u16", "u", 16, np.dtype(np.uint16))
u32: Final = DType("u32", "u", 32, np.dtype(np.uint32))
u64: Final = DType("u64", "u", 64, np.dtype(np.uint64))
boolean: Final = DType("bool", "b", 8, np.dtype(np.bool_))

DTYPES: Final[dict[str, DType]] = {
    t.name: t for t in (f16, bf16, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64, boolean)
}
HALF: Final = (f16, bf16)
"""Floats of 16 bits: sums of them are computed in f32."""
_BY_NUMPY: Final = {t.numpy: t for t in DTYPES.values() if t is not bf16}


def dtype_of(value: npt.DTypeLike | DType | str) -> DType:
    """The DType of a numpy dtype, a numpy scalar type, or a name like "f32" or "float32"."""
    if isinstance(value, DType):
        return value
    if isinstance(value, str) and value in DTYPES:
        return DTYPES[value]
    try:
        return _BY_NUMPY[np.dtype(value)]
    except (TypeError, KeyError):
        known = ", ".join(DTYPES)
        raise OperatorError(f"no element type for {value!r}; known are {known}") from None


@dataclass(frozen=True, slots=True)
class SymDim:
    """A dimension that is bound before kernels are chosen; lo and hi bound it when known."""

    name: str
    lo: int = 0
    hi: int | None = None

    def __str__(self) -> str:
        return self.name


Dim = int | SymDim


@dataclass(frozen=True, slots=True)
class Layout:
    """How logical elements lie in memory: row-major, or one axis in blocks stored innermost.

    `Layout(axis=1, block=16)` stores f32[N, C, H, W] as [N, ceil(C / 16), H, W, 16]. The lanes past
    C in the last block hold unspecified values that no kernel's result may depend on.

    A tensor may be part of a larger one, a stretch of indices along axis `along`, of which the
    larger one has `extent`: it then lies in steps of the larger one. extent is 0 for a tensor of
    its own.
    """

    axis: int = 0
    block: int = 0
    along: int = 0
    extent: int = 0

    @property
    def is_blocked(self) -> bool:
        return self.block > 0

    @property
    def is_part(self) -> bool:
        return self.extent > 0

    @property
    def order(self) -> Layout:
        """The same order of elements for a tensor of its own."""
        return Layout(self.axis, self.block) if self.extent else self

    def part(self, along: int, extent: int) -> Layout:
        """The layout of a part, along an axis, of a tensor that has this one."""
        return Layout(self.axis, self.block, along, extent)

    def __str__(self) -> str:
        blocks = f"@{self.axis}x{self.block}" if self.block else ""
        return f"{blocks}@{self.along}/{self.extent}" if self.extent else blocks


ROW_MAJOR: Final = Layout()


@lru_cache(1 << 10)
def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a dense row-major array."""
    strides, step = [], 1
    for d in reversed(shape):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type, logical shape and layout of a value. Prints as `f32[1,64,56,56]@1x16`."""

    dtype: DType
    shape: tuple[Dim, ...]
    layout: Layout = ROW_MAJOR

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as integers. Raises OperatorError while a dimension is symbolic."""
        for d in self.shape:
            if not isinstance(d, int):
                raise OperatorError(f"dimension {d} of {self} is not bound yet")
        return self.shape  # type: ignore[return-value]

    @property
    def size(self) -> int:
        """Logical elements."""
        return prod(self.dims)

    @property
    def physical_shape(self) -> tuple[int, ...]:
        """The array that stores this tensor: dense, or a part of a dense one."""
        return self._stored(self.dims)

    def _stored(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        if not self.layout.is_blocked:
            return dims
        a, b = self.layout.axis, self.layout.block
        return (*dims[:a], -(-dims[a] // b), *dims[a + 1 :], b)

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """The physical shape of the tensor that this one is part of, or its own."""
        a, dims = self.layout.along, self.dims
        if not self.layout.is_part:
            return self._stored(dims)
        return self._stored((*dims[:a], self.layout.extent, *dims[a + 1 :]))

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours along the axes of the physical shape."""
        return row_major_strides(self.whole_shape)

    @property
    def span(self) -> int:
        """Elements of memory from the first one stored to the last, gaps included."""
        shape = self.physical_shape
        if not prod(shape):
            return 0
        return 1 + sum((d - 1) * s for d, s in zip(shape, self.strides, strict=True))

    @property
    def is_dense(self) -> bool:
        """Whether it lies in memory like a tensor of its own."""
        return not self.layout.is_part or self.span == prod(self.physical_shape)

    @property
    def is_in_order(self) -> bool:
        """Whether elements follow each other as in row-major layout: as they do in whole blocks of
        channels at a single place."""
        if not self.layout.is_blocked:
            return True
        a, b = self.layout.axis, self.layout.block
        return self.dims[a] % b == 0 and prod(self.dims[a + 1 :]) == 1

    @property
    def runs(self) -> tuple[int, int, int]:
        """How storage is cut: (how many runs, bytes of one, bytes from one to the next)."""
        a = self.layout.along if self.layout.is_part and not self.is_dense else 0
        shape, whole = self.physical_shape, self.whole_shape
        each, step = prod(shape[a:]) * self.dtype.bytes, prod(whole[a:]) * self.dtype.bytes
        return prod(shape[:a]), each, step if a else each

    def position(self, along: int, start: int) -> int:
        """Bytes from the first element to the one at `start` along an axis: whole blocks of a
        blocked axis."""
        step = self.layout.block if self.layout.is_blocked and along == self.layout.axis else 1
        return start // step * self.strides[along] * self.dtype.bytes

    @property
    def nbytes(self) -> int:
        """Bytes of storage, padding lanes included, gaps of a part left out."""
        return prod(self.physical_shape) * self.dtype.bytes

    def with_shape(self, shape: Iterable[int]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return replace(self, dtype=dtype)

    def with_layout(self, layout: Layout) -> TensorType:
        return replace(self, layout=layout)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{self.layout}"


_TYPE = re.compile(r"(\w+)\[([^\]]*)\](?:@(\d+)x(\d+))?(?:@(\d+)/(\d+))?\Z")


def parse_type(text: str) -> TensorType:
    """The inverse of `str(TensorType)`. Raises OperatorError on anything else."""
    m = _TYPE.match(text.strip())
    if m is None or m[1] not in DTYPES:
        raise OperatorError(f"{text!r} is not a tensor type such as f32[1,3,224,224]")
    parts = [p.strip() for p in m[2].split(",")] if m[2].strip() else []
    shape = tuple(_parse_dim(p, text) for p in parts)
    layout = Layout(*(int(m[k] or 0) for k in (3, 4, 5, 6)))
    blocks = not m[3] or (layout.axis < len(shape) and layout.block)
    if not blocks or (m[5] and (layout.along >= len(shape) or not layout.extent)):
        raise OperatorError(f"{text!r}: a tensor of rank {len(shape)} has no layout {layout}")
    return TensorType(DTYPES[m[1]], shape, layout)


def _parse_dim(text: str, where: str) -> Dim:
    if re.fullmatch(r"-?[0-9]+", text):
        return int(text)
    if not text.isidentifier():
        raise OperatorError(f"{where!r}: {text!r} is not a dimension")
    return SymDim(text)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Numpy (multidirectional) broadcasting. Raises OperatorError naming the clashing shapes."""
    rank = max((len(s) for s in shapes), default=0)
    out = []
    for k in range(-rank, 0):
        sizes = {s[k] for s in shapes if len(s) >= -k and s[k] != 1}
        if len(sizes) > 1:
            listed = " and ".join(str(list(s)) for s in shapes)
            raise OperatorError(f"shapes {listed} do not broadcast together")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)
