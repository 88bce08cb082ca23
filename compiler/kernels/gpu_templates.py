"""The templates for GPUs."""

from __future__ import annotations

from typing import Final

from ..options import Numerics
from .gpu_mma import GpuMma
from .gpu_nest import GpuNest
from .gpu_recurrent import GpuRecurrent
from .gpu_tiles import GpuTiles
from .gpu_unpool import GpuUnpool
from .recurrent import Recurrent
from .scan import CumulativeSum
from .scatter import Scatter
from .sorting import ArgReduce, TopK
from .template import KernelTemplate
from .unpool import Unpool

GPU_TEMPLATES: Final[tuple[KernelTemplate, ...]] = (
    GpuMma(), GpuTiles(), GpuRecurrent(), Recurrent(), ArgReduce(), TopK(), CumulativeSum(),
    Scatter(), GpuUnpool(), Unpool(), GpuNest(),
)  # fmt: skip
"""In the order of preference, as `select.TEMPLATES`."""


def gpu_templates(numerics: Numerics) -> tuple[KernelTemplate, ...]:
    """The templates that may serve: under "reproducible", no sum falls into parts; under "reduced",
    sums of products in float32 are computed by tensor cores, in tf32."""
    if numerics == "reproducible":
        return tuple(GpuTiles(in_parts=False) if isinstance(t, GpuTiles) else t
                     for t in GPU_TEMPLATES)  # fmt: skip
    if numerics != "reduced":
        return GPU_TEMPLATES
    return (GpuMma(tf32=True), *(t for t in GPU_TEMPLATES if not isinstance(t, GpuMma)))
