"""The templates for GPUs."""

from __future__ import annotations

from typing import Final

from ..options import Numerics
from .device import GpuDevice
from .gpu_mma import GpuMma
from .gpu_nest import GpuNest
from .gpu_recurrent import GpuRecurrent
from .gpu_tiles import GpuTiles
from .gpu_unpool import GpuUnpool
from .gpu_wgmma import GpuWgmma
from .recurrent import Recurrent
from .scan import CumulativeSum
from .scatter import Scatter
from .select import register
from .sorting import ArgReduce, TopK
from .template import KernelTemplate
from .unpool import Unpool

GPU_TEMPLATES: Final[tuple[KernelTemplate, ...]] = (
    GpuMma(), GpuTiles(), GpuRecurrent(), Recurrent(), ArgReduce(), TopK(), CumulativeSum(),
    Scatter(), GpuUnpool(), Unpool(), GpuNest(),
)  # fmt: skip
"""In the order of preference, as `select.TEMPLATES`."""


HOPPER: Final = (9, 0)


def gpu_templates(
    numerics: Numerics, capability: tuple[int, int] = (8, 0)
) -> tuple[KernelTemplate, ...]:
    """The templates that may serve GPUs of a compute capability: what only Hopper GPUs have goes
    first there. Under "reproducible", configs add in one order each; under "reduced", sums of
    products in float32 are computed by tensor cores, in tf32."""
    reduced = numerics == "reduced"
    found = GPU_TEMPLATES
    if numerics == "reproducible":
        alike: tuple[KernelTemplate, ...] = (
            GpuMma(one_order=True), GpuTiles(one_order=True), GpuNest(one_order=True),
        )  # fmt: skip
        own = {t.name: t for t in alike}
        found = tuple(own.get(t.name, t) for t in found)
    if reduced:
        found = (GpuMma(tf32=True), *(t for t in found if not isinstance(t, GpuMma)))
    return (GpuWgmma(reduced), *found) if capability == HOPPER else found


register(GpuDevice, lambda device, numerics: gpu_templates(numerics, device.capability))
