"""One kernel by itself on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from ..codegen.cuda.target import CudaTarget
from ..kernels import gpu_templates  # noqa: F401  from now on problems know them
from ..kernels.ir import Launch
from ..runtime.cuda_device import Device
from ..runtime.gpu_code import GpuCode
from .candidate import Constants
from .gpu_candidate import DeviceSets, GpuContender
from .problem import Problem

Array = npt.NDArray[Any]


def run_alone(
    problem: Problem, launch: Launch, code: GpuCode, target: CudaTarget, device: Device
) -> Mapping[str, Array]:  # fmt: skip
    """The results of one run into memory that held NaN before, as logical arrays by blob.

    launch: bound to the blobs of `problem.graph`; code: of its kernel. Raises DeviceLostError where
    the kernel faults, DeviceMemoryError, DeviceError.
    """
    with device:
        sets = DeviceSets(device, problem.graph, problem.feeds())
        constants = Constants(problem.graph)
        made = GpuContender(problem, launch, code, target, constants, sets)
        made.spoil_scratch()
        made.run()
        return sets.computed()
