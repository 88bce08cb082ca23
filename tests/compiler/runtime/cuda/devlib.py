"""A library with arrays on a GPU, as CuPy and PyTorch are, on the stub driver.

`Array` speaks both protocols; `from_dlpack` takes results. Its work happens in a stream of its
own choice, and what it writes is written there, when the driver comes to it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np

from tilewright.compiler.runtime import dlpack
from tilewright.compiler.runtime.cuda_device import LEGACY, Device
from tilewright.ops.types import dtype_of

LATER: list[Any] = []
"""Pinned memory that copies still read."""


class Array:
    """An array on a device, whose content is put there in `stream`."""

    protocols = ("dlpack", "interface")

    def __init__(
        self, device: Device, content: np.ndarray, stream: int = LEGACY, offset: int = 0
    ) -> None:
        self.device, self.stream = device, stream
        self.shape, self.dtype = content.shape, content.dtype
        self.strides: tuple[int, ...] | None = None
        self.read_only = False
        with device:
            self.memory = device.memory(content.nbytes + offset, "an array")
            self.address = self.memory.value + offset
            self.write(content)

    def write(self, content: np.ndarray) -> None:
        """Change it, in its stream."""
        pinned = self.device.pinned(content.nbytes)
        LATER.append(pinned)
        ctypes.memmove(pinned.value, np.ascontiguousarray(content).ctypes.data, content.nbytes)
        self.device.call("cuMemcpyHtoDAsync_v2", self.address, pinned.value, content.nbytes,
                         self.stream)  # fmt: skip

    def get(self) -> np.ndarray:
        """The content, when all that is in its stream is done."""
        with self.device as d:
            d.call("cuStreamSynchronize", self.stream)
        return self.content()

    def content(self) -> np.ndarray:
        """The content as it is now."""
        out = np.empty(self.shape, self.dtype)
        with self.device as d:
            d.call("cuMemcpyDtoH_v2", out.ctypes.data, self.address, out.nbytes)
        return out


class PackArray(Array):
    """Speaks DLPack, as PyTorch's tensors do."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.number

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        if stream not in (None, -1):
            with self.device:
                self.device.order(self.stream, stream)
        return dlpack.capsule(self, self.address, self.device.number, self.shape,
                              dtype_of(self.dtype))  # fmt: skip


class PooledArray(PackArray):
    """Its memory has a new user as soon as nobody holds it."""

    def __del__(self) -> None:
        if self.device.lost:
            return
        LATER.append(self.memory)
        garbage = np.full(self.shape, np.nan, self.dtype)
        with self.device as d:  # in a stream that waits for nobody
            stream = d.stream()
            d.call("cuMemcpyHtoDAsync_v2", self.address, garbage.ctypes.data, garbage.nbytes,
                   stream.value)  # fmt: skip
            d.call("cuStreamSynchronize", stream.value)


class InterfaceArray(Array):
    """Speaks `__cuda_array_interface__` only, as older CuPy does."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "strides": self.strides,
                "data": (self.address, self.read_only), "version": 3,
                "stream": self.stream}  # fmt: skip


class Taken:
    """What `from_dlpack` makes: an array that uses another library's memory."""

    current = LEGACY

    def __init__(self, given: Any) -> None:
        self.capsule = given.__dlpack__(stream=self.current)
        self.told = dlpack.describe(self.capsule)
        self.device = given._device

    def get(self) -> np.ndarray:
        out = np.empty(self.told.shape, self.told.dtype.numpy)
        with self.device as d:
            d.call("cuStreamSynchronize", self.current)
            d.call("cuMemcpyDtoH_v2", out.ctypes.data, self.told.address, out.nbytes)
        return out


class Library:
    """The module that the classes above say they are from."""

    from_dlpack = Taken


PackArray.__module__ = PooledArray.__module__ = "devlib"


def install(monkeypatch: Any) -> None:
    """As if somebody had imported it."""
    monkeypatch.setitem(sys.modules, "devlib", Library)
