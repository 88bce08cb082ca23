"""The templates for GPUs."""

from __future__ import annotations

from typing import Final

from ..options import Numerics
from .device import GpuDevice
from .gpu_attention_mma import GpuAttentionMma
from .gpu_attention_tiles import GpuAttentionTiles
from .gpu_attention_wgmma import GpuAttentionWgmma
from .gpu_mma import GpuMma
from .gpu_nest import GpuNest
from .gpu_recurrent import GpuRecurrent
from .gpu_strips import GpuStrips
from .gpu_tiles import GpuTiles
from .gpu_unpool import GpuUnpool
from .gpu_wgmma import GpuWgmma
from .gpu_winograd import GpuWinograd
from .recurrent import Recurrent
from .scan import CumulativeSum
from .scatter import Scatter
from .select import register
from .sorting import ArgReduce, TopK
from .template import KernelTemplate
from .unpool import Unpool

GPU_TEMPLATES: Final[tuple[KernelTemplate, ...]] = (
    GpuMma(), GpuAttentionMma(), GpuTiles(), GpuWinograd(), GpuAttentionTiles(), GpuRecurrent(),
    Recurrent(), ArgReduce(), TopK(), CumulativeSum(), Scatter(), GpuUnpool(), Unpool(),
    GpuStrips(), GpuNest(),
)  # fmt: skip
"""In the order of preference, as `select.TEMPLATES`."""


HOPPER: Final = (9, 0)


def gpu_templates(
    numerics: Numerics, capability: tuple[int, int] = (8, 0)
) -> tuple[KernelTemplate, ...]:
    """The templates that may serve GPUs of a compute capability: what only Hopper GPUs have goes
    first there. Under "reproducible", configs add in one order each, attention takes as many keys
    at once in all of them, Winograd's algorithm computes nothing, and nothing is Hopper GPUs' own,
    as a few rows are none of its tiles; under "reduced", sums of products in float32 are computed
    by tensor cores, in tf32."""
    reduced, same = numerics == "reduced", numerics == "reproducible"
    special: dict[type[KernelTemplate], KernelTemplate] = {
        GpuMma: GpuMma(reduced, one_order=same),
        GpuAttentionMma: GpuAttentionMma(reduced, same),
        GpuAttentionTiles: GpuAttentionTiles(same),
        GpuTiles: GpuTiles(one_order=same),
        GpuNest: GpuNest(one_order=same),
    }
    found = tuple(special.get(type(t), t) for t in GPU_TEMPLATES)
    if same:
        return tuple(t for t in found if not isinstance(t, GpuWinograd))
    return (GpuWgmma(reduced), GpuAttentionWgmma(), *found) if capability == HOPPER else found


register(GpuDevice, lambda device, numerics: gpu_templates(numerics, device.capability))
