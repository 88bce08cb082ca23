"""A program on a GPU: launches bound to code, constants and arenas of a device, ready to be called.

A call is one graph launch. Arrays of the host are copied through pinned memory, and the call ends
when its results are there; arrays on the device are used where they are, and the call ends when its
work is in the stream.

Streams: `stream=` of a call, else, with arrays on the device, the legacy default stream, which is
where PyTorch and CuPy work unless told otherwise; else a stream of the context, so that calls from
several threads overlap. Constants and code are shared; arenas are not.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..codegen.cuda.target import CudaTarget
from ..errors import DeviceError, InputError
from ..graph.ir import Graph
from ..kernels.ir import Launch
from ..kernels.printer import symbol
from ..memory.buffers import round_up
from ..memory.plan import MemoryPlan
from .arrays import TensorSpec, as_array, check_result, fitted, is_on_device, meet, shared_result
from .constants import Constant
from .cuda_context import Bindings, CudaContext
from .cuda_device import LEGACY, Device, Handle
from .cuda_graph import CudaGraph, seconds_between
from .cuda_launch import kernel_launches
from .cuda_modules import Modules, load_modules
from .device_array import DeviceArray
from .device_views import DeviceView, Wanted, handle_of, view, wrapper
from .gpu_code import GpuCodes
from .places import Place, places
from .poison import FILL, Poison

Array = npt.NDArray[Any]
Given = Array | DeviceView

MOST_IDLE: Final = 2
"""Contexts that wait for later calls: while one computes, the arrays of another one's call come and
go. Memory of a device is too short for more."""

ALIGNMENT: Final = 16
"""Bytes that an array of a caller must start at a multiple of to be used where it is: the widest
access of a thread. Those of allocators start at multiples of 256 or more."""

_CONSTANTS: Final = 256

Watch = tuple[Callable[[int, Sequence[int]], None], Callable[[int, Sequence[int]], None]]
"""What is called ahead of and behind a launch with its number and the addresses of its
parameters."""


class CudaProgram:
    """Code and constants on a device, and contexts for calls."""

    def __init__(
        self, graph: Graph, launches: Sequence[Launch], memory: MemoryPlan, target: CudaTarget,
        codes: GpuCodes, constants: Mapping[Constant, Array], device: Device, *,
        poison: bool = False, graphs: bool = True,
    ) -> None:  # fmt: skip
        """Load code and constants. Raises as `load_modules` does, and DeviceMemoryError."""
        self.device, self.launches = device, tuple(launches)
        kinds = [graph.type(n) for n in (*graph.inputs, *graph.outputs)]
        self._specs = [TensorSpec.of(n, t.dims, t.dtype) for n, t in zip(
            (*graph.inputs, *graph.outputs), kinds, strict=True)]  # fmt: skip
        self.inputs = tuple(self._specs[: len(graph.inputs)])
        self.outputs = tuple(self._specs[len(graph.inputs) :])
        said = [f"input {n!r}" for n in graph.inputs] + [f"out for output {n!r}"
                                                         for n in graph.outputs]  # fmt: skip
        self._wanted = [
            Wanted(w, t.dims, t.dtype, t.nbytes) for w, t in zip(said, kinds, strict=True)
        ]
        self._donated = frozenset(graph.inputs.index(r.name) for r in memory.regions)
        self._poison = Poison(memory, graph.inputs) if poison else None
        found = self._places = places(graph, self.launches, memory)
        kernels = [
            k for number, launch in enumerate(self.launches)
            for k in kernel_launches(number, codes.codes[symbol(launch.kernel)].entries,
                                     found[number], device.driver)
        ]  # fmt: skip
        with device:
            self._code = load_modules(device, target, codes.codes.values(), kernels)
            self._block, starts = _uploaded(device, constants)
        self.constant_bytes = sum(a.nbytes for a in constants.values())
        self._fixed = (self._block.value, self._block.value + sum(
            round_up(a.nbytes, _CONSTANTS) for a in constants.values()))  # fmt: skip

        def constant(place: Place) -> int:
            assert place.constant is not None
            return starts[place.constant] + place.offset

        self._constant = constant
        self._bound = Bindings(device, kernels, self._code.functions, constant, memory.arena_bytes,
                               [w.nbytes for w in self._wanted], graphs)  # fmt: skip
        self._state = _State(self._code, self._block)
        self._end = weakref.finalize(self, self._state.close)
        self._end.atexit = False
        with device:
            self._give(self._take())  # too large an arena is told now, not in a call

    # ---------------------------------------------------------------- calls

    def __call__(
        self, arrays: Sequence[Any], out: Sequence[Any] = (), stream: Any = None, *,
        watch: Watch | None = None,
    ) -> list[Any]:  # fmt: skip
        """Run once. arrays: one per input, in order. out: one per output, an array or None; by
        default all are new, on the device if an input is. stream: for the call to be put into.
        watch: what is called around every launch, each of which is waited for.

        Raises InputError, DeviceMemoryError, DeviceError, DeviceLostError, ForkedError.
        """
        if len(arrays) != len(self.inputs):
            listed = ", ".join(map(str, self.inputs))
            raise InputError(f"{len(arrays)} arrays for {len(self.inputs)} inputs: {listed}")
        first = next((a for a in arrays if is_on_device(a)), None)
        on_device = first is not None or any(is_on_device(a) for a in out)
        chosen = None if stream is None else handle_of(stream)
        if chosen is None and on_device:
            chosen = LEGACY
        with self.device:
            given = [self._given(k, a, chosen or LEGACY) for k, a in enumerate(arrays)]
            results = self._results(out or [None] * len(self.outputs), given, chosen, first)
            context = self._take()
            try:
                self._put(context, chosen or context.stream, given, results, watch)
                host = [k for k, r in enumerate(results) if isinstance(r.into, np.ndarray)]
                if host:
                    context.wait()
                for k in host:
                    context.got(len(given) + k, results[k].into)
            except BaseException:
                context.close()  # whatever is half done in it
                self._state.forget()
                raise
            self._give(context)
        return [r.answer if r.wrap is None else r.wrap(r.answer) for r in results]

    def _given(self, k: int, given: Any, stream: int) -> Given:
        """An input as it can be used, checked."""
        if is_on_device(given):
            return view(given, self._wanted[k], self.device, stream)
        spec = self.inputs[k]
        a = given if type(given) is np.ndarray else as_array(spec.name, given)
        if a.dtype != spec.dtype or a.shape != spec.shape:
            return fitted(spec, a)
        return a

    def _results(
        self, out: Sequence[Any], given: Sequence[Given], stream: int | None, first: Any
    ) -> list[_Result]:
        """Where results go. first: an input on the device, whose library makes the results."""
        taken = [((v.address, v.address + v.nbytes), "an input") for v in given
                 if isinstance(v, DeviceView)]  # fmt: skip
        taken.append((self._fixed, "a constant of the program"))
        made = []
        for k, (spec, a) in enumerate(zip(self.outputs, out, strict=True)):
            wanted = self._wanted[len(given) + k]
            if a is None and first is None:
                a = np.empty(spec.shape, spec.dtype)
                made.append(_Result(a, a))
            elif a is None:
                made.append(_Result(None, None, wrapper(first)))
            elif is_on_device(a):
                v = view(a, wanted, self.device, stream or LEGACY)
                if not v.writable:
                    raise InputError(f"{wanted.what} is read-only")
                own = (v.address, v.address + v.nbytes)
                for other, what in taken:
                    if meet(own, other):
                        raise shared_result(spec, what)
                taken.append((own, "another output's"))
                made.append(_Result(v, a))
            else:
                check_result(spec, a)
                made.append(_Result(a, a))
        return made

    def _put(
        self, c: CudaContext, stream: int, given: Sequence[Given], results: Sequence[_Result],
        watch: Watch | None = None,
    ) -> None:  # fmt: skip
        """Put all of a call into a stream."""
        c.begin(stream)
        at = []
        for k, v in enumerate(given):
            if not isinstance(v, DeviceView):
                at.append(c.put(k, v))
            elif self._is_usable(k, given):
                at.append(v.address)
            else:
                at.append(c.staged(k))
                c.copy(at[-1], v.address, v.nbytes)
        for k, r in enumerate(results, len(given)):
            if r.into is None:
                wanted = self._wanted[k]
                r.into = r.answer = DeviceArray(self.device, wanted.shape, wanted.dtype, stream)
            is_here = isinstance(r.into, np.ndarray) or r.into.address % ALIGNMENT
            at.append(c.staged(k) if is_here else r.into.address)
        c.point(at)
        if self._poison is None and watch is None:
            c.run()
        else:
            self._stepwise(c, stream, at, watch)
        for k, r in enumerate(results, len(given)):
            if isinstance(r.into, np.ndarray):
                c.fetch(k)
            elif at[k] != r.into.address:
                c.copy(r.into.address, at[k], r.into.nbytes)
            if isinstance(r.into, DeviceArray):
                r.into.written(stream)
        event = c.mark([v for v in (*given, *(r.into for r in results))
                        if isinstance(v, DeviceView)])  # fmt: skip
        for v in (*given, *(r.into for r in results)):
            if isinstance(v, DeviceView) and v.producer not in (None, stream):
                self.device.call("cuStreamWaitEvent", v.producer, event, 0)

    def _is_usable(self, k: int, given: Sequence[Given]) -> bool:
        """Whether kernels may have input k where it is; one that is donated is written to."""
        v = given[k]
        assert isinstance(v, DeviceView)
        if v.address % ALIGNMENT:
            return False
        own = (v.address, v.address + v.nbytes)
        return k not in self._donated or (v.writable and not any(
            meet(own, (w.address, w.address + w.nbytes))
            for j, w in enumerate(given) if j != k and isinstance(w, DeviceView)
        ))  # fmt: skip

    def _stepwise(
        self, c: CudaContext, stream: int, at: Sequence[int], watch: Watch | None
    ) -> None:  # fmt: skip
        """Launch by launch, each waited for, so that a fault has a name; where poison is asked for,
        memory that nobody should read holds NaN."""
        device, poison = self.device, self._poison

        def told(hook: int, step: int) -> None:
            if watch is not None:
                device.call("cuStreamSynchronize", stream)
                watch[hook](step, [
                    self._constant(p) if p.constant is not None
                    else (c.arena if p.array is None else at[p.array]) + p.offset
                    for p in self._places[step]
                ])  # fmt: skip

        def fill(start: int, nbytes: int) -> None:
            if nbytes:
                device.call("cuMemsetD8Async", start, FILL, nbytes, stream)

        if poison is not None:
            fill(c.arena, c.arena_bytes)
            for k in range(len(self.inputs), len(at)):
                fill(at[k], self._wanted[k].nbytes)
        for step, launch in enumerate(self.launches):
            told(0, step)
            for bound in c.launches:
                if bound.launch.step == step:
                    bound.start(device, stream)
            code = device.driver.code("cuStreamSynchronize", stream)
            if code:
                doing = f" after kernel {symbol(launch.kernel)} ({launch.label})"
                raise device.failure("cuStreamSynchronize", code, doing)
            told(1, step)
            for where, low, high in poison.dying(step) if poison is not None else ():
                fill((c.arena if where is None else at[where]) + low, high - low)

    # ---------------------------------------------------------------- times

    def samples(self, arrays: Sequence[Any], rounds: int) -> list[list[float]]:
        """Seconds of every launch in each of `rounds` runs, by events around each in a graph:
        between two events on the device, so neither the host nor copies are in it. Resolution:
        about half a microsecond.

        Raises as a call does; what donated inputs hold is undefined after it.
        """
        device = self.device
        with device:
            given = [self._given(k, a, LEGACY) for k, a in enumerate(arrays)]
            results = [_Result(np.empty(s.shape, s.dtype), None) for s in self.outputs]
            context = self._take()
            try:
                device.order(LEGACY, context.stream)  # which inputs on the device are ready in
                self._put(context, context.stream, given, results)
                context.wait()
                marks = [device.event(timing=True) for _ in range(len(context.launches) + 1)]
                graph = CudaGraph(device, context.stream, context.launches, marks)
                runs = []
                for _ in range(max(1, rounds)):
                    graph.launch(context.stream)
                    device.call("cuStreamSynchronize", context.stream)
                    runs.append(seconds_between(device, marks))
                graph.close()
            finally:
                context.close()
                self._state.forget()
        found = [[0.0] * len(self.launches) for _ in runs]
        for seconds, times in zip(found, runs, strict=True):
            for bound, t in zip(context.launches, times, strict=True):
                seconds[bound.launch.step] += t
        return found

    # ---------------------------------------------------------------- contexts

    def _take(self) -> CudaContext:
        return self._state.take() or self._made()

    def _made(self) -> CudaContext:
        try:
            return CudaContext(self._bound)
        except BaseException:
            self._state.forget()
            raise

    def _give(self, context: CudaContext) -> None:
        self._state.give(context)

    @property
    def how(self) -> str:
        """How kernels are launched: "one graph", or "one by one" and why."""
        if self._poison is not None:
            return "one by one: TILEWRIGHT_POISON=1"
        found = self._state.idle
        fault = found[0].graph_fault if found else ""
        return f"one by one: {fault}" if fault else "one graph"

    def close(self) -> None:
        """Give back all memory on the device, now or when the last call in progress ends."""
        self._end()


@dataclass(slots=True)
class _Result:
    """Where an output goes, None for memory on the device that is still to be made; what the caller
    gets; and what wraps that, if anything."""

    into: Any
    answer: Any
    wrap: Any = None


@dataclass(slots=True)
class _State:
    """What a program holds on a device, and who uses it."""

    code: Modules
    constants: Handle
    idle: list[CudaContext] = field(default_factory=list)
    busy: int = 0
    closed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def take(self) -> CudaContext | None:
        """A context that nobody has, None for a new one to be made. Raises DeviceError after
        `close`."""
        with self.lock:
            if self.closed:
                raise DeviceError("the program was closed: compile it again")
            self.busy += 1
            return self.idle.pop() if self.idle else None

    def give(self, context: CudaContext) -> None:
        """A call has ended."""
        with self.lock:
            keep = not self.closed and len(self.idle) < MOST_IDLE
            if keep:
                self.idle.append(context)
        if not keep:
            context.close()
        self.forget()

    def forget(self) -> None:
        """A context that was taken is no more."""
        with self.lock:
            self.busy -= 1
            last = self.closed and not self.busy
        if last:
            self._release()

    def close(self) -> None:
        """End it when nobody uses it."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            waiting, self.idle = self.idle, []
            last = not self.busy
        for context in waiting:
            context.close()
        if last:
            self._release()

    def _release(self) -> None:
        self.constants.close()
        for module in self.code.modules:
            module.close()


def _uploaded(
    device: Device, constants: Mapping[Constant, Array]
) -> tuple[Handle, dict[Constant, int]]:
    """All constants in one block, and where each is."""
    sizes = {what: round_up(a.nbytes, _CONSTANTS) for what, a in constants.items()}
    block = device.memory(sum(sizes.values()), "the constants of this program")
    starts, at = {}, block.value
    for what, array in constants.items():
        starts[what] = at
        device.upload(at, array)
        at += sizes[what]
    return block, starts
