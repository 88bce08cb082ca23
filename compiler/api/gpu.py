"""Compiling for NVIDIA GPUs: the stations of one compilation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..codegen.cuda.target import CudaTarget
from ..errors import MemoryLimitError
from ..graph.ir import Graph
from ..inspect.alternatives import alternatives
from ..inspect.dump import write_dump
from ..inspect.gpu_views import GPU_DUMPED, gpu_view
from ..inspect.views import Compilation
from ..kernels.device import gpu_device
from ..kernels.gpu_templates import gpu_templates
from ..kernels.ir import Launch
from ..kernels.select import select
from ..options import Options
from ..passes.base import Fuel, Stage, run_pipeline
from ..passes.pipeline import gpu_pipeline, remaining
from ..records import open_records
from ..runtime.gpu_code import load
from ..runtime.program import plan_memory
from ..store import Store
from ..tuning.choices import NO_CHOICES, Choices, special, with_origins
from ..tuning.tuned import recorded
from .build import Stopwatch
from .executable import CompileStats
from .gpu_devices import device_for, place_of
from .gpu_executable import GpuExecutable
from .gpu_kernels import GpuKernelInfo, GpuPhase


def compile_gpu(
    graph: Graph, target: CudaTarget, chosen: Options, read: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> GpuExecutable:  # fmt: skip
    """From an imported graph (which took `read` seconds) to code for a GPU.

    Raises LoweringError, TargetError where a package is missing, and MemoryLimitError.
    """
    watch = Stopwatch()
    stages = _optimised(graph, chosen, read)
    passes = watch.lap()
    choices = recorded_choices(stages[-1].graph, target, chosen)
    return _built(stages, target, chosen, choices, watch, (read, passes), progress)


def recorded_choices(graph: Graph, target: CudaTarget, chosen: Options) -> Choices:
    """What records of tuning say of this machine's device for the target, if there is one and they
    are to be used."""
    number = device_for(target) if chosen.records else None
    if number is None:
        return NO_CHOICES
    with open_records() as records:
        return recorded(graph, gpu_device(target.capability), chosen.numerics, place_of(number),
                        records)  # fmt: skip


def gpu_builder(
    graph: Graph, target: CudaTarget, chosen: Options
) -> Callable[[Choices], GpuExecutable]:
    """Compiles a graph again and again, with choices in the place of default configs."""
    watch = Stopwatch()
    stages = _optimised(graph, chosen, 0.0)
    spent = 0.0, watch.lap()

    def build(choices: Choices) -> GpuExecutable:
        watch.lap()
        return _built(stages, target, chosen, choices, watch, spent)

    return build


def _optimised(graph: Graph, chosen: Options, read: float) -> tuple[Stage, ...]:
    passes = remaining(gpu_pipeline(chosen.numerics), graph)
    _, stages = run_pipeline(passes, graph, Fuel(chosen.fuel))
    return (Stage("import", graph, read * 1e3, True), *stages)


def _built(
    stages: Sequence[Stage], target: CudaTarget, chosen: Options, choices: Choices,
    watch: Stopwatch, spent: tuple[float, float],
    progress: Callable[[str, int, int], None] | None = None,
) -> GpuExecutable:  # fmt: skip
    final, seen = stages[-1].graph, gpu_device(target.capability)
    other = special(final, seen, chosen.numerics, choices)
    templates = gpu_templates(chosen.numerics, target.capability)
    launches: Sequence[Launch] = select(final, seen, special=other, templates=templates)
    launches = with_origins(final, launches, choices)
    plan = plan_memory(final, launches, reorder=chosen.reorder, inplace=chosen.inplace,
                       donate=chosen.donate)  # fmt: skip
    launches = tuple(launches[k] for k in plan.order)
    if chosen.memory_limit is not None and plan.arena_bytes > chosen.memory_limit:
        raise MemoryLimitError(
            f"memory_limit={chosen.memory_limit} cannot be met: the arena takes {plan.arena_bytes}"
            " bytes, and kernels for GPUs have no variants with less", plan.arena_bytes
        )  # fmt: skip
    plan = replace(plan, alternatives=alternatives(final, launches, chosen))
    kernels = watch.lap()

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("kernels", done, total)

    codes = load((x.kernel for x in launches), target, Store(), report)
    objects = watch.lap()
    c = Compilation(final, stages, launches, plan, target, chosen)
    if chosen.dump:
        write_dump(c, chosen.dump, GPU_DUMPED, lambda level: gpu_view(c, codes, level))
    exe = GpuExecutable(c, codes)
    exe.stats = CompileStats(*spent, kernels, objects, watch.lap(), codes.built, len(codes.codes))
    return exe


__all__ = ["GpuExecutable", "GpuKernelInfo", "GpuPhase", "compile_gpu"]
