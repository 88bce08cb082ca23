"""From a model to an executable: the stations of one compilation, in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..codegen.cpu.target import CpuTarget, host
from ..errors import OptionError, TargetError
from ..frontends import onnx as onnx_frontend
from ..graph.builder import GraphBuilder
from ..graph.ir import Graph
from ..graph.text import parse, to_text
from ..inspect.views import Compilation
from ..kernels.device import Device
from ..kernels.select import select
from ..options import Options, options
from ..passes.base import Fuel, Stage, run_pipeline
from ..passes.pipeline import cpu_pipeline
from ..runtime.objects import load as load_objects
from ..runtime.program import Program, plan_memory
from ..runtime.threads import default_threads
from ..store import Store
from .deferred import DeferredExecutable
from .executable import CompileStats, Executable

Progress = Callable[[str, int, int], None]
Shapes = Mapping[str, Sequence[int]]


def compile(
    source: Any,
    *,
    target: str = "cpu",
    tune: None = None,
    numerics: str = "standard",
    memory_limit: int | str | None = None,
    shapes: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Executable | DeferredExecutable:
    """Compile a model for this machine.

    source: path or bytes of an .onnx model, an onnx.ModelProto, a `tw.Graph`, or the path of a
        graph in text form (.txt).
    target: "cpu".
    tune: None; kernels use their templates' default configs.
    numerics: "reproducible", "standard" or "reduced". On the CPU all three compute in the model's
        own precision, in an order that does not depend on the number of threads.
    memory_limit: the arena's bytes, a number or text like "512MiB".
    shapes: sizes for inputs whose dimensions the model leaves open, e.g. {"x": (1, 3, 224, 224)}.
        Without them the program is built at the first call, once for every new set of shapes.
    outputs: names of values to compute instead of the model's outputs.
    threads: threads that run kernels (default TILEWRIGHT_THREADS, else this process's CPUs).
    progress: called as progress(station, done, total) while compiling.

    Raises ModelError, UnsupportedOperator or GraphError for a bad model, OptionError and TargetError
    for bad arguments, MemoryLimitError, LoweringError.
    """
    chosen = options(numerics=numerics, memory_limit=memory_limit, threads=threads)
    if tune is not None:
        raise OptionError(f"tune={tune!r}: only tune=None is available; kernels run with defaults")
    machine = cpu_target(target)
    start = time.perf_counter()
    graph, model = _read(source, shapes, outputs)
    if graph is None:
        def build(bound: Shapes) -> Executable:
            begin = time.perf_counter()
            g = model.to_graph(bound, outputs)
            return _build(g, machine, chosen, time.perf_counter() - begin, progress)

        return DeferredExecutable(model.inputs, build)
    return _build(graph, machine, chosen, time.perf_counter() - start, progress)


def cpu_target(name: str) -> CpuTarget:
    """The CPU that a `target` argument means. Raises TargetError."""
    if name == "cpu":
        return host()
    raise TargetError(f"target={name!r} is not available; this version compiles for 'cpu'")


def _read(source: Any, shapes: Shapes | None, outputs: Sequence[str] | None) -> tuple[Graph | None, Any]:
    """The graph, or the model that needs shapes first."""
    if isinstance(source, GraphBuilder):
        return source.build(), None
    if isinstance(source, Graph):
        return source, None
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".txt":
        return parse(Path(source).read_text()), None
    model = onnx_frontend.load(source)
    ranked = all(v.dims is not None and v.dtype is not None for v in model.inputs)
    if shapes is None and ranked and not model.is_static:
        return None, model
    return model.to_graph(shapes, outputs), model


def _build(
    graph: Graph, target: CpuTarget, chosen: Options, read: float, progress: Progress | None
) -> Executable:
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    def report(station: str) -> Callable[[int, int], None] | None:
        if progress is None:
            return None
        return lambda done, total: progress(station, done, total)

    threads = chosen.threads or default_threads()
    device = Device(target.vector_bits // 8, target.vector_registers, threads)
    passes = cpu_pipeline(device.channel_block)
    final, stages = run_pipeline(passes, graph, Fuel(chosen.fuel))
    stages = (Stage("import", graph, read * 1e3, True), *stages)
    t_passes = lap()
    launches = select(final, device)
    plan = plan_memory(final, launches, chosen.memory_limit)
    compilation = Compilation(graph, final, stages, launches, plan, target)
    if chosen.dump:
        _dump(compilation, Path(chosen.dump))
    t_kernels = lap()
    objects = load_objects((x.kernel for x in launches), target, Store(), report("kernels"))
    t_objects = lap()
    program = Program(final, launches, plan, objects, threads, chosen.poison)
    stats = CompileStats(read, t_passes, t_kernels, t_objects, lap(), objects.built, objects.total)
    return Executable(compilation, program, stats)


def _dump(c: Compilation, directory: Path) -> None:
    """Every stage as a numbered text file. Raises OptionError when the directory cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for k, stage in enumerate(c.stages):
            (directory / f"{k:02d}_{stage.name}.txt").write_text(to_text(stage.graph))
        (directory / f"{len(c.stages):02d}_memory.txt").write_text(str(c.plan))
    except OSError as e:
        raise OptionError(f"TILEWRIGHT_DUMP={str(directory)!r} cannot be written: {e}") from e
