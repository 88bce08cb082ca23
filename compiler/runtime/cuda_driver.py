"""NVIDIA's driver, called through ctypes: the functions that are used, with their types, and every
return code looked at.

Nothing here keeps state but the library itself; devices and their memory are `cuda_device`. Names
are those that the library exports: where a function changed its types, the newer one has a suffix.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from ..errors import DeviceError, DriverVersionError, NoDeviceError

OUT_OF_MEMORY: Final = 2
NOT_INITIALIZED: Final = 3
NOT_READY: Final = 600
WRONG_IMAGE: Final = (200, 209, 218)
"""Codes for machine code of another architecture or a newer format, and for PTX that is none."""
OLD_FOR_PTX: Final = 222
LOST: Final = frozenset((214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721))
"""Codes that a context gives for good once it gave them: faults of kernels and of memory."""

OLDEST: Final = (12, 0)
"""The first CUDA version whose driver has all functions below, and takes PTX 8.0."""
_LINUX_DRIVERS: Final = {11: "450", 12: "525", 13: "580"}
"""By CUDA's major version, the release of the Linux driver that brought it."""
_PTX_NEEDS: Final = {
    "7.8": (11, 8), "8.0": (12, 0), "8.1": (12, 1), "8.2": (12, 2), "8.3": (12, 3), "8.4": (12, 4),
    "8.5": (12, 5), "8.6": (12, 7), "8.7": (12, 8), "8.8": (12, 9), "9.0": (13, 0),
}  # fmt: skip
"""By PTX version, the CUDA version whose driver takes it (PTX ISA, release notes)."""
_PTX_VERSION: Final = re.compile(r"^\.version (\d+\.\d+)", re.MULTILINE)

_POINTER, _INT, _UNSIGNED = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_SIZE, _ADDRESS, _TEXT = ctypes.c_size_t, ctypes.c_uint64, ctypes.c_char_p
_STREAM = _EVENT = _GRAPH = _NODE = _FUNCTION = _POINTER
_FUNCTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (_UNSIGNED,),
    "cuDriverGetVersion": (_POINTER,),
    "cuGetErrorName": (_INT, _POINTER),
    "cuGetErrorString": (_INT, _POINTER),
    "cuDeviceGetCount": (_POINTER,),
    "cuDeviceGet": (_POINTER, _INT),
    "cuDeviceGetName": (_POINTER, _INT, _INT),
    "cuDeviceGetAttribute": (_POINTER, _INT, _INT),
    "cuDeviceTotalMem_v2": (_POINTER, _INT),
    "cuDeviceGetUuid_v2": (_POINTER, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuCtxPushCurrent_v2": (_POINTER,),
    "cuCtxPopCurrent_v2": (_POINTER,),
    "cuCtxSynchronize": (),
    "cuMemGetInfo_v2": (_POINTER, _POINTER),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemAllocAsync": (_POINTER, _SIZE, _STREAM),
    "cuMemFreeAsync": (_ADDRESS, _STREAM),
    "cuMemHostAlloc": (_POINTER, _SIZE, _UNSIGNED),
    "cuMemFreeHost": (_POINTER,),
    "cuMemcpyHtoD_v2": (_ADDRESS, _POINTER, _SIZE),
    "cuMemcpyDtoH_v2": (_POINTER, _ADDRESS, _SIZE),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _STREAM),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _STREAM),
    "cuMemcpyDtoDAsync_v2": (_ADDRESS, _ADDRESS, _SIZE, _STREAM),
    "cuMemsetD8Async": (_ADDRESS, ctypes.c_ubyte, _SIZE, _STREAM),
    "cuPointerGetAttribute": (_POINTER, _INT, _ADDRESS),
    "cuStreamCreate": (_POINTER, _UNSIGNED),
    "cuStreamDestroy_v2": (_STREAM,),
    "cuStreamSynchronize": (_STREAM,),
    "cuStreamWaitEvent": (_STREAM, _EVENT, _UNSIGNED),
    "cuStreamBeginCapture_v2": (_STREAM, _INT),
    "cuStreamEndCapture": (_STREAM, _POINTER),
    "cuStreamGetCaptureInfo_v2": (_STREAM, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    "cuEventCreate": (_POINTER, _UNSIGNED),
    "cuEventDestroy_v2": (_EVENT,),
    "cuEventRecord": (_EVENT, _STREAM),
    "cuEventRecordWithFlags": (_EVENT, _STREAM, _UNSIGNED),
    "cuEventQuery": (_EVENT,),
    "cuEventSynchronize": (_EVENT,),
    "cuEventElapsedTime": (_POINTER, _EVENT, _EVENT),
    "cuModuleLoadDataEx": (_POINTER, _POINTER, _UNSIGNED, _POINTER, _POINTER),
    "cuModuleGetFunction": (_POINTER, _POINTER, _TEXT),
    "cuModuleUnload": (_POINTER,),
    "cuFuncSetAttribute": (_FUNCTION, _INT, _INT),
    "cuLaunchKernel": (_FUNCTION, *[_UNSIGNED] * 7, _STREAM, _POINTER, _POINTER),
    "cuLaunchKernelEx": (_POINTER, _FUNCTION, _POINTER, _POINTER),
    "cuGraphInstantiateWithFlags": (_POINTER, _GRAPH, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _STREAM),
    "cuGraphDestroy": (_GRAPH,),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGraphExecKernelNodeSetParams_v2": (_POINTER, _NODE, _POINTER),
    "cuTensorMapEncodeTiled": (_POINTER, _INT, _UNSIGNED, _ADDRESS, *[_POINTER] * 4, *[_INT] * 4),
}


class KernelNodeParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", _POINTER),
        ("grid", _UNSIGNED * 3),
        ("block", _UNSIGNED * 3),
        ("shared_bytes", _UNSIGNED),
        ("params", _POINTER),
        ("extra", _POINTER),
        ("kernel", _POINTER),
        ("context", _POINTER),
    )


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, with a value that is three numbers."""

    _fields_ = (
        ("id", _INT),
        ("pad", _INT),
        ("dims", _UNSIGNED * 3),
        ("rest", ctypes.c_ubyte * 52),
    )


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", _UNSIGNED * 3),
        ("block", _UNSIGNED * 3),
        ("shared_bytes", _UNSIGNED),
        ("stream", _POINTER),
        ("attributes", _POINTER),
        ("count", _UNSIGNED),
    )


class Driver:
    """The library, initialised. version: (12, 4) for a driver that came with CUDA 12.4."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions: dict[str, Callable[..., int]] = {}
        for name, types in _FUNCTIONS.items():
            function = getattr(library, name, None)
            if function is not None:
                function.argtypes, function.restype = types, ctypes.c_int
                self._functions[name] = function
        self._begin()

    def _begin(self) -> None:
        code = self.code("cuInit", 0)
        if code == NOT_INITIALIZED:
            raise NoDeviceError(
                "the CUDA driver does not begin (cuInit: CUDA_ERROR_NOT_INITIALIZED): this process"
                " was forked from one that uses CUDA. Start it anew, with multiprocessing's"
                " 'spawn' for example"
            )
        if code:
            raise NoDeviceError(f"the CUDA driver finds no device (cuInit: {self.named(code)});"
                                " `nvidia-smi` shows what it sees, CUDA_VISIBLE_DEVICES hides"
                                " devices, and 'cuda:sm_90' compiles without one")  # fmt: skip
        self.version = self._version()
        missing = sorted(_FUNCTIONS.keys() - self._functions.keys())
        if self.version < OLDEST or missing:
            lacks = f" and lacks {missing[0]}" if missing else ""
            raise DriverVersionError(
                f"the NVIDIA driver is of CUDA {_dotted(self.version)}{lacks}: generated code needs"
                f" that of {_release(OLDEST)}. Update the driver; the CUDA toolkit does not matter"
            )

    def code(self, name: str, *args: Any) -> int:
        """Call a function; its CUresult. Raises DriverVersionError where there is no such one."""
        function = self._functions.get(name)
        if function is None:
            raise DriverVersionError(f"the NVIDIA driver has no {name}: generated code needs that"
                                     f" of {_release(OLDEST)}")  # fmt: skip
        return function(*args)

    def call(self, name: str, *args: Any) -> None:
        """Call a function that needs no device. Raises DeviceError."""
        code = self.code(name, *args)
        if code:
            raise DeviceError(f"the CUDA driver refuses {name}: {self.named(code)}", code)

    def named(self, code: int) -> str:
        """A CUresult for people, such as "CUDA_ERROR_INVALID_VALUE (1): invalid argument"."""
        name, text = ctypes.c_char_p(), ctypes.c_char_p()
        if self.code("cuGetErrorName", code, ctypes.byref(name)) or not name.value:
            return f"error {code}, of which the driver knows no name"
        self.code("cuGetErrorString", code, ctypes.byref(text))
        return f"{name.value.decode()} ({code}): {(text.value or b'').decode()}"

    def number(self, name: str, *args: Any) -> int:
        """The int that a function puts where its first argument points. Raises DeviceError."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *args)
        return value.value

    def _version(self) -> tuple[int, int]:
        number = self.number("cuDriverGetVersion")
        return number // 1000, number % 1000 // 10

    def too_old(self, ptx: str) -> DriverVersionError:
        """Why the driver does not take some PTX."""
        found = _PTX_VERSION.search(ptx)
        needed = _PTX_NEEDS.get(found[1]) if found else None
        what = f"PTX {found[1]}" if found else "the PTX"
        which = "a newer driver" if needed is None else f"the driver of {_release(needed)}"
        return DriverVersionError(
            f"the NVIDIA driver, of CUDA {_dotted(self.version)}, does not take {what}: it needs"
            f" {which}"
        )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _release(version: tuple[int, int]) -> str:
    linux = _LINUX_DRIVERS.get(version[0])
    return f"CUDA {_dotted(version)} or newer" + (f" (on Linux {linux} or newer)" if linux else "")


@cache
def driver() -> Driver:
    """The driver of this machine, or that of TILEWRIGHT_CUDA_DRIVER. Raises NoDeviceError where
    there is none or no device, DriverVersionError."""
    system = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    name = os.environ.get("TILEWRIGHT_CUDA_DRIVER") or system
    try:
        return Driver(ctypes.CDLL(name))
    except OSError as e:
        raise NoDeviceError(
            f"there is no NVIDIA driver here ({e}). Start a container with GPUs (`--gpus all`);"
            " 'cuda:sm_90' compiles without one"
        ) from e
