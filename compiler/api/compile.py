"""From a model to an executable: the stations of one compilation, in order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..codegen.cpu.target import CpuTarget
from ..codegen.cuda.target import CudaTarget, cuda_target, is_cuda
from ..errors import TilewrightError
from ..graph.ir import Graph
from ..inspect.views import Compilation
from ..options import Options, check_donated, options, parse_seconds
from ..passes.base import Stage
from ..runtime.common_constants import CommonConstants
from ..runtime.cuda_device import capability
from ..store import Store
from .build import Progress, Stopwatch, choose, device_of, dump, link, optimise, recorded_choices
from .collector import paused_collector
from .deferred import DeferredExecutable, Shapes
from .executable import Executable
from .remember import FileRecord, Remade, file_record
from .source import cpu_target, open_shapes, open_source, read_closed, read_source

if TYPE_CHECKING:
    from .gpu import GpuExecutable


def compile(
    source: Any,
    *,
    target: str = "cpu",
    tune: Literal[False] | float | str | None = None,
    numerics: str = "standard",
    memory_limit: int | str | None = None,
    shapes: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
    reorder: bool = True,
    inplace: bool = True,
    donate: Sequence[str] = (),
    progress: Progress | None = None,
) -> Executable | GpuExecutable | DeferredExecutable:
    """Compile a model for this machine, or for a GPU.

    source: path or bytes of an .onnx model, an onnx.ModelProto, a `tw.Graph`, or the path of a
        graph in text form (.txt).
    target: "cpu"; "cuda" for this machine's first GPU, "cuda:1" for its second; "cuda:sm_80",
        "cuda:sm_89" or "cuda:sm_90" for code that is made without a GPU, to be looked at, and runs
        on the first device of that kind, if there is one when it is called (see GpuExecutable).
    tune: None uses what was measured on this type of machine before (`tw.tune`), and the default
        config where nothing was; False uses default configs only. Seconds, or text like "60s" or
        "10m": tune within that time first, compilation included; see `tw.tune`.
    numerics: "reproducible", "standard" or "reduced". On the CPU all three compute in the model's
        own precision, in an order that does not depend on the number of threads; only
        "reproducible" keeps every convolution a plain sum. On GPUs "reduced" multiplies float32
        on tensor cores, in tf32.
    memory_limit: the most bytes that the arena may have, a number or text like "512MiB". Weights,
        inputs and outputs are not in it. Kernels that need less memory take the place of faster
        ones as far as that is needed; their `notes` in `exe.kernels` say so.
    shapes: sizes for inputs whose dimensions the model leaves open, e.g. {"x": (1, 3, 224, 224)}.
        Without them the program is built at the first call, once for every new set of shapes.
    outputs: names of values to compute instead of the model's outputs, or the graph's.
    threads: threads that run kernels (default TILEWRIGHT_THREADS, else this process's CPUs).
    reorder, inplace: False keeps kernels in the model's order, and gives results no operand's
        memory; to see what those save.
    donate: names of inputs whose memory calls may use as soon as they have read it, so that the
        arena is smaller; what such an array holds after a call is undefined. One that is strided,
        read-only, not aligned to 16 bytes or shares memory with another input is copied instead.
    progress: called as progress(station, done, total) while compiling; while tuning, done and total
        are seconds of the budget.

    Raises ModelError, UnsupportedOperator or GraphError for a bad model, OptionError and
    TargetError for bad arguments and for devices that are not there, LoweringError,
    DeviceMemoryError and DeviceError for a GPU, and MemoryLimitError for a limit that cannot be
    met: it says where and why, and its `least_bytes` can.
    """
    began = time.monotonic()
    budget = None if tune is None or tune is False else parse_seconds(tune)
    chosen = options(numerics=numerics, memory_limit=memory_limit, threads=threads,
                     reorder=reorder, inplace=inplace, donate=donate,
                     tune=None if tune is None else False)  # fmt: skip
    machine = cuda_target(target, capability) if is_cuda(target) else cpu_target(target)

    common = CommonConstants()

    @paused_collector()
    def build(bound: Shapes) -> Any:
        begin = time.perf_counter()
        g = model.to_graph(bound, outputs)
        return _build(g, machine, chosen, time.perf_counter() - begin, progress, common)

    with paused_collector():
        start = time.perf_counter()
        source, record = open_source(source), None
        if budget is None and isinstance(machine, CpuTarget):
            block = device_of(machine, chosen).channel_block
            record = file_record(source, shapes, outputs, block, machine, chosen, Store())
            given = source, shapes, outputs
            found = _found(record, given, machine, chosen, start, progress)
            if found is not None:
                return found
        graph, model = read_source(source, shapes, outputs)
        names = [v.name for v in model.inputs] if graph is None else graph.inputs
        check_donated(chosen.donate, names)
        if graph is None and budget is not None:
            raise open_shapes(model)
        if graph is None:
            return DeferredExecutable(model.inputs, build)
    if budget is not None:
        from .tuning import Budget, tuned_here

        return tuned_here(graph, machine, chosen, Budget(budget, began), progress)
    with paused_collector():
        if record is None or not model.is_one_file:
            return _build(graph, machine, chosen, time.perf_counter() - start, progress)
        record.begin()
        made = _build(graph, machine, chosen, time.perf_counter() - start, progress)
        record.keep(made.graph)
        return made


def analyse(
    source: Any,
    *,
    target: str = "cpu",
    numerics: str = "standard",
    memory_limit: int | str | None = None,
    shapes: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
    tune: Literal[False] | None = None,
) -> Compilation[Any]:
    """Everything that `compile` does but native code: passes, kernels and the memory plan.

    Raises as `compile` does, and OptionError when the model leaves shapes open.
    """
    chosen = options(numerics=numerics, memory_limit=memory_limit, threads=threads, tune=tune)
    machine = cuda_target(target, capability) if is_cuda(target) else cpu_target(target)
    start = time.perf_counter()
    graph = read_closed(source, shapes, outputs)
    if isinstance(machine, CudaTarget):
        from .gpu import analysed

        return analysed(graph, machine, chosen, time.perf_counter() - start)
    stages = optimise(graph, machine, chosen, time.perf_counter() - start)
    return choose(stages, machine, chosen,
                  choices=recorded_choices(stages[-1].graph, machine, chosen))  # fmt: skip


def _build(
    graph: Graph, target: CpuTarget | CudaTarget, chosen: Options, read: float,
    progress: Progress | None, common: CommonConstants | None = None,
) -> Executable | GpuExecutable:  # fmt: skip
    if isinstance(target, CudaTarget):
        from .gpu import compile_gpu

        return compile_gpu(graph, target, chosen, read, progress)
    watch = Stopwatch()
    stages = optimise(graph, target, chosen, read)
    passes = watch.lap()
    return _finish(stages, stages[-1].graph, target, chosen, read, passes, progress, common)


def _found(
    record: FileRecord | None, given: tuple[Any, Shapes | None, Sequence[str] | None],
    target: CpuTarget, chosen: Options, start: float, progress: Progress | None,
) -> Executable | None:  # fmt: skip
    """The program of a graph that is known, None if it is not, or turns out to be of other weights.
    given: the source, shapes and outputs that it was made of."""
    graph = None if record is None else record.find()
    if record is None or graph is None:
        return None
    check_donated(chosen.donate, graph.inputs)
    stages = Remade(lambda: optimise(read_closed(*given), target, chosen, 0.0), graph)
    try:
        read = time.perf_counter() - start
        made = _finish(stages, graph, target, chosen, read, 0.0, progress)
    except TilewrightError:
        if record.holds():
            raise
        return None
    return made if record.holds() else None


def _finish(
    stages: Sequence[Stage], final: Graph, target: CpuTarget, chosen: Options, read: float,
    passes: float, progress: Progress | None, common: CommonConstants | None = None,
) -> Executable:  # fmt: skip
    """Kernels, memory and native code for the graph after all passes. read, passes: the seconds
    spent before. common: as for `link`."""
    watch, store = Stopwatch(), Store()
    choices = recorded_choices(final, target, chosen)
    compilation = choose(stages, target, chosen, store, choices, final)
    dump(compilation)
    return link(compilation, store, progress, read=read, passes=passes, kernels=watch.lap(),
                common=common)  # fmt: skip
