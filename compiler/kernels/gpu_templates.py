"""The templates for GPUs."""

from __future__ import annotations

from typing import Final

from .device import GpuDevice
from .gpu_nest import GpuNest
from .gpu_tiles import GpuTiles
from .gpu_wgmma import GpuWgmma
from .recurrent import Recurrent
from .scan import CumulativeSum
from .scatter import Scatter
from .select import register
from .sorting import ArgReduce, TopK
from .template import KernelTemplate
from .unpool import Unpool

GPU_TEMPLATES: Final[tuple[KernelTemplate, ...]] = (
    GpuTiles(), Recurrent(), ArgReduce(), TopK(), CumulativeSum(), Scatter(), Unpool(), GpuNest(),
)  # fmt: skip
"""In the order of preference, as `select.TEMPLATES`."""


HOPPER: Final = (9, 0)


def gpu_templates(capability: tuple[int, int]) -> tuple[KernelTemplate, ...]:
    """Those for GPUs of a compute capability: what only Hopper GPUs have goes first there."""
    return (GpuWgmma(), *GPU_TEMPLATES) if capability == HOPPER else GPU_TEMPLATES


register(GpuDevice, lambda device: gpu_templates(device.capability))
