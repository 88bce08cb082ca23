"""From a graph to an executable, in the steps that compiling and loading share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy.typing as npt

from ..codegen.cpu.target import CpuTarget
from ..codegen.cuda.target import is_cuda
from ..graph.ir import Graph
from ..inspect.dump import write_dump
from ..inspect.views import DUMPED, Compilation, view
from ..kernels.device import Device
from ..kernels.select import select
from ..options import Options
from ..passes.base import Fuel, Pass, Stage, run_pipeline
from ..passes.pipeline import cpu_pipeline, gpu_pipeline, remaining
from ..records import open_records
from ..runtime.common_constants import CommonConstants
from ..runtime.constants import Constant, Ready, prepare
from ..runtime.objects import load as load_objects
from ..runtime.program import Program
from ..runtime.threads import default_threads
from ..store import Store
from ..tuning.choices import NO_CHOICES, Choices, choices_digest, special, to_data, with_origins
from ..tuning.fingerprint import fingerprint, kernel_device
from ..tuning.tuned import recorded
from .executable import Executable
from .fit import with_memory
from .inspectable import CompileStats
from .recall import recalled
from .source import cpu_target

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]


class Stopwatch:
    """Seconds from one call to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def device_of(target: CpuTarget, chosen: Options) -> Device:
    """The target as kernel templates see it. Raises OptionError for a bad TILEWRIGHT_THREADS."""
    return kernel_device(target, chosen.threads or default_threads())


def pipeline(target: str, chosen: Options) -> tuple[Pass, ...]:
    """The passes for a target by its name. Raises TargetError."""
    if is_cuda(target):
        return gpu_pipeline(chosen.numerics)
    block = device_of(cpu_target(target), chosen).channel_block
    return cpu_pipeline(block, chosen.numerics)


def optimise(graph: Graph, target: CpuTarget, chosen: Options, read: float) -> tuple[Stage, ...]:
    """The graph as imported (which took `read` seconds), then after every pass that it has not been
    through."""
    passes = cpu_pipeline(device_of(target, chosen).channel_block, chosen.numerics)
    passes = remaining(passes, graph)
    _, stages = run_pipeline(passes, graph, Fuel(chosen.fuel))
    return (Stage("import", graph, read * 1e3, True), *stages)


def recorded_choices(graph: Graph, target: CpuTarget, chosen: Options) -> Choices:
    """What records of tuning say for the groups of an optimised graph, if they are to be used."""
    if not chosen.records:
        return NO_CHOICES
    with open_records() as records:
        return recorded(graph, device_of(target, chosen), chosen.numerics, fingerprint(target),
                        records)  # fmt: skip


def choose(
    stages: Sequence[Stage], target: CpuTarget, chosen: Options, store: Store | None = None,
    choices: Choices = NO_CHOICES, final: Graph | None = None,
) -> Compilation:  # fmt: skip
    """Kernels and memory for the last of the stages. store: where kernels are looked up. choices:
    configs that take the place of defaults. final: the graph of the last stage, where the stages
    are better not looked at yet.

    Raises LoweringError, MemoryLimitError.
    """
    final, device = final or stages[-1].graph, device_of(target, chosen)
    other = special(final, device, chosen.numerics, choices)
    launches, kept = (select(final, device, special=other), None) if store is None else recalled(
        final, device, store, other, choices_digest(choices, chosen.numerics))  # fmt: skip
    launches = with_origins(final, launches, choices)
    launches, plan = with_memory(final, launches, device, chosen)
    return Compilation(final, stages, launches, plan, target, chosen, kept,
                       to_data(choices, device))  # fmt: skip


def dump(c: Compilation[CpuTarget]) -> None:
    """Every stage and level as numbered files, if a directory was named for that. Raises
    OptionError when it cannot be used."""
    if c.options.dump:
        write_dump(c, c.options.dump, DUMPED, partial(view, c))


def link(
    c: Compilation, store: Store, progress: Progress | None,
    *, read: float, passes: float, kernels: float, ready: Ready | None = None,
    common: CommonConstants | None = None,
) -> Executable:  # fmt: skip
    """Native code from the store or built now. read, passes, kernels: the seconds spent before.
    ready: constants that need no packing. common: those of other programs of the model, which this
    one shares and adds to."""
    watch = Stopwatch()

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("kernels", done, total)

    threads = device_of(c.target, c.options).threads
    with ThreadPoolExecutor(1) as beside:  # neither side holds the interpreter for long
        constants = beside.submit(_constants, c, threads, ready, common)
        objects = load_objects((x.kernel for x in c.launches), c.target, store, report, threads)
        if c.kept is not None and c.kept.is_new:
            store.put(c.kept.key, c.kept.records)
        t_objects = watch.lap()
        program = Program(
            c.graph, c.launches, c.plan, objects, constants.result(), threads, c.options.poison
        )
    stats = CompileStats(
        read, passes, kernels, t_objects, watch.lap(), objects.built, objects.total
    )
    return Executable(c, program, stats)


def _constants(
    c: Compilation, threads: int, ready: Ready | None, common: CommonConstants | None
) -> Mapping[Constant, Array]:
    """Constants as kernels read them."""
    if common is None:
        return prepare(c.graph, c.launches, threads, ready)
    shared, new = common.ready(c.graph, c.launches)
    made = prepare(c.graph, c.launches, threads, known=shared)
    common.keep(new, made)
    return made
