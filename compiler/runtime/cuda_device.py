"""This process's GPUs: contexts, memory, streams, and what became of them.

A device is used through its primary context, the one that PyTorch, CuPy and NVIDIA's runtime use as
well: so pointers, streams and events of one library mean something to the others. It is taken when
a device is first used and kept for as long as the process lives, as those libraries keep it.

Two things end the use of a device. A kernel that faults (an access to memory that is not its own)
leaves the context unusable for everybody in the process: the device is marked as lost, and says so
at once from then on, while others go on. And a forked child has no CUDA, whatever it inherits.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt

from ..errors import (
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    ForkedError,
    NoDeviceError,
)
from ..text import human_bytes
from .cuda_driver import LOST, NOT_READY, OUT_OF_MEMORY, Driver, driver

LEGACY: Final = 1
"""CU_STREAM_LEGACY, the stream that PyTorch and CuPy use unless told otherwise."""

_NON_BLOCKING: Final = 1
_NO_TIMING: Final = 2
_ATTRIBUTES: Final = {
    "major": 75, "minor": 76, "multiprocessors": 16, "clock_khz": 13, "memory_clock_khz": 36,
    "bus_bits": 37, "l2_bytes": 38, "pools": 115,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the driver tells of a device. Clocks are the highest that are set for it, in kHz."""

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int
    clock_khz: int
    memory_clock_khz: int
    bus_bits: int
    l2_bytes: int
    has_pools: bool

    @property
    def arch(self) -> str:
        """ "sm_90" for compute capability 9.0."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


class Device:
    """One GPU. `with device:` makes its context that of the calling thread, and puts back what was
    there; all other methods but `check` want that."""

    def __init__(self, library: Driver, number: int) -> None:
        self.driver, self.number = library, number
        self.facts = facts(library, number)
        self.lost = ""
        self._context: int | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __str__(self) -> str:
        return f"device {self.number} ({self.facts.name}, {self.facts.arch})"

    # ---------------------------------------------------------------- whether it can be used

    def check(self) -> None:
        """Raise ForkedError or DeviceLostError where it cannot be used any more."""
        if os.getpid() != self._process:
            raise ForkedError(
                f"{self} was in use when process {self._process} forked, and CUDA does not work in"
                " a forked child. Start processes with multiprocessing's 'spawn' or 'forkserver',"
                " or use the GPU in the children only"
            )
        if self.lost:
            raise DeviceLostError(self.lost)

    def __enter__(self) -> Device:
        self.check()
        context = self._context
        if context is None:
            context = self._retained()
        self.call("cuCtxPushCurrent_v2", context)
        return self

    def __exit__(self, *_: object) -> None:
        was = ctypes.c_void_p()
        self.driver.code("cuCtxPopCurrent_v2", ctypes.byref(was))

    def _retained(self) -> int:
        with self._lock:
            if self._context is None:
                context = ctypes.c_void_p()
                self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.number)
                self._context = context.value
        assert self._context is not None
        return self._context

    # ---------------------------------------------------------------- calls

    def call(self, name: str, *args: Any) -> None:
        """Call a function of the driver. Raises DeviceError, DeviceLostError."""
        code = self.driver.code(name, *args)
        if code:
            raise self.failure(name, code)

    def failure(self, name: str, code: int, doing: str = "") -> DeviceError:
        """What a code means; those that stay mark the device as lost. doing: for the message."""
        said = self.driver.named(code)
        if code not in LOST:
            return DeviceError(f"{self}: the driver refuses {name}{doing}: {said}", code)
        self.lost = (
            f"{self} is lost to this process: a kernel faulted, told by {name}{doing}: {said}. All"
            " that uses this device in this process, other libraries too, has to start anew in"
            " another one; other devices go on. TILEWRIGHT_POISON=1 runs kernel by kernel, and"
            " names the one that faults"
        )
        return DeviceLostError(self.lost, code)

    def quietly(self, name: str, *args: Any) -> bool:
        """Give something back, as far as there still is somebody who takes it; whether it worked.
        In any thread, and wherever the collector of garbage runs."""
        if self.lost or os.getpid() != self._process or self._context is None:
            return False
        if self.driver.code("cuCtxPushCurrent_v2", self._context):
            return False  # the driver has gone ahead of us
        code = self.driver.code(name, *args)
        if code in LOST:
            self.failure(name, code)
        self.__exit__()
        return code == 0

    # ---------------------------------------------------------------- what it has

    def memory(self, size: int, what: str) -> Handle:
        """So many bytes, at a multiple of 256. what: for the message of DeviceMemoryError."""
        address = ctypes.c_uint64()
        code = self.driver.code("cuMemAlloc_v2", ctypes.byref(address), max(size, 1))
        if code:
            raise self.refused(code, "cuMemAlloc", size, what)
        return Handle(self, address.value, "cuMemFree_v2")

    def refused(self, code: int, name: str, size: int, what: str) -> Exception:
        """Why an allocation did not work."""
        if code != OUT_OF_MEMORY:
            return self.failure(name, code)
        free = self.free_bytes()
        left = "" if free is None else f" of which {human_bytes(free)} are free;"
        return DeviceMemoryError(
            f"{what} takes {human_bytes(size)}: {self} has {human_bytes(self.facts.memory_bytes)},"
            f"{left} close other programs (exe.close()), other processes (`nvidia-smi` lists"
            " them), or compile for smaller batches", size, free
        )  # fmt: skip

    def free_bytes(self) -> int | None:
        """How much memory is free, None if the driver does not say."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        code = self.driver.code("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return None if code else free.value

    def pinned(self, size: int) -> Handle:
        """Memory of the host that the device copies from and to by itself."""
        address = ctypes.c_void_p()
        code = self.driver.code("cuMemHostAlloc", ctypes.byref(address), max(size, 1), 0)
        if code == OUT_OF_MEMORY:
            raise DeviceMemoryError(f"the host has no {human_bytes(size)} of pinned memory for"
                                    f" copies to {self}", size, None)  # fmt: skip
        if code:
            raise self.failure("cuMemHostAlloc", code)
        return Handle(self, address.value or 0, "cuMemFreeHost")

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy an array of the host to where any stream may read it at once.

        The driver returns from a copy of pageable memory when it has put the bytes aside, and may
        bring them to the device later, in the order of the legacy stream (CUDA driver API, "API
        synchronization behavior"), for which streams of ours do not wait.
        """
        if array.nbytes:
            self.call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)
            self.call("cuStreamSynchronize", LEGACY)

    def stream(self) -> Handle:
        """A stream that waits for no other one by itself."""
        made = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(made), _NON_BLOCKING)
        return Handle(self, made.value or 0, "cuStreamDestroy_v2")

    def event(self, timing: bool = False) -> Handle:
        """A mark in streams, with the time if asked for."""
        made = ctypes.c_void_p()
        self.call("cuEventCreate", ctypes.byref(made), 0 if timing else _NO_TIMING)
        return Handle(self, made.value or 0, "cuEventDestroy_v2")

    def is_over(self, event: int) -> bool:
        """Whether all work ahead of an event's mark is done. Raises DeviceError."""
        code = self.driver.code("cuEventQuery", event)
        if code not in (0, NOT_READY):
            raise self.failure("cuEventQuery", code)
        return code == 0

    def order(self, earlier: int, later: int) -> None:
        """Have what comes next in the stream `later` wait for all that is in `earlier`."""
        if earlier == later:
            return
        event = self.event()
        self.call("cuEventRecord", event.value, earlier)
        self.call("cuStreamWaitEvent", later, event.value, 0)
        event.close()  # the driver keeps it until nobody waits for it


class Handle:
    """Something of the driver's, given back once: by `close`, or when nobody holds it any more.
    The end of the process gives back everything, so nothing happens then."""

    __slots__ = ("__weakref__", "_end", "value")

    def __init__(self, device: Device, value: int, release: str) -> None:
        self.value = value
        self._end = weakref.finalize(self, device.quietly, release, value)
        self._end.atexit = False

    def close(self) -> None:
        """Give it back."""
        self._end()


def facts(library: Driver, number: int) -> DeviceFacts:
    """What a device is; it is not taken into use. Raises NoDeviceError."""
    count = library.number("cuDeviceGetCount")
    if number >= count:
        there = f"there is only {'0' if count == 1 else f'0 to {count - 1}'}" if count else "none"
        raise NoDeviceError(f"target='cuda:{number}': {there} of the devices that the driver shows"
                            " this process (CUDA_VISIBLE_DEVICES hides some)")  # fmt: skip
    device = library.number("cuDeviceGet", number)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    library.call("cuDeviceGetName", name, len(name), device)
    library.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    told = {field: library.number("cuDeviceGetAttribute", attribute, device)
            for field, attribute in _ATTRIBUTES.items()}  # fmt: skip
    return DeviceFacts(
        name.value.decode(errors="replace"), (told["major"], told["minor"]), memory.value,
        told["multiprocessors"], told["clock_khz"], told["memory_clock_khz"], told["bus_bits"],
        told["l2_bytes"], bool(told["pools"]),
    )  # fmt: skip


_known: dict[int, Device] = {}
_lock = threading.Lock()


def device(number: int) -> Device:
    """The device of that number: one object per process. Raises NoDeviceError,
    DriverVersionError."""
    with _lock:
        if number not in _known:
            _known[number] = Device(driver(), number)
        return _known[number]


def all_facts() -> tuple[DeviceFacts, ...]:
    """What devices there are, in the driver's order. Raises NoDeviceError, DriverVersionError."""
    library = driver()
    return tuple(facts(library, k) for k in range(library.number("cuDeviceGetCount")))


def capability(number: int) -> tuple[int, int]:
    """The compute capability of a device. Raises NoDeviceError, DriverVersionError."""
    return facts(driver(), number).capability


def unique_name(number: int) -> str:
    """What no other device of the world is called, and every process calls this one. Raises
    NoDeviceError, DriverVersionError."""
    library, found = driver(), (ctypes.c_ubyte * 16)()
    library.call("cuDeviceGetUuid_v2", found, library.number("cuDeviceGet", number))
    return bytes(found).hex()
