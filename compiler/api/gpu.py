"""Compiling for NVIDIA GPUs: the stations of one compilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..codegen.cuda.target import CudaTarget
from ..graph.ir import Graph
from ..inspect.dump import write_dump
from ..inspect.gpu_views import GPU_DUMPED, gpu_view
from ..inspect.views import Compilation
from ..kernels.device import gpu_device
from ..kernels.gpu_templates import HOPPER, gpu_templates
from ..kernels.ir import Kernel, Launch
from ..kernels.select import select
from ..kernels.template import KernelTemplate
from ..options import Options
from ..passes.base import Fuel, Stage, run_pipeline
from ..passes.pipeline import gpu_pipeline, remaining
from ..records import open_records
from ..runtime.gpu_code import GpuCode, load
from ..runtime.gpu_saved import found
from ..store import Store
from ..tuning.choices import NO_CHOICES, Choices, special, to_data, with_origins
from ..tuning.tuned import recorded
from .artifact import Saved
from .build import Stopwatch
from .fit import with_memory
from .gpu_devices import device_for, place_of
from .gpu_executable import GpuExecutable
from .gpu_kernels import GpuKernelInfo, GpuPhase
from .inspectable import CompileStats


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
    return built(stages, target, chosen, choices, watch, (read, passes), progress)


def every_template() -> tuple[KernelTemplate, ...]:
    """The templates that make kernels for one GPU or another."""
    return gpu_templates("standard", HOPPER)


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
        return built(stages, target, chosen, choices, watch, spent)

    return build


def loaded(
    saved: Saved, stages: Sequence[Stage], target: CudaTarget, chosen: Options, choices: Choices,
    progress: Callable[[str, int, int], None] | None = None,
) -> GpuExecutable:  # fmt: skip
    """The program in a file. stages: its graph, as read. Raises as `compile_gpu` does, and
    ArtifactError."""
    spent = stages[0].milliseconds / 1e3, 0.0
    return built(stages, target, chosen, choices, Stopwatch(), spent, progress, saved)


def _optimised(graph: Graph, chosen: Options, read: float) -> tuple[Stage, ...]:
    passes = remaining(gpu_pipeline(chosen.numerics), graph)
    _, stages = run_pipeline(passes, graph, Fuel(chosen.fuel))
    return (Stage("import", graph, read * 1e3, True), *stages)


def built(
    stages: Sequence[Stage], target: CudaTarget, chosen: Options, choices: Choices,
    watch: Stopwatch, spent: tuple[float, float],
    progress: Callable[[str, int, int], None] | None = None, saved: Saved | None = None,
    store: Store | None = None,
) -> GpuExecutable:  # fmt: skip
    """From the graph after all passes to a program. spent: the seconds before: reading, passes.
    saved: the file that it comes from, with code and constants. store: of code, the user's where
    none is given. Raises as `compile_gpu` does, and ArtifactError."""
    c = planned(stages, target, chosen, choices)
    kernels = watch.lap()

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("kernels", done, total)

    all_kernels = [x.kernel for x in c.launches]
    given = _given(all_kernels, target, saved) if saved else {}
    codes = load(all_kernels, target, store or Store(), report, given)
    objects = watch.lap()
    if chosen.dump:
        write_dump(c, chosen.dump, GPU_DUMPED, lambda level: gpu_view(c, codes, level))
    exe = GpuExecutable(c, codes, saved.ready if saved else None)
    exe.stats = CompileStats(*spent, kernels, objects, watch.lap(), codes.built, len(codes.codes))
    return exe


def planned(
    stages: Sequence[Stage], target: CudaTarget, chosen: Options, choices: Choices
) -> Compilation[CudaTarget]:
    """Kernels and memory for the last of the stages. Raises LoweringError, MemoryLimitError."""
    final, seen = stages[-1].graph, gpu_device(target.capability)
    other = special(final, seen, chosen.numerics, choices)
    templates = gpu_templates(chosen.numerics, target.capability)
    launches: Sequence[Launch] = select(
        final, seen, special=other, templates=templates, numerics=chosen.numerics
    )
    launches = with_origins(final, launches, choices)
    launches, plan = with_memory(final, launches, seen, chosen)
    return Compilation(final, stages, launches, plan, target, chosen, None,
                       to_data(choices, seen))  # fmt: skip


def analysed(
    graph: Graph, target: CudaTarget, chosen: Options, read: float
) -> Compilation[CudaTarget]:
    """Everything that `compile_gpu` does but code. Raises as `planned`."""
    stages = _optimised(graph, chosen, read)
    return planned(stages, target, chosen, recorded_choices(stages[-1].graph, target, chosen))


def _given(kernels: Sequence[Kernel], target: CudaTarget, saved: Saved) -> Mapping[str, GpuCode]:
    try:
        return found(kernels, target, saved.get)
    except (ValueError, TypeError, LookupError, AttributeError) as e:
        raise saved.malformed("its code", e) from e


__all__ = ["GpuExecutable", "GpuKernelInfo", "GpuPhase", "compile_gpu"]
