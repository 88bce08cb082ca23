"""Which device of this machine a program for a GPU runs on."""

from __future__ import annotations

from ..codegen.cuda.target import CudaTarget, runs_on
from ..errors import NoDeviceError, TargetError
from ..runtime.cuda_device import Device, all_facts, device, facts
from ..runtime.cuda_driver import driver
from ..tuning.fingerprint import gpu_fingerprint


def device_for(target: CudaTarget) -> int | None:
    """The number of the device that a program for the target runs on, None where there is none."""
    if target.device is not None:
        return target.device
    try:
        there = all_facts()
    except TargetError:
        return None
    return next((k for k, f in enumerate(there) if runs_on(target.arch, f.capability)), None)


def opened_for(target: CudaTarget) -> Device:
    """The device that a program for the target runs on. Raises NoDeviceError where there is none,
    TargetError, DeviceError."""
    try:
        number = device_for(target)
        if number is not None:
            return device(number)
        listed = ", ".join(f"{f.name} ({f.arch})" for f in all_facts())
        why = f"the devices here are {listed}; target='cuda' is the first of them"
    except NoDeviceError as e:
        why = str(e)
    raise NoDeviceError(f"the program for {target} does not run: {why}. target='cpu' runs here;"
                        " ir('source'), ir('ptx') and kernels show what was made")  # fmt: skip


def place_of(number: int) -> str:
    """The fingerprint of a device of this machine."""
    library = driver()
    return gpu_fingerprint(facts(library, number), library.version)
