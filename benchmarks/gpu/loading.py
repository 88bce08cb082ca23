"""A kernel on a device, ready to be launched."""

from __future__ import annotations

from typing import Any

from tilewright.compiler.codegen.cuda.target import CudaTarget, best_arch
from tilewright.compiler.kernels.ir import Kernel
from tilewright.compiler.runtime.cuda_device import Device
from tilewright.compiler.runtime.cuda_launch import BoundLaunch, bind, kernel_launches
from tilewright.compiler.runtime.cuda_modules import load_modules
from tilewright.compiler.runtime.gpu_code import load
from tilewright.compiler.runtime.places import Place
from tilewright.compiler.store import Store


def loaded(d: Device, kernel: Kernel, times: int = 1) -> tuple[list[BoundLaunch], Any]:
    """The launches of a kernel, so many times in a row, whose arguments have no addresses yet; and
    the modules, which have to be kept as long as those run. The device must be current."""
    target = CudaTarget(best_arch(d.facts.capability), 0)
    (code,) = load([kernel], target, Store()).codes.values()
    params = [Place(0, array=k) for k in range(len(kernel.params))]
    launches = kernel_launches(0, code.entries, params, d.driver)
    modules = load_modules(d, target, [code], launches)
    return bind(launches * times, modules.functions, lambda place: None), modules


def prepared(kernel: Kernel, arch: str) -> None:
    """Put what `loaded` asks for into the store, without a device."""
    load([kernel], CudaTarget(arch), Store())
