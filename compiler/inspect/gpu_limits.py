"""What a GPU can do at most, on paper: from its clocks and widths, as the driver tells them.

Nothing is measured. Peaks are of float32 on the ordinary units: kernels on tensor cores may exceed
them. Main memory is the only level, as nobody tells the bandwidth of the caches; what is read from
them may exceed it.
"""

from __future__ import annotations

from typing import Final

from ..runtime.cuda_device import DeviceFacts
from .machine import Limits, MemoryLevel

_UNITS: Final = {(8, 0): 64}
_OTHER_UNITS: Final = 128
"""Float32 multiply-adds that a multiprocessor does per clock, by compute capability (CUDA C++
Programming Guide, throughput of arithmetic instructions)."""

EVENTS_APART: Final = 5e-7
"""Seconds: the resolution of times between two events (CUDA driver API, cuEventElapsedTime)."""


def gpu_limits(facts: DeviceFacts) -> Limits:
    """Two operations per multiply-add; two transfers per clock of the memory."""
    units = _UNITS.get(facts.capability, _OTHER_UNITS)
    flops = 2e3 * facts.clock_khz * units * facts.multiprocessors
    rate = 2e3 * facts.memory_clock_khz * facts.bus_bits / 8
    memory = MemoryLevel("memory on paper", None, rate, rate, rate)
    return Limits(facts.multiprocessors, flops, (memory,), "multiprocessor")
