"""From a model to an executable: the stations of one compilation, in order."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..codegen.cpu.target import CpuTarget, host
from ..codegen.cuda.target import CudaTarget, cuda_target, is_cuda
from ..errors import ModelError, OptionError, TargetError
from ..frontends import onnx as onnx_frontend
from ..graph.builder import GraphBuilder
from ..graph.ir import Graph
from ..graph.text import parse, to_text
from ..inspect.views import Compilation
from ..options import Options, check_donated, options
from ..store import Store
from .build import Progress, Stopwatch, choose, link, optimise
from .collector import paused_collector
from .deferred import DeferredExecutable, Shapes, checked_shapes
from .executable import Executable
from .gpu import GpuExecutable, compile_gpu


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
    reorder: bool = True,
    inplace: bool = True,
    donate: Sequence[str] = (),
    progress: Progress | None = None,
) -> Executable | GpuExecutable | DeferredExecutable:
    """Compile a model for this machine, or for a GPU.

    source: path or bytes of an .onnx model, an onnx.ModelProto, a `tw.Graph`, or the path of a
        graph in text form (.txt).
    target: "cpu", or "cuda:sm_80", "cuda:sm_89" or "cuda:sm_90": code for NVIDIA GPUs, made without
        one, to be looked at; "cuda" for this machine's GPU. This version does not run it: calling
        such a program raises TargetError.
    tune: None; kernels use their templates' default configs.
    numerics: "reproducible", "standard" or "reduced". On the CPU all three compute in the model's
        own precision, in an order that does not depend on the number of threads; only
        "reproducible" keeps every convolution a plain sum.
    memory_limit: the most bytes that the arena may have, a number or text like "512MiB". Weights,
        inputs and outputs are not in it. Kernels that need less memory take the place of faster
        ones as far as that is needed; their `notes` in `exe.kernels` say so.
    shapes: sizes for inputs whose dimensions the model leaves open, e.g. {"x": (1, 3, 224, 224)}.
        Without them the program is built at the first call, once for every new set of shapes.
    outputs: names of values to compute instead of the model's outputs.
    threads: threads that run kernels (default TILEWRIGHT_THREADS, else this process's CPUs).
    reorder, inplace: False keeps kernels in the model's order, and gives results no operand's
        memory; to see what those save.
    donate: names of inputs whose memory calls may use as soon as they have read it, so that the
        arena is smaller; what such an array holds after a call is undefined. One that is strided,
        read-only, not aligned to 16 bytes or shares memory with another input is copied instead.
    progress: called as progress(station, done, total) while compiling.

    Raises ModelError, UnsupportedOperator or GraphError for a bad model, OptionError and
    TargetError for bad arguments, LoweringError, and MemoryLimitError for a limit that cannot be
    met: it says where and why, and its `least_bytes` can.
    """
    chosen = options(numerics=numerics, memory_limit=memory_limit, threads=threads,
                     reorder=reorder, inplace=inplace, donate=donate)  # fmt: skip
    if tune is not None:
        raise OptionError(f"tune={tune!r}: only tune=None is available; kernels run with defaults")
    machine = cuda_target(target) if is_cuda(target) else cpu_target(target)

    @paused_collector()
    def build(bound: Shapes) -> Any:
        begin = time.perf_counter()
        g = model.to_graph(bound, outputs)
        return _build(g, machine, chosen, time.perf_counter() - begin, progress)

    with paused_collector():
        start = time.perf_counter()
        graph, model = _read(source, shapes, outputs)
        names = [v.name for v in model.inputs] if graph is None else graph.inputs
        check_donated(chosen.donate, names)
        if graph is None:
            return DeferredExecutable(model.inputs, build)
        return _build(graph, machine, chosen, time.perf_counter() - start, progress)


def analyse(
    source: Any,
    *,
    target: str = "cpu",
    numerics: str = "standard",
    memory_limit: int | str | None = None,
    shapes: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    threads: int | None = None,
) -> Compilation:
    """Everything that `compile` does but native code: passes, kernels and the memory plan.

    Raises as `compile` does, and OptionError when the model leaves shapes open.
    """
    chosen = options(numerics=numerics, memory_limit=memory_limit, threads=threads)
    machine = cpu_target(target)
    start = time.perf_counter()
    graph, model = _read(source, shapes, outputs)
    if graph is None:
        listed = ", ".join(f"{v.name}: {v}" for v in model.inputs)
        raise OptionError(f"the model leaves shapes open ({listed}); give them in shapes={{...}}")
    stages = optimise(graph, machine, chosen, time.perf_counter() - start)
    return choose(stages, machine, chosen)


def cpu_target(name: str) -> CpuTarget:
    """The CPU that a `target` argument means. Raises TargetError."""
    if name == "cpu":
        return host()
    raise TargetError(f"target={name!r} is not available; known are 'cpu', 'cuda' and 'cuda:sm_90'")


def _read(
    source: Any, shapes: Shapes | None, outputs: Sequence[str] | None
) -> tuple[Graph | None, Any]:
    """The graph, or the model that needs shapes first."""
    shapes = checked_shapes(shapes)
    if isinstance(source, GraphBuilder):
        return source.build(), None
    if isinstance(source, Graph):
        return source, None
    if isinstance(source, (str, os.PathLike)) and Path(source).suffix == ".txt":
        return parse(_text(Path(source))), None
    model = onnx_frontend.load(source)
    ranked = all(v.dims is not None and v.dtype is not None for v in model.inputs)
    if shapes is None and ranked and not model.is_static:
        return None, model
    return model.to_graph(shapes, outputs), model


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ModelError(f"graph text {str(path)!r} cannot be read: {e}") from e


def _build(
    graph: Graph, target: CpuTarget | CudaTarget, chosen: Options, read: float,
    progress: Progress | None,
) -> Executable | GpuExecutable:  # fmt: skip
    if isinstance(target, CudaTarget):
        return compile_gpu(graph, target, chosen, read, progress)
    watch = Stopwatch()
    stages = optimise(graph, target, chosen, read)
    passes = watch.lap()
    store = Store()
    compilation = choose(stages, target, chosen, store)
    if chosen.dump:
        _dump(compilation, Path(chosen.dump))
    kernels = watch.lap()
    return link(compilation, store, progress, read=read, passes=passes, kernels=kernels)


def _dump(c: Compilation, directory: Path) -> None:
    """Every stage as a numbered text file. Raises OptionError when the directory cannot be used."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for k, stage in enumerate(c.stages):
            (directory / f"{k:02d}_{stage.name}.txt").write_text(to_text(stage.graph))
        (directory / f"{len(c.stages):02d}_memory.txt").write_text(str(c.plan))
    except OSError as e:
        raise OptionError(f"TILEWRIGHT_DUMP={str(directory)!r} cannot be written: {e}") from e
