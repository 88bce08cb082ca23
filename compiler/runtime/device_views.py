"""Arrays of other libraries on a device, seen where they are: by DLPack, or by
`__cuda_array_interface__` version 3.

Both protocols say how their streams join ours. A producer of DLPack is told our stream, and has it
wait. `__cuda_array_interface__` names the producer's stream, which ours then waits for, and which
waits for us in the end, since what the caller does next with its array is put there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...ops.types import DType
from ..errors import InputError
from . import dlpack
from .cuda_device import LEGACY, Device
from .device_array import DeviceArray

_ORDINAL: Final = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


@dataclass(frozen=True, slots=True)
class Wanted:
    """An input or output of a program, as `what` ("input 'x'") is to be."""

    what: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int


@dataclass(frozen=True, slots=True)
class DeviceView:
    """An array in C order on the device. keep: what must live until it is read. producer: the
    stream that what comes next with it will be put into, None where nobody says."""

    address: int
    nbytes: int
    writable: bool
    keep: Any
    producer: int | None = None


def view(given: Any, wanted: Wanted, device: Device, stream: int) -> DeviceView:
    """What was given and `is_on_device`, to be used in `stream`. The device's context must be
    current. Raises InputError."""
    try:
        if hasattr(given, "__dlpack__"):
            kind, number = given.__dlpack_device__()
            return _by_dlpack(given, int(kind), int(number), wanted, device, stream)
        return _by_interface(given, wanted, device, stream)
    except (BufferError, ValueError, KeyError, TypeError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{wanted.what}: a {type(given).__name__} does not hand out its memory:"
                         f" {e}") from e  # fmt: skip


def _by_dlpack(
    given: Any, kind: int, number: int, wanted: Wanted, device: Device, stream: int
) -> DeviceView:
    if kind != dlpack.CUDA:
        raise InputError(f"{wanted.what} is on a device of DLPack's kind {kind}; this program"
                         f" takes arrays on {device} and on the host")  # fmt: skip
    _check_device(number, wanted, device)
    capsule = given.__dlpack__(stream=stream)
    found = dlpack.describe(capsule)
    item = found.dtype.bytes if found.dtype else 1
    strides = None if found.strides is None else tuple(s * item for s in found.strides)
    fits = found.dtype is wanted.dtype or _bits(found.dtype, wanted.dtype)
    _check(wanted, found.shape, fits, found.type_name, strides, item)
    return DeviceView(found.address, wanted.nbytes, True, (given, capsule))


def _bits(found: DType | None, wanted: DType) -> bool:
    """bfloat16 may come as the bits that it consists of, as numpy has them."""
    return found is not None and {found.name, wanted.name} == {"bf16", "u16"} and (
        wanted.name == "bf16"
    )  # fmt: skip


def _by_interface(given: Any, wanted: Wanted, device: Device, stream: int) -> DeviceView:
    told = given.__cuda_array_interface__
    address, read_only = told["data"]
    dtype, shape, strides = np.dtype(told["typestr"]), tuple(told["shape"]), told.get("strides")
    _check(wanted, shape, dtype == wanted.dtype.numpy, dtype, strides, dtype.itemsize)
    if wanted.nbytes:
        number = ctypes.c_int()
        device.call("cuPointerGetAttribute", ctypes.byref(number), _ORDINAL, address)
        _check_device(number.value, wanted, device)
    producer = told.get("stream")
    if producer == 0:
        raise InputError(f"{wanted.what}: 0 is no stream in __cuda_array_interface__")
    if producer is not None:
        device.order(producer, stream)
    return DeviceView(address or 0, wanted.nbytes, not read_only, given, producer)


def _check_device(number: int, wanted: Wanted, device: Device) -> None:
    if number != device.number:
        raise InputError(f"{wanted.what} is on device {number}, and the program on {device}: copy"
                         f" it there, or compile for target='cuda:{number}'")  # fmt: skip


def _check(
    wanted: Wanted, shape: tuple[int, ...], fits: bool, dtype: object,
    strides: tuple[int, ...] | None, item: int,
) -> None:  # fmt: skip
    if not fits:
        raise InputError(f"{wanted.what} must be {wanted.dtype}, got {dtype}{list(shape)}")
    if shape != wanted.shape:
        raise InputError(f"{wanted.what} must have shape {list(wanted.shape)}, got {list(shape)}")
    step = item
    for n, s in zip(reversed(shape), reversed(strides or ()), strict=False):
        if n > 1 and s != step and wanted.nbytes:
            raise InputError(f"{wanted.what} must be contiguous in C order on a GPU, its strides in"
                             f" bytes are {list(strides or ())}: .contiguous() or the like"
                             " copies it")  # fmt: skip
        step *= n


def wrapper(given: Any) -> Callable[[DeviceArray], Any]:
    """What makes of a result an array of the library that an input comes from: the library's
    `from_dlpack` where it has one. Nothing is imported: who has arrays of a library has loaded
    it."""
    for c in type(given).__mro__:
        library = sys.modules.get(c.__module__.partition(".")[0])
        made = getattr(library, "from_dlpack", None)
        if made is not None:
            return made
    return lambda y: y


def handle_of(stream: Any) -> int:
    """The driver's handle of a stream: an int, or an object of PyTorch, CuPy, Numba, or any with
    `__cuda_stream__`. Raises InputError."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return LEGACY if stream == 0 else stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        found = protocol() if callable(protocol) else protocol
        return handle_of(int(found[1]))
    for name in ("cuda_stream", "ptr", "handle"):
        found = getattr(stream, name, None)
        if found is not None:
            return handle_of(int(getattr(found, "value", found) or 0))
    raise InputError(f"stream={stream!r}: expected a stream of a library that uses CUDA, or the"
                     " number that is its handle")  # fmt: skip
