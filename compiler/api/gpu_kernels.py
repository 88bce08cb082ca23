"""What a program for a GPU says of its kernels: grids, what machine code takes, why one is slow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...ops.operator import Recurrence
from ..codegen.cuda.assemble import Usage
from ..codegen.cuda.entry import Entry
from ..codegen.cuda.source import kernel_source
from ..codegen.cuda.target import CudaTarget
from ..graph.ir import Graph
from ..inspect.views import kernel_name
from ..kernels.device import gpu_device
from ..kernels.gpu_mma import GpuMma
from ..kernels.gpu_mma_operands import copied_by_element
from ..kernels.gpu_model import LAUNCH, Occupancy, chip_of, occupancy, waves
from ..kernels.gpu_nest import GpuNest
from ..kernels.ir import Launch
from ..kernels.select import is_slow_in_a_nest
from ..runtime.gpu_code import GpuCode
from .executable import KernelInfo

ONE_MULTIPROCESSOR: Final = 2048
"""Threads that one multiprocessor holds: a launch of fewer leaves nearly all of a GPU idle."""

LONG_THREAD: Final = 2 * 1.7e9 * LAUNCH
"""Operations or bytes of a thread that take longer than a launch, at one multiply-add a cycle and
1.7 GHz."""

MOST_READ: Final = 4
"""Operations for every byte of a contraction up to which reading its operands once is what takes
time: products with a vector, or with a few."""


@dataclass(frozen=True, slots=True)
class GpuPhase:
    """One CUDA kernel of a launch, its grid, and what its machine code takes: registers, shared
    memory, and bytes in local memory; usage and occupancy are None where that was not made, because
    nvJitLink is missing.

    shared_bytes: of a block, all together. occupancy: blocks of a multiprocessor, and what allows
    no more; waves: how often these fill the device that the model of the architecture has.
    """

    name: str
    blocks: int
    threads: int
    usage: Usage | None
    shared_bytes: int = 0
    occupancy: Occupancy | None = None
    waves: float | None = None


@dataclass(frozen=True, slots=True)
class GpuKernelInfo(KernelInfo):
    """One launch of a program for a GPU; source: its Python source."""

    phases: tuple[GpuPhase, ...] = ()


def kernel_info(
    graph: Graph, launch: Launch, code: GpuCode, nodes: tuple[str, ...], target: CudaTarget
) -> GpuKernelInfo:
    """What there is to say of a launch. nodes: of the model, that it computes."""
    k = launch.kernel
    usage: Mapping[str, Usage] = {} if code.machine is None else code.machine.usage
    phases = tuple(_phase(e, usage.get(e.name), target) for e in code.entries)
    return GpuKernelInfo(
        kernel_name(launch), k.template, dict(k.config), nodes, k.flops, k.bytes,
        kernel_source(k).text, _notes(graph, launch, code), launch.origin or "default",
        phases=phases,
    )  # fmt: skip


def _phase(e: Entry, usage: Usage | None, target: CudaTarget) -> GpuPhase:
    shared = e.shared_bytes + (usage.shared_bytes if usage else 0)
    if usage is None:
        return GpuPhase(e.name, e.blocks, e.threads, None, shared)
    chip = chip_of(gpu_device(target.capability))
    fit = occupancy(chip, e.threads, usage.registers, shared)
    return GpuPhase(e.name, e.blocks, e.threads, usage, shared, fit,
                    waves(chip, e.blocks, fit.blocks))  # fmt: skip


def _notes(graph: Graph, launch: Launch, code: GpuCode) -> tuple[str, ...]:
    k = launch.kernel
    found = [launch.note] if launch.note else []
    slow = any(is_slow_in_a_nest(graph, graph.ops[j]) for j in launch.ops)
    if k.template == GpuNest.name and slow and k.flops > MOST_READ * k.bytes:
        found.append("a contraction in the general nest: every multiply-add reads the caches")
    slow_copies = copied_by_element(k) if k.template == GpuMma.name else ()
    if slow_copies:
        names = " and ".join(b.name for b in slow_copies)
        found.append(
            f"{names} copied element by element: no 16 bytes lie as tensor cores take them"
        )
    most = max((e.blocks * e.threads for e in code.entries), default=ONE_MULTIPROCESSOR)
    steps_wait = any(graph.ops[j].has(Recurrence) for j in launch.ops)
    if most < ONE_MULTIPROCESSOR and max(k.flops, k.bytes) > LONG_THREAD * most and not steps_wait:
        found.append(f"{most} threads at most: too few for a GPU")
    local = sum(u.local_bytes for u in code.machine.usage.values()) if code.machine else 0
    if local:
        found.append(f"{local} bytes a thread lie in local memory, not in registers")
    return tuple(found)
