"""What templates need to know of a machine to choose tiles. No code generation here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from ...ops.types import DType, f32


@dataclass(frozen=True, slots=True)
class Device:
    """A CPU as kernels see it: bytes per vector, vector registers, threads, cache bytes, and lines
    that one set of the first cache holds.

    halves: 1 where whole vectors pass through units of half their width, so that twice as many of
    half the size take as long; else 0.
    """

    vector_bytes: int
    registers: int
    threads: int
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    l1_ways: int = 8
    halves: int = 0

    def lanes(self, dtype: DType = f32) -> int:
        """Elements of dtype per vector, at least 4."""
        return max(4, self.vector_bytes // max(dtype.bytes, 4))

    @property
    def channel_block(self) -> int:
        """Channels per block of the blocked layout: one float32 vector, 8 on narrow machines."""
        return max(8, self.vector_bytes // 4)


@dataclass(frozen=True, slots=True)
class GpuDevice(Device):
    """A GPU as kernels see it: an item is a block of threads, a vector loop runs on all of them.

    vector_bytes: four for each thread of a block; registers: of a thread that may hold a tile;
    threads: blocks that run side by side; arch: the compute capability, 90 for 9.0.
    """

    arch: int = 80

    @property
    def capability(self) -> tuple[int, int]:
        """(9, 0) for 90."""
        return divmod(self.arch, 10)

    def lanes(self, dtype: DType = f32) -> int:
        """Threads of a block, whatever they compute with."""
        return self.vector_bytes // 4


GPU: Final = GpuDevice(vector_bytes=4 * 128, registers=64, threads=128)
"""What templates take any GPU for as long as nothing is tuned: blocks of four warps."""


def gpu_device(capability: tuple[int, int]) -> GpuDevice:
    """What templates take a GPU of a compute capability for."""
    return replace(GPU, arch=10 * capability[0] + capability[1])
