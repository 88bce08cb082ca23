"""Code of kernels on a device: machine code where it is made for this architecture, else PTX, which
the driver translates."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ..codegen.cuda.target import CudaTarget, runs_on, translates_to
from ..errors import ArchitectureError, LoweringError
from .cuda_device import Device, Handle
from .cuda_driver import OLD_FOR_PTX, WRONG_IMAGE
from .cuda_launch import KernelLaunch
from .gpu_code import GpuCode

_log: Final = logging.getLogger("tilewright")

PLAIN_SHARED_BYTES: Final = 48 << 10
"""Dynamic shared memory that a kernel gets without asking."""

_TARGET: Final = re.compile(r"^\.target (sm_\w+)", re.MULTILINE)
_LOG_BYTES: Final = 8192
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6  # CU_JIT_ERROR_LOG_BUFFER and its size
_DYNAMIC_SHARED_BYTES: Final = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_LARGE_CLUSTERS: Final = 14  # CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_PORTABLE_CLUSTER: Final = 8


@dataclass(frozen=True, slots=True)
class Modules:
    """Loaded code: the kernels' functions by name. translated: how many of `modules` were loaded as
    PTX."""

    modules: tuple[Handle, ...]
    functions: Mapping[str, int]
    translated: int


def load_modules(
    device: Device, target: CudaTarget, codes: Iterable[GpuCode],
    launches: Iterable[KernelLaunch],
) -> Modules:  # fmt: skip
    """The code of a program on a device, whose context is current. Raises ArchitectureError,
    DriverVersionError, LoweringError where the driver refuses the PTX, and DeviceError."""
    modules: list[Handle] = []
    functions: dict[str, int] = {}
    translated = 0
    for code in codes:
        if not code.entries:
            continue
        module, is_ptx = _loaded(device, target, code)
        modules.append(module)
        translated += is_ptx
        for e in code.entries:
            found = ctypes.c_void_p()
            device.call("cuModuleGetFunction", ctypes.byref(found), module.value, e.name.encode())
            functions[e.name] = found.value or 0
    for x in {x.name: x for x in launches}.values():
        _allow(device, functions[x.name], x)
    return Modules(tuple(modules), functions, translated)


def _allow(device: Device, function: int, launch: KernelLaunch) -> None:
    if launch.shared_bytes > PLAIN_SHARED_BYTES:
        device.call("cuFuncSetAttribute", function, _DYNAMIC_SHARED_BYTES, launch.shared_bytes)
    x, y, z = launch.cluster or (1, 1, 1)
    if x * y * z > _PORTABLE_CLUSTER:
        device.call("cuFuncSetAttribute", function, _LARGE_CLUSTERS, 1)


def _loaded(device: Device, target: CudaTarget, code: GpuCode) -> tuple[Handle, bool]:
    """A module, and whether it is PTX that the driver translated: also where machine code is here
    that lost something by being made without a view of the whole (see `codegen.cuda.assemble`)."""
    name, has = code.entries[0].name, device.facts.capability
    said = _TARGET.search(code.ptx)
    arch = said[1] if said else target.arch  # a kernel may use what one architecture alone has
    if code.machine is not None and runs_on(arch, has) and not code.machine.losses:
        answer, module, _ = _load(device, code.machine.cubin)
        if not answer:
            return Handle(device, module, "cuModuleUnload"), False
        if answer not in WRONG_IMAGE:
            raise device.failure("cuModuleLoadDataEx", answer, f" (machine code of {name})")
        why = device.driver.named(answer)
        _log.warning("%s does not take the machine code of %s, and translates its PTX, which a"
                     " newer driver would save: %s", device, name, why)  # fmt: skip
    if not translates_to(arch, has):
        raise ArchitectureError(f"kernel {name} is for {arch}, and does not run on {device};"
                                f" compile with target='cuda:{device.number}'")  # fmt: skip
    answer, module, log = _load(device, code.ptx.encode() + b"\0")
    if answer == OLD_FOR_PTX:
        raise device.driver.too_old(code.ptx)
    if answer in WRONG_IMAGE:
        raise LoweringError(f"{device} refuses the PTX of kernel {name}:"
                            f" {device.driver.named(answer)}; {log.strip()[:400]}")  # fmt: skip
    if answer:
        raise device.failure("cuModuleLoadDataEx", answer, f" (PTX of {name})")
    return Handle(device, module, "cuModuleUnload"), True


def _load(device: Device, image: bytes) -> tuple[int, int, str]:
    """(CUresult, the module, what the driver's assembler says)."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
    values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
    made = ctypes.c_void_p()
    code = device.driver.code("cuModuleLoadDataEx", ctypes.byref(made), image, 2,
                              ctypes.byref(options), ctypes.byref(values))  # fmt: skip
    return code, made.value or 0, log.value.decode(errors="replace")
