"""Results on a device, in a form that every library takes without a copy."""

from __future__ import annotations

import ctypes
import weakref
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ...ops.types import DType
from . import dlpack
from .cuda_device import LEGACY, Device


class DeviceArray:
    """An array in C order in a GPU's memory.

    Other libraries take it by DLPack (`torch.from_dlpack(y)`, `cupy.from_dlpack(y)`) or by
    `__cuda_array_interface__`, without a copy; `y.numpy()` copies it to the host. By DLPack the
    taker's stream waits for the result; asking for the other interface waits for it.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DType, stream: int) -> None:
        """Memory for what is to be written in `stream`. The device's context must be current.
        Raises DeviceMemoryError."""
        self.shape, self.dtype = shape, dtype.numpy
        self._type, self._device = dtype, device
        self.nbytes = prod(shape) * dtype.bytes
        self._ready = device.event()
        self._streams = {stream}
        self.address = _allocate(device, max(self.nbytes, 1), stream)
        end = weakref.finalize(self, _free, device, self.address, self._streams)
        end.atexit = False

    @property
    def device(self) -> int:
        """The number of the device."""
        return self._device.number

    def written(self, stream: int) -> None:
        """Note that all that writes it is in a stream now."""
        self._device.call("cuEventRecord", self._ready.value, stream)

    def numpy(self) -> npt.NDArray[Any]:
        """A copy in the host's memory. Raises DeviceError."""
        made = np.empty(self.shape, self.dtype)
        with self._device as device:
            device.call("cuEventSynchronize", self._ready.value)
            if self.nbytes:
                device.call("cuMemcpyDtoH_v2", made.ctypes.data, self.address, self.nbytes)
        return made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("an array on a GPU cannot become a numpy array without a copy")
        return self.numpy().astype(dtype or self.dtype, copy=False)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(
        self, *, stream: int | None = None, max_version: Any = None, dl_device: Any = None,
        copy: bool | None = None,
    ) -> Any:  # fmt: skip
        """A capsule. stream: the taker's, which waits for the result; None for the legacy default
        stream, -1 for a taker that takes care of that itself."""
        if copy or (dl_device is not None and tuple(dl_device) != self.__dlpack_device__()):
            raise BufferError("copies of a DeviceArray are made by .numpy() only")
        if stream == 0:
            raise BufferError("stream=0 is ambiguous: 1 is the legacy default stream, 2 the one"
                              " of the thread")  # fmt: skip
        with self._device as device:
            taker = LEGACY if stream is None else stream
            if taker != -1:
                device.call("cuStreamWaitEvent", taker, self._ready.value, 0)
            self._streams.add(taker)
        return dlpack.capsule(self, self.address, self.device, self.shape, self._type)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        with self._device as device:
            device.call("cuEventSynchronize", self._ready.value)
        self._streams.add(-1)  # nobody says where it will be read
        return {"shape": self.shape, "typestr": self.dtype.str, "version": 3, "strides": None,
                "data": (self.address if self.nbytes else 0, False), "stream": None}  # fmt: skip

    def __repr__(self) -> str:
        dims = ", ".join(map(str, self.shape))
        return f"<tilewright.DeviceArray {self._type}[{dims}] on {self._device}>"


def _allocate(device: Device, size: int, stream: int) -> int:
    """From the device's pool, in the order of the stream, where there is one: that waits for
    nothing."""
    address = ctypes.c_uint64()
    if device.facts.has_pools:
        code = device.driver.code("cuMemAllocAsync", ctypes.byref(address), size, stream)
    else:
        code = device.driver.code("cuMemAlloc_v2", ctypes.byref(address), size)
    if code:
        raise device.refused(code, "cuMemAllocAsync", size, "an output")
    return address.value


def _free(device: Device, address: int, streams: set[int]) -> None:
    """Give memory back when all that may still use it is done: behind what is in the default
    stream, where it was used in no other one; else after waiting for the device, as a stream that
    it was used in may be gone."""
    if not device.facts.has_pools:
        device.quietly("cuMemFree_v2", address)  # waits by itself
        return
    if not streams <= {0, LEGACY} and not device.quietly("cuCtxSynchronize"):
        return  # rather lost than in use
    device.quietly("cuMemFreeAsync", address, LEGACY)
