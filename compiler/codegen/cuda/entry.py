"""What a CUDA kernel is launched with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WARP: Final = 32
MOST_THREADS: Final = 1024
MOST_BLOCKS: Final = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class DescribedTensor:
    """A `TensorMap` of the Kernel IR as plain data: a descriptor of 128 bytes by which TMA reads or
    writes boxes of a buffer, an argument behind the buffers.

    buffer: its position among the kernel's parameters. dims, box: elements, the fastest axis first;
    strides: bytes between elements of all axes but that one. swizzle: 0, 32, 64 or 128 bytes, the
    width within which pieces of 16 bytes change places. steps: from one element of a box to the
    next along all axes, in elements of the tensor; 1 where there are none. tf32: what is read is
    rounded to 10 bits behind the point.
    """

    name: str
    buffer: int
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0
    steps: tuple[int, ...] = ()
    tf32: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A phase as a CUDA kernel: its name, and the grid that it is launched with.

    shared_bytes: of dynamic shared memory for each block, beside what the code declares. cluster:
    blocks that run side by side and may use each other's shared memory. resident: blocks for which
    a multiprocessor must have registers, 0 for any number.
    """

    name: str
    blocks: int
    threads: int
    shared_bytes: int = 0
    cluster: int = 1
    tensor_maps: tuple[DescribedTensor, ...] = ()
    resident: int = 0
