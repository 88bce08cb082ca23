"""How long the launches of a program take on a GPU that is not here."""

from __future__ import annotations

from typing import Any

from ..inspect.views import Compilation
from ..kernels.device import GpuDevice
from ..kernels.gpu_model import LAUNCH, chip_of
from ..kernels.ir import Kernel


def guessed_seconds(c: Compilation[Any], device: GpuDevice) -> tuple[float, ...]:
    """Seconds of every launch, good for no more than their shares: what arithmetic or memory
    traffic take at the rates of a data sheet (`kernels/gpu_model.py`), whichever is more."""
    chip = chip_of(device)

    def seconds(kernel: Kernel) -> float:
        is_half = any(b.dtype.is_float and b.dtype.bytes == 2 for b in kernel.params)
        each = chip.rates["half" if is_half else "f32"] * chip.multiprocessors * chip.clock
        return LAUNCH + max(kernel.flops / (2 * each), kernel.bytes / chip.memory)

    return tuple(seconds(launch.kernel) for launch in c.launches)
