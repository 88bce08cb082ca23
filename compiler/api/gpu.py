"""Compiling for NVIDIA GPUs: the stations of one compilation, and the program that comes of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from ...ops.operator import Recurrence
from ..codegen.cuda.assemble import Usage
from ..codegen.cuda.entry import Entry
from ..codegen.cuda.source import kernel_source
from ..codegen.cuda.target import CudaTarget, runs_on
from ..errors import MemoryLimitError, NoDeviceError, TargetError
from ..graph.ir import Graph
from ..inspect.alternatives import alternatives
from ..inspect.dump import write_dump
from ..inspect.gpu_limits import gpu_limits
from ..inspect.gpu_views import GPU_DUMPED, Gpu, gpu_code, gpu_view
from ..inspect.page.assemble import page
from ..inspect.page.facts import Report
from ..inspect.profile import Profile, profile
from ..inspect.views import Compilation, kernel_name
from ..kernels.device import gpu_device
from ..kernels.gpu_mma import GpuMma
from ..kernels.gpu_mma_operands import copied_by_element
from ..kernels.gpu_model import LAUNCH, Occupancy, chip_of, occupancy, waves
from ..kernels.gpu_nest import GpuNest
from ..kernels.gpu_templates import gpu_templates
from ..kernels.ir import Launch
from ..kernels.printer import symbol
from ..kernels.select import is_slow_in_a_nest, select
from ..options import Options
from ..passes.base import Fuel, Stage, run_pipeline
from ..passes.pipeline import gpu_pipeline, remaining
from ..records import open_records
from ..runtime.arrays import TensorSpec, by_name, in_order, results_by_name, results_in_order
from ..runtime.constants import prepare
from ..runtime.cuda_device import Device, all_facts, device, facts
from ..runtime.cuda_driver import driver
from ..runtime.cuda_program import CudaProgram
from ..runtime.gpu_code import GpuCode, GpuCodes, load
from ..runtime.program import plan_memory
from ..runtime.threads import default_threads
from ..store import Store
from ..tuning.choices import NO_CHOICES, Choices, special, with_origins
from ..tuning.fingerprint import gpu_fingerprint
from ..tuning.tuned import recorded
from .build import Stopwatch
from .executable import CompileStats, KernelInfo, random_input
from .inspectable import Inspectable
from .page import write_text

FEW_THREADS: Final = 2048
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


class GpuExecutable(Inspectable[CudaTarget]):
    """A program for a GPU: called as an `Executable` is, and looked at by the same properties.

    It runs on the device that `target` names, "cuda" the first; a program for an architecture,
    "cuda:sm_90", on the first device of that kind, which is looked for at the first call.

    Arrays may be numpy's, or lie on the device: those of PyTorch, CuPy, and all that speak DLPack
    or `__cuda_array_interface__` are used without a copy. Results are numpy arrays if all inputs
    are on the host. If one is on the device, they are there too, as arrays of its library where
    that has `from_dlpack`, else as `DeviceArray`. `out=` takes arrays of either kind.

    stream: where a call is put, as the library's object or a handle. Without it, calls with arrays
    on the device go to the legacy default stream, as PyTorch's and CuPy's work does unless told
    otherwise, and return before they are done; others return with their results.

    Calls from several threads run at once, each in an arena of its own; two are kept for later
    calls. `close` gives back the memory on the device, as does the end of the object.
    """

    threads: Final = 1
    """Of the host, that a call takes."""

    stats: CompileStats

    def __init__(self, compilation: Gpu, codes: GpuCodes) -> None:
        super().__init__(compilation)
        self._codes = codes
        self._program: CudaProgram | None = None
        self._lock = threading.Lock()
        g = compilation.graph

        def specs(names: Sequence[str]) -> tuple[TensorSpec, ...]:
            kinds = map(g.type, names)
            return tuple(TensorSpec(n, t.dims, t.dtype.numpy)
                         for n, t in zip(names, kinds, strict=True))  # fmt: skip

        self.inputs: tuple[TensorSpec, ...] = specs(g.inputs)
        self.outputs: tuple[TensorSpec, ...] = specs(g.outputs)
        if self.target.device is not None:
            self.program()

    def __call__(self, /, *arrays: Any, out: Any = None, stream: Any = None, **named: Any) -> Any:
        """Run once. Raises InputError when arrays do not fit, TargetError where there is no device
        for the program, DeviceMemoryError, and DeviceLostError after a kernel faulted."""
        into = () if out is None else results_in_order(self.outputs, out)
        given = in_order(self.inputs, arrays, named) if named else arrays
        results = self.program()(given, into, stream)
        return results[0] if len(results) == 1 else tuple(results)

    def run(
        self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None, stream: Any = None
    ) -> dict[str, Any]:
        """Run once, by names. Raises as a call does."""
        into = () if out is None else results_by_name(self.outputs, out)
        results = self.program()(by_name(self.inputs, feeds), into, stream)
        return {s.name: y for s, y in zip(self.outputs, results, strict=True)}

    def program(self) -> CudaProgram:
        """The program on its device, loaded if it is not yet. Raises TargetError, DeviceError and
        DeviceMemoryError."""
        with self._lock:
            if self._program is None:
                c = self._compilation
                where = self._device()
                constants = prepare(c.graph, c.launches, default_threads())
                self._program = CudaProgram(
                    c.graph, c.launches, c.plan, c.target, self._codes, constants, where,
                    poison=c.options.poison, graphs=c.options.cuda_graph,
                )  # fmt: skip
            return self._program

    def _device(self) -> Device:
        target = self.target
        try:
            number = device_for(target)
            if number is not None:
                return device(number)
            listed = ", ".join(f"{f.name} ({f.arch})" for f in all_facts())
            why = f"the devices here are {listed}; target='cuda' compiles for the first"
        except NoDeviceError as e:
            why = str(e)
        raise NoDeviceError(f"the program for {target} does not run: {why}. target='cpu' runs here;"
                            " ir('source'), ir('ptx') and kernels show what was made")  # fmt: skip

    def profile(self, *arrays: Any, rounds: int = 20) -> Profile:
        """Median time of every launch over `rounds` runs, measured by events on the device, beside
        what its clocks and widths allow on paper (not measured, and without tensor cores); random
        inputs when none are given."""
        c = self._compilation
        feeds = arrays or tuple(random_input(s) for s in self.inputs)
        seconds = self.launch_seconds(*feeds, rounds=rounds)
        limits = gpu_limits(self.program().device.facts)
        return profile(c.graph, c.launches, c.plan.arena_bytes, limits, seconds)

    def launch_seconds(self, *arrays: Any, rounds: int = 20) -> tuple[float, ...]:
        """Median time of every launch, as in `profile`, in the order of `kernels`."""
        return tuple(self.program().launch_seconds(arrays, rounds))

    def close(self) -> None:
        """Give back the memory on the device; calls raise DeviceError from now on."""
        if self._program is not None:
            self._program.close()

    @property
    def launching(self) -> str:
        """How a call's kernels are launched: "one graph", or "one by one" and why."""
        return self.program().how

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
        phases = tuple(_phase(e, usage.get(e.name), self.target) for e in code.entries)
        return GpuKernelInfo(
            kernel_name(launch), k.template, dict(k.config), self._nodes(launch), k.flops, k.bytes,
            kernel_source(k).text, _notes(self.graph, launch, code), launch.origin or "default",
            phases=phases,
        )  # fmt: skip

    def repro(self, kernel: str) -> NoReturn:
        """Raises TargetError: scripts are written for CPUs only."""
        raise TargetError(f"repro({kernel!r}): scripts are written for target='cpu' only;"
                          " ir('source', kernel=...) shows this kernel")  # fmt: skip

    def _view(self, c: Gpu, level: str) -> str:
        return gpu_view(c, self._codes, level)

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
    most = max((e.blocks * e.threads for e in code.entries), default=FEW_THREADS)
    steps_wait = any(graph.ops[j].has(Recurrence) for j in launch.ops)
    if most < FEW_THREADS and max(k.flops, k.bytes) > LONG_THREAD * most and not steps_wait:
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


def device_for(target: CudaTarget) -> int | None:
    """The number of the device that a program for the target runs on, None where there is none."""
    if target.device is not None:
        return target.device
    try:
        there = all_facts()
    except TargetError:
        return None
    return next((k for k, f in enumerate(there) if runs_on(target.arch, f.capability)), None)


def place_of(number: int) -> str:
    """The fingerprint of a device of this machine."""
    library = driver()
    return gpu_fingerprint(facts(library, number), library.version)


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
    launches: Sequence[Launch] = select(
        final, seen, special=other, templates=templates, numerics=chosen.numerics
    )
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
