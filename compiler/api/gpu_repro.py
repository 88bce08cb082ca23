"""`exe.repro` of programs for GPUs: a kernel with its source as a script of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..codegen.cuda.frontend import lowered
from ..codegen.cuda.ptx import kernel_ptx
from ..codegen.cuda.source import kernel_source
from ..codegen.cuda.target import CudaTarget
from ..errors import LoweringError, TextError
from ..inspect.gpu_views import Gpu
from ..inspect.trace import launch_named
from ..kernels.device import GpuDevice, gpu_device
from ..kernels.ir import Launch
from ..runtime.gpu_code import GpuCode
from ..tuning.alone_script import opened, told
from ..tuning.gpu_alone import run_alone
from .gpu_devices import opened_for
from .repro import script_of


def gpu_script(c: Gpu, kernel: str, data: str = "") -> str:
    """The script for a kernel. Raises as `repro.script_of`."""
    source = kernel_source(c.launches[launch_named(c, kernel)].kernel).text
    return script_of(c, kernel, gpu_device(c.target.capability), data, source=source,
                     module=__name__)  # fmt: skip


def run(
    text: str, made: Mapping[str, Any], kernel: str, source: str, data: Path | None = None
) -> int:
    """What a script does: 0 if the results of the kernel in `source` are right, 1 if not.

    The source has the entries of the kernel that the other parts describe, with their grids.
    Raises TextError, LoweringError and ModelError where the script's parts make no sense,
    NoDeviceError where no device of the kernel's architecture is, and DeviceError.
    """
    problem, launch = opened(text, made, kernel, data)
    if not isinstance(problem.device, GpuDevice):
        raise TextError("the problem of this script is not for a GPU")
    target = CudaTarget(f"sm_{problem.device.arch}")
    device = opened_for(target)
    code = built(launch, source, target)
    return told(problem, launch, run_alone(problem, launch, code, target, device))


def built(launch: Launch, text: str, target: CudaTarget) -> GpuCode:
    """A kernel made of this text of its source. Raises LoweringError and TargetError."""
    kernel = launch.kernel
    usual = kernel_source(kernel)
    if text.strip() != usual.text.strip():
        print("its source is not what this version writes: it was changed, or is another version's")
    missing = [e.name for e in usual.entries if f"def {e.name}(" not in text]
    if missing:
        raise LoweringError(f"the source has no function {missing[0]}, which is what this version's"
                            " kernel consists of")  # fmt: skip
    source = replace(usual, text=text)
    functions = lowered(source, kernel.params, target)
    return GpuCode(source.entries, kernel_ptx(kernel, source.entries, functions, target), None)
