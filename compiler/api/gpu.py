"""Compiling for NVIDIA GPUs: the stations of one compilation, and the program that can be looked
at."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from ..codegen.cuda.assemble import Usage
from ..codegen.cuda.source import kernel_source
from ..codegen.cuda.target import CudaTarget, device_arch
from ..errors import MemoryLimitError, TargetError
from ..graph.ir import Graph
from ..inspect.alternatives import alternatives
from ..inspect.gpu_views import Gpu, gpu_code, gpu_view
from ..inspect.page.assemble import page
from ..inspect.page.facts import Report
from ..inspect.views import Compilation, kernel_name
from ..kernels.device import GPU
from ..kernels.gpu_mma import GpuMma
from ..kernels.gpu_mma_operands import copied_by_element
from ..kernels.gpu_nest import GpuNest
from ..kernels.gpu_templates import gpu_templates
from ..kernels.ir import Launch
from ..kernels.printer import symbol
from ..kernels.select import is_slow_in_a_nest, select
from ..options import Options
from ..passes.base import Fuel, Stage, run_pipeline
from ..passes.pipeline import gpu_pipeline
from ..runtime.arrays import TensorSpec
from ..runtime.gpu_code import GpuCode, GpuCodes, load
from ..runtime.program import plan_memory
from ..store import Store
from .executable import KernelInfo
from .inspectable import Inspectable
from .page import write_text

FEW_THREADS: Final = 2048
"""Threads that one multiprocessor holds: a launch of fewer leaves nearly all of a GPU idle."""


@dataclass(frozen=True, slots=True)
class GpuPhase:
    """One CUDA kernel of a launch, its grid, and what its machine code takes: None where that was
    not made, because nvJitLink is missing."""

    name: str
    blocks: int
    threads: int
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class GpuKernelInfo(KernelInfo):
    """One launch of a program for a GPU; source: its Python source."""

    phases: tuple[GpuPhase, ...] = ()


class GpuExecutable(Inspectable[CudaTarget]):
    """A program for a GPU, to be looked at: `ir`, `kernels`, `plan`, `stages`.

    This version makes code for GPUs and does not run it: a call raises TargetError.
    """

    def __init__(self, compilation: Gpu, codes: GpuCodes) -> None:
        super().__init__(compilation)
        self._codes = codes
        g = compilation.graph

        def specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
            kinds = map(g.type, names)
            return tuple(TensorSpec(n, t.dims, t.dtype.numpy)
                         for n, t in zip(names, kinds, strict=True))  # fmt: skip

        self.inputs: tuple[TensorSpec, ...] = specs(g.inputs)
        self.outputs: tuple[TensorSpec, ...] = specs(g.outputs)

    def __call__(self, /, *arrays: Any, out: Any = None, **named: Any) -> NoReturn:
        """Raises TargetError, which says what is missing."""
        raise TargetError(f"the program for {self.target} does not run: {self._missing()}."
                          " target='cpu' runs here; ir('source'), ir('ptx') and kernels show what"
                          " was made")  # fmt: skip

    def run(self, feeds: Any, out: Any = None) -> NoReturn:
        """Raises TargetError, which says what is missing."""
        self()

    def _missing(self) -> str:
        try:
            device_arch()
        except TargetError as e:
            return str(e).removeprefix("target='cuda': ").partition(";")[0]
        return "this version of Tilewright has no launcher for GPUs yet"

    @property
    def target(self) -> CudaTarget:
        """What the code is for."""
        return self._compilation.target

    @property
    def kernels(self) -> tuple[GpuKernelInfo, ...]:
        """Every kernel launch, in execution order."""
        return tuple(self._info(launch) for launch in self._compilation.launches)

    def _info(self, launch: Launch) -> GpuKernelInfo:
        k = launch.kernel
        code = self._codes.codes[symbol(k)]
        usage = {} if code.machine is None else code.machine.usage
        phases = tuple(GpuPhase(e.name, e.blocks, e.threads, usage.get(e.name))
                       for e in code.entries)  # fmt: skip
        return GpuKernelInfo(
            kernel_name(launch), k.template, dict(k.config), self._nodes(launch), k.flops, k.bytes,
            kernel_source(k).text, _notes(self.graph, launch, code),
            phases=phases,
        )  # fmt: skip

    def ir(self, level: str = "graph") -> str:
        """The program as text: "graph", "fused", "memory", "kernels", "source" (Python), "ptx" or
        "sass".

        Raises OptionError for another level, TargetError for "sass" without the tools for it.
        """
        return gpu_view(self._compilation, self._codes, level)

    def report(self, path: str | os.PathLike[str], *, name: str = "") -> None:
        """Write one HTML page about the program, without times: its graph, kernels with their code,
        memory and passes. name: of the model, for the title. Raises OSError."""
        c = self._compilation
        shown = Report(name or self.graph.name, str(c.target), c, gpu_code(self._codes))
        write_text(path, page(shown))

    def __repr__(self) -> str:
        ins, outs = (", ".join(map(str, s)) for s in (self.inputs, self.outputs))
        n = len(self._compilation.launches)
        return f"<tilewright.GpuExecutable ({ins}) -> ({outs}), {n} kernels for {self.target}>"


def _notes(graph: Graph, launch: Launch, code: GpuCode) -> tuple[str, ...]:
    k = launch.kernel
    found = []
    slow = any(is_slow_in_a_nest(graph, graph.ops[j]) for j in launch.ops)
    if k.template == GpuNest.name and slow:
        found.append("a contraction in the general nest: every multiply-add reads the caches")
    slow_copies = copied_by_element(k) if k.template == GpuMma.name else ()
    if slow_copies:
        names = " and ".join(b.name for b in slow_copies)
        found.append(
            f"{names} copied element by element: no 16 bytes lie as tensor cores take them"
        )
    most = max((e.blocks * e.threads for e in code.entries), default=FEW_THREADS)
    if most < FEW_THREADS and k.bytes > 4 * FEW_THREADS:
        found.append(f"{most} threads at most: too few for a GPU")
    local = sum(u.local_bytes for u in code.machine.usage.values()) if code.machine else 0
    if local:
        found.append(f"{local} bytes a thread lie in local memory, not in registers")
    return tuple(found)


def compile_gpu(
    graph: Graph, target: CudaTarget, chosen: Options, read: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> GpuExecutable:  # fmt: skip
    """From an imported graph (which took `read` seconds) to code for a GPU.

    Raises LoweringError, TargetError where a package is missing, and MemoryLimitError.
    """
    _, stages = run_pipeline(gpu_pipeline(chosen.numerics), graph, Fuel(chosen.fuel))
    final = stages[-1].graph
    launches: Sequence[Launch] = select(final, GPU, templates=gpu_templates(chosen.numerics))
    plan = plan_memory(final, launches, reorder=chosen.reorder, inplace=chosen.inplace,
                       donate=chosen.donate)  # fmt: skip
    launches = tuple(launches[k] for k in plan.order)
    if chosen.memory_limit is not None and plan.arena_bytes > chosen.memory_limit:
        raise MemoryLimitError(
            f"memory_limit={chosen.memory_limit} cannot be met: the arena takes {plan.arena_bytes}"
            " bytes, and kernels for GPUs have no variants with less", plan.arena_bytes
        )  # fmt: skip
    plan = replace(plan, alternatives=alternatives(final, launches, chosen))

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("kernels", done, total)

    codes = load((x.kernel for x in launches), target, Store(), report)
    whole = (Stage("import", graph, read * 1e3, True), *stages)
    return GpuExecutable(Compilation(graph, final, whole, launches, plan, target, chosen), codes)


__all__ = ["GpuExecutable", "GpuKernelInfo", "GpuPhase", "compile_gpu"]
