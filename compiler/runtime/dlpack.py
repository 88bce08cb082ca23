"""DLPack, the protocol by which libraries hand each other arrays without a copy: reading a capsule,
and making one (https://dmlc.github.io/dlpack/latest/).

A capsule that is read is not consumed: whoever reads keeps the capsule, and drops it when its
memory is not needed any more, which has the producer free it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

from ...ops.types import DTYPES, DType

CUDA: Final = 2  # of the kinds of devices

_CODES: Final = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT: Final = 4
_NAME: Final = b"dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("number", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_api = ctypes.pythonapi
_get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_new = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", _api))  # fmt: skip
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_raw = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


@dataclass(frozen=True, slots=True)
class Described:
    """What a capsule says of an array. strides: in elements, None for C order. dtype: None for a
    type of elements that Tilewright does not have."""

    address: int
    device: int
    number: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: DType | None
    type_name: str


def describe(capsule: Any) -> Described:
    """Raises ValueError for what is no capsule of an array."""
    t = _Managed.from_address(_get(capsule, _NAME)).tensor
    shape = tuple(t.shape[: t.rank]) if t.rank else ()
    strides = tuple(t.strides[: t.rank]) if t.rank and t.strides else None
    kind = (t.code, t.bits)
    dtype = _BY_CODE.get(kind) if t.lanes == 1 else None
    return Described((t.data or 0) + t.offset, t.device, t.number, shape, strides, dtype,
                     str(dtype) if dtype else f"DLPack type {kind}")  # fmt: skip


def _code(t: DType) -> tuple[int, int]:
    return (_BFLOAT if t.name == "bf16" else _CODES[t.kind]), t.bits


_BY_CODE: Final = {_code(t): t for t in DTYPES.values()}


# --------------------------------------------------------------------------- ours for others

_out: dict[int, tuple[Any, ...]] = {}
"""What was handed out and not given back, by address: it lives for as long as it stands here."""


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _delete(managed: int) -> None:
    _out.pop(managed, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _end(capsule: int) -> None:
    """A capsule goes: if nobody took what is in it, that goes too."""
    if _valid(capsule, _NAME):
        _out.pop(_raw(capsule, _NAME), None)


def capsule(
    owner: Any, address: int, number: int, shape: tuple[int, ...], dtype: DType, kind: int = CUDA
) -> Any:  # fmt: skip
    """A capsule of an array in C order on device `number` of a kind, which keeps `owner` until it
    is given back."""
    dims = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    code, bits = _code(dtype)
    tensor = _Tensor(address, kind, number, len(shape), code, bits, 1,
                     ctypes.cast(dims, ctypes.POINTER(ctypes.c_int64)))  # fmt: skip
    managed = _Managed(tensor, None, ctypes.cast(_delete, ctypes.c_void_p))
    at = ctypes.addressof(managed)
    _out[at] = owner, dims, managed
    return _new(at, _NAME, ctypes.cast(_end, ctypes.c_void_p))
