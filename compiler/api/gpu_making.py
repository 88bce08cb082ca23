"""Programs for GPUs, for those who look for faults: run launch by launch on a device."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ..codegen.cuda.target import CudaTarget
from ..graph.ir import Graph
from ..inspect.views import Compilation
from ..kernels.device import Device as KernelDevice
from ..kernels.device import gpu_device
from ..kernels.ir import Kernel, Launch
from ..kernels.printer import symbol
from ..options import Options
from ..passes.base import Pass, Stage
from ..passes.pipeline import gpu_pipeline, remaining
from ..runtime.cuda_program import CudaProgram
from ..runtime.gpu_code import differs_from_stored, load
from ..tuning.gpu_alone import run_alone
from ..tuning.problem import Problem
from .build import Stopwatch
from .gpu import built, recorded_choices
from .gpu_devices import opened_for
from .gpu_repro import gpu_script
from .making import Aside, Hook, Steps

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class GpuSteps:
    """A program on a device."""

    program: CudaProgram

    def run(self, arrays: Sequence[Array], before: Hook, after: Hook) -> Sequence[Array]:
        return self.program(arrays, watch=(before, after))

    def read(self, address: int, count: int) -> bytes:
        into = ctypes.create_string_buffer(max(count, 1))
        if count:
            self.program.device.call("cuMemcpyDtoH_v2", ctypes.addressof(into), address, count)
        return into.raw[:count]


class GpuMaker:
    """For the device that runs a target's programs. Raises NoDeviceError where there is none."""

    codegen = "compiler/codegen/cuda"

    def __init__(self, target: CudaTarget, chosen: Options) -> None:
        self.target, self.chosen, self.store = target, chosen, Aside()
        self._where = opened_for(target)

    @property
    def device(self) -> KernelDevice:
        return gpu_device(self.target.capability)

    @property
    def script_options(self) -> dict[str, str]:
        return {"target": str(self.target)}

    def passes(self, graph: Graph) -> Sequence[Pass]:
        return remaining(gpu_pipeline(self.chosen.numerics), graph)

    def made(self, stages: Sequence[Stage], chosen: Options) -> tuple[Compilation[Any], Steps]:
        choices = recorded_choices(stages[-1].graph, self.target, chosen)
        exe = built(stages, self.target, chosen, choices, Stopwatch(), (0.0, 0.0),
                    store=self.store)  # fmt: skip
        return exe._compilation, GpuSteps(exe.program())

    def alone(self, problem: Problem, launch: Launch) -> Mapping[str, Array]:
        codes = load((launch.kernel,), self.target, self.store)
        return run_alone(problem, launch, codes.codes[symbol(launch.kernel)], self.target,
                         self._where)  # fmt: skip

    def is_stale(self, kernel: Kernel) -> bool:
        return differs_from_stored(kernel, self.target)

    def script(self, c: Compilation[Any], number: int, data: str) -> str:
        return gpu_script(c, f"k{number}", data)
