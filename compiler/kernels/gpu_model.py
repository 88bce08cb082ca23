"""What a kernel should take on a GPU, before anybody ran it: blocks that fit on a multiprocessor at
once, waves of them, and the time that arithmetic, the second cache and memory allow.

Sizes of register files and shared memory, and how they are given out, are those of the CUDA C++
Programming Guide ("Compute Capabilities") and of NVIDIA's occupancy calculator. Rates are those of
data sheets: of one board for each architecture, as kernels are chosen by architecture. The second
cache's bandwidth, and what a block takes to begin, stand in no data sheet: they are guesses, good
to tell configs of one problem apart and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from .device import Device, GpuDevice

WARP: Final = 32
REGISTERS: Final = 65536
"""Of 32 bits, of a multiprocessor; the same since Maxwell."""
REGISTER_UNIT: Final = 256
"""Registers are given to warps in such pieces."""
MOST_REGISTERS: Final = 255
SHARED_UNIT: Final = 128
SHARED_RESERVE: Final = 1 << 10
"""Bytes of every block that the system takes for itself."""
ENOUGH_WARPS: Final = 8
"""Of a multiprocessor, two for each of its schedulers: with fewer, latency shows."""
LATENCY: Final = 0.5e-6
"""Seconds from asking for bytes of main memory, which others ask for as well, to having them."""
LAUNCH: Final = 2e-6
WAVE: Final = 0.8e-6
"""Seconds before a wave's first product and behind its last."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A GPU. clock: Hz, boosted. shared_bytes: of a multiprocessor; block_bytes: that a block may
    have. warps, blocks: that a multiprocessor holds. rates: multiply-adds of a multiprocessor in a
    cycle, by what is multiplied; "f32" on ordinary units, the rest on tensor cores. memory, cache:
    bytes a second of main memory and the second cache; cache_bytes: that the latter holds."""

    name: str
    multiprocessors: int
    clock: float
    shared_bytes: int
    block_bytes: int
    warps: int
    blocks: int
    rates: Mapping[str, int]
    memory: float
    cache: float
    cache_bytes: int


CHIPS: Final[Mapping[int, Chip]] = {
    80: Chip("A100", 108, 1.41e9, 164 << 10, 163 << 10, 64, 32,
             {"f64": 32, "f32": 64, "tf32": 512, "half": 1024, "byte": 2048},
             1.56e12, 4.0e12, 40 << 20),
    86: Chip("A10", 72, 1.70e9, 100 << 10, 99 << 10, 48, 16,
             {"f64": 2, "f32": 128, "tf32": 256, "half": 512, "byte": 1024},
             0.60e12, 2.0e12, 6 << 20),
    89: Chip("L40S", 142, 2.52e9, 100 << 10, 99 << 10, 48, 24,
             {"f64": 2, "f32": 128, "tf32": 256, "half": 512, "byte": 1024},
             0.86e12, 4.5e12, 96 << 20),
    90: Chip("H100", 132, 1.83e9, 228 << 10, 227 << 10, 64, 32,
             {"f64": 64, "f32": 128, "tf32": 1024, "half": 2048, "byte": 4096},
             3.35e12, 5.5e12, 50 << 20),
}  # fmt: skip
"""By compute capability, 90 for 9.0. The highest rates, of wgmma on 9.0."""


def chip_of(device: Device) -> Chip:
    """The table's chip that is nearest to a device, not above it where one is."""
    arch = device.arch if isinstance(device, GpuDevice) else min(CHIPS)
    return CHIPS[max((a for a in CHIPS if a <= arch), default=min(CHIPS))]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """blocks: that run on a multiprocessor side by side; limit: what allows no more of them:
    "registers", "shared memory", "threads" or "blocks"; warps: of these blocks, over what the
    multiprocessor holds."""

    blocks: int
    limit: str
    warps: float


def occupancy(chip: Chip, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of blocks of so many threads, with so many registers each, and so much shared memory of a
    block. 0 blocks where one asks for more than there is."""
    warps = ceil(threads / WARP)
    per_warp = ceil(max(registers, 1) * WARP / REGISTER_UNIT) * REGISTER_UNIT
    shared = ceil((shared_bytes + SHARED_RESERVE) / SHARED_UNIT) * SHARED_UNIT
    fits = {
        "registers": REGISTERS // per_warp // warps if registers <= MOST_REGISTERS else 0,
        "shared memory": chip.shared_bytes // shared if shared_bytes <= chip.block_bytes else 0,
        "threads": chip.warps // warps,
        "blocks": chip.blocks,
    }
    limit = min(fits, key=lambda k: fits[k])
    return Occupancy(fits[limit], limit, fits[limit] * warps / chip.warps)


def waves(chip: Chip, blocks: int, side_by_side: int) -> float:
    """How often all multiprocessors fill with blocks, the last time in part."""
    return blocks / (chip.multiprocessors * max(side_by_side, 1))


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel in tiles does. blocks: of `threads` threads with about so many registers, and
    shared memory; products: multiply-adds of a block, of kind `kind` of the chip's rates;
    copied: bytes that a block reads through the second cache; moved: bytes that the kernel reads
    and writes at least, each once. efficiency: of the chip's rate that the instructions reach.
    rounds: that a block waits for, of which `ahead` are on their way at once."""

    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    kind: str
    products: float
    copied: float
    moved: float
    efficiency: float = 1.0
    rounds: int = 0
    ahead: int = 1


def seconds(chip: Chip, work: Work) -> float:
    """About how long a kernel takes; infinity where not one block of it fits.

    Blocks that share a multiprocessor share its rate: so what counts is how many blocks the busiest
    one computes and copies, in how many waves, and whether its warps are enough to hide latency.
    What a block copies it waits for, as often as not all of it can be on its way.
    """
    fit = occupancy(chip, work.threads, work.registers, work.shared_bytes)
    if fit.blocks == 0:
        return float("inf")
    rounds = ceil(waves(chip, work.blocks, fit.blocks))
    busiest = ceil(work.blocks / chip.multiprocessors)
    there = min(busiest, fit.blocks) * ceil(work.threads / WARP)
    hidden = min(there / ENOUGH_WARPS, 1.0)
    rate = chip.rates[work.kind] * chip.clock * work.efficiency * hidden
    arithmetic = busiest * work.products / rate
    cache = busiest * work.copied * chip.multiprocessors / chip.cache
    memory = work.moved / chip.memory
    waited = rounds * work.rounds * LATENCY / work.ahead
    return LAUNCH + rounds * WAVE + max(arithmetic, cache, memory, waited)
