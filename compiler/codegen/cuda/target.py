"""Which NVIDIA GPU code is made for."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import Final

from ...errors import TargetError

KNOWN: Final = ("sm_80", "sm_89", "sm_90")
PTX_FEATURES: Final = "+ptx80"
"""The PTX that drivers from CUDA 12.0 on take."""
ALIGNMENT: Final = 16
"""Bytes that the address of every buffer of a kernel is a multiple of: those of the widest access.
"""
_NAME: Final = re.compile(r"cuda(?::(\w+))?\Z")
_CAPABILITY: Final = (75, 76)  # attributes of a device: major and minor number


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """A compute capability such as "sm_90". device: the number of the device of this machine that
    has it, None for code that is only looked at."""

    arch: str
    device: int | None = None

    @property
    def capability(self) -> tuple[int, int]:
        """(9, 0) for sm_90."""
        digits = self.arch.removeprefix("sm_")
        return int(digits[:-1]), int(digits[-1])

    def __str__(self) -> str:
        return f"cuda:{self.arch}"


def is_cuda(name: str) -> bool:
    """Whether a `target` argument means a GPU."""
    return name == "cuda" or name.startswith("cuda:")


def cuda_target(name: str) -> CudaTarget:
    """What "cuda" (this machine's device) or "cuda:sm_90" means. Raises TargetError."""
    found = _NAME.match(name)
    if found is None or (found[1] is not None and found[1] not in KNOWN):
        listed = ", ".join(f"'cuda:{arch}'" for arch in KNOWN)
        raise TargetError(f"target={name!r} is not available; GPU targets are 'cuda', {listed}")
    if found[1] is not None:
        return CudaTarget(found[1])
    return _here()


def _here() -> CudaTarget:
    arch = device_arch()
    if arch in KNOWN:
        return CudaTarget(arch, 0)
    newest = max((k for k in KNOWN if _number(k) <= _number(arch)), key=_number, default=None)
    if newest is None:
        raise TargetError(f"target='cuda': the device is {arch}; kernels need {KNOWN[0]} or newer")
    return CudaTarget(newest, 0)


def _number(arch: str) -> int:
    return int(arch.removeprefix("sm_"))


def device_arch() -> str:
    """The compute capability of this machine's first device, asked of the driver. Raises
    TargetError with the reason where there is none."""
    driver = _driver()
    code = driver.cuInit(0)
    if code:
        raise TargetError(f"target='cuda': the CUDA driver finds no device (cuInit: error {code});"
                          " 'cuda:sm_90' compiles without one")  # fmt: skip
    device, number = ctypes.c_int(), ctypes.c_int()
    code = driver.cuDeviceGet(ctypes.byref(device), 0)
    parts = []
    for attribute in _CAPABILITY:
        code = code or driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        parts.append(number.value)
    if code:
        raise TargetError(f"target='cuda': the CUDA driver does not tell the device (error {code})")
    return "sm_" + "".join(map(str, parts))


@cache
def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as e:
        raise TargetError(f"target='cuda': there is no NVIDIA driver here ({e});"
                          " 'cuda:sm_90' compiles without one") from e  # fmt: skip
