"""Tensor maps as the arguments of the driver's cuTensorMapEncodeTiled. The launcher adds the
address and makes the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ....ops.types import f32
from ...errors import LoweringError
from ...kernels import ir
from ...kernels.tensor_map import objection
from .entry import DescribedTensor

DESCRIPTOR_BYTES: Final = 128
DESCRIPTOR_ALIGNMENT: Final = 64  # of the descriptor itself, in bytes
_TYPES: Final[Mapping[str, int]] = {
    "u8": 0, "i8": 0, "u16": 1, "u32": 2, "i32": 3, "u64": 4, "i64": 5, "f16": 6, "f32": 7,
    "f64": 8, "bf16": 9,
}  # fmt: skip
"""CUtensorMapDataType."""
_TF32: Final = 11
"""Floats that become the nearest number of 10 bits as they are read, ties to even; infinities and
NaN stay. Products of f32 (wgmma) would leave the other bits out, an error of twice the size that
always makes factors smaller."""
_SWIZZLES: Final = {0: 0, 128: 3}  # CUtensorMapSwizzle
_LINES_OF_256: Final = 3  # CUtensorMapL2promotion: neighbouring boxes are read next


@dataclass(frozen=True, slots=True)
class Encoding:
    """The arguments of cuTensorMapEncodeTiled in their order, but for the descriptor, which is
    written, and the address, which comes behind the rank."""

    data_type: int
    rank: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    steps: tuple[int, ...]
    interleave: int
    swizzle: int
    promotion: int
    fill: int


def described(t: ir.TensorMap, params: Sequence[ir.Buffer]) -> DescribedTensor:
    """What a launch has to know of a tensor. Raises LoweringError where no descriptor holds it, or
    it lies in no parameter."""
    wrong = objection(t)
    if t.buffer not in params:
        wrong = "it lies in no parameter of the kernel"
    elif t.buffer.dtype.name not in _TYPES or (t.tf32 and t.buffer.dtype is not f32):
        wrong = f"elements of {t.buffer.dtype}"
    if wrong:
        raise LoweringError(f"tensor map {t.name} of {t.buffer.name}: {wrong}")
    return DescribedTensor(t.name, params.index(t.buffer), t.buffer.dtype.name, t.dims, t.strides,
                           t.box, t.swizzle, t.steps, t.tf32)  # fmt: skip


def encoding(t: DescribedTensor) -> Encoding:
    """The arguments for a tensor that `described` made; the address must be a multiple of 16."""
    steps = t.steps or (1,) * len(t.dims)
    reach = tuple(b * s for b, s in zip(t.box, steps, strict=True))
    return Encoding(
        _TF32 if t.tf32 else _TYPES[t.dtype], len(t.dims), t.dims, t.strides, reach, steps, 0,
        _SWIZZLES[t.swizzle], _LINES_OF_256, 0,
    )  # fmt: skip
