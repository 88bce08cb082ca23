"""One candidate of a problem on a GPU: its code, its memory, and runs of it.

A run finds memory as in a model: weights in main memory, as a memset of twice the second cache's
size comes before it, inputs just written, results in memory that was used before. It is timed by
events on the device around every kernel of a graph: neither the host nor that preparation counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...autotune.outcome import Failure
from ...autotune.serving import Failed
from ..codegen.cuda.target import CudaTarget
from ..graph.ir import Graph
from ..graph.storage import aliases, place_in
from ..kernels.ir import Launch, Prepared
from ..runtime.cuda_device import Device, Handle
from ..runtime.cuda_graph import CudaGraph, seconds_between
from ..runtime.cuda_launch import bind, kernel_launches
from ..runtime.cuda_modules import load_modules
from ..runtime.gpu_code import GpuCode
from ..runtime.places import Place
from ..runtime.poison import FILL
from .candidate import Constants
from .gpu_faults import GpuFaults
from .memory import logical, store
from .problem import Problem

Array = npt.NDArray[Any]

_LEAST_FLUSH: Final = 1 << 20


class DeviceSets:
    """Inputs and outputs of a problem in a device's memory, which all candidates share, and a
    stream. The device's context must be current."""

    def __init__(self, device: Device, graph: Graph, feeds: Mapping[str, Array]) -> None:
        self.device, self.graph = device, graph
        self.handles: dict[str, Handle] = {}
        self._originals: dict[str, Handle] = {}
        self._sizes: dict[str, int] = {}
        for n in dict.fromkeys((*graph.inputs, *graph.outputs)):
            kind = graph.type(n)
            self._sizes[n] = kind.span * kind.dtype.bytes
            self.handles[n] = device.memory(self._sizes[n], "a blob of a candidate")
        for n in graph.inputs:
            kind = graph.type(n)
            flat = np.zeros(kind.span, kind.dtype.numpy)
            store(flat, kind, feeds[n])
            kept = self._originals[n] = device.memory(flat.nbytes, "an input of a candidate")
            device.upload(kept.value, flat)
        self._flushed = max(2 * device.facts.l2_bytes, _LEAST_FLUSH)
        self._flush = device.memory(self._flushed, "what clears the caches")
        self.stream = device.stream()

    def refresh(self) -> None:
        """Bring memory into the state that a model would leave it in."""
        put, stream = self.device.call, self.stream.value
        for n in self.graph.outputs:
            put("cuMemsetD8Async", self.handles[n].value, FILL, self._sizes[n], stream)
        put("cuMemsetD8Async", self._flush.value, 0, self._flushed, stream)
        for n, kept in self._originals.items():
            put("cuMemcpyDtoDAsync_v2", self.handles[n].value, kept.value, self._sizes[n], stream)

    def outputs(self) -> dict[str, Array]:
        """An array for each output that it fits into as it lies in memory."""
        kinds = {n: self.graph.type(n) for n in self.graph.outputs}
        return {n: np.empty(kind.span, kind.dtype.numpy) for n, kind in kinds.items()}

    def computed(self) -> dict[str, Array]:
        """The results, as logical arrays."""
        found = {}
        for n, flat in self.outputs().items():
            self.device.call("cuMemcpyDtoH_v2", flat.ctypes.data, self.handles[n].value,
                             flat.nbytes)  # fmt: skip
            found[n] = np.ascontiguousarray(logical(flat, self.graph.type(n)))
        return found


class GpuContender:
    """A candidate that can be run. Its results go into `sets`. given: what `faults.py` makes of
    TILEWRIGHT_FAULT for it. All methods want the device's context to be current, and raise
    DeviceLostError where the candidate faults."""

    def __init__(
        self, problem: Problem, launch: Launch, code: GpuCode, target: CudaTarget,
        constants: Constants, sets: DeviceSets, given: Sequence[str] = (),
    ) -> None:  # fmt: skip
        device = self._device = sets.device
        self.launch, self._sets = launch, sets
        self._memory: list[Handle] = []
        self._handed: dict[Any, Handle] = {}
        self._scratch: list[tuple[int, int]] = []
        self.nbytes = 0
        count = len(launch.args)
        kernels = kernel_launches(0, code.entries, [Place(0, array=k) for k in range(count)],
                                  device.driver)  # fmt: skip
        self._modules = load_modules(device, target, [code], kernels)
        bound = bind(kernels, self._modules.functions, lambda place: None)
        ready = constants.of(launch)
        for k, address in enumerate(self._addresses(problem.graph, ready)):
            for b in bound:
                b.point(k, address)
        self._marks = [device.event(timing=True) for _ in range(len(bound) + 1)]
        self._graph = CudaGraph(device, sets.stream.value, bound, self._marks)
        self._faults = GpuFaults(device, target, given) if given else None
        self.results: Mapping[str, Array] = {}

    def _addresses(self, graph: Graph, constants: Mapping[Any, Array]) -> list[int]:
        shared, found = aliases(graph), []
        for arg, b in zip(self.launch.args, self.launch.kernel.params, strict=True):
            if arg is None:
                found.append(self._taken(b.nbytes).value)
                self._scratch.append((found[-1], b.nbytes))
                continue
            root, inner = (arg, 0) if isinstance(arg, Prepared) else place_in(shared, arg)
            if root in constants:
                found.append(self._uploaded(root, constants[root]) + inner)
            else:
                assert isinstance(root, str)
                found.append(self._sets.handles[root].value + inner)
        return found

    def _taken(self, size: int) -> Handle:
        self._memory.append(self._device.memory(size, "a candidate"))
        self.nbytes += size
        return self._memory[-1]

    def _uploaded(self, what: Any, array: Array) -> int:
        if what not in self._handed:
            made = self._handed[what] = self._taken(array.nbytes)
            self._device.upload(made.value, array)
        return self._handed[what].value

    def spoil_scratch(self) -> None:
        """Fill scratch with what no kernel computes: nobody may read it before writing it."""
        for address, size in self._scratch:
            self._device.call("cuMemsetD8Async", address, FILL, size, self._sets.stream.value)

    def run(self) -> float:
        """Run once; the seconds of its kernels."""
        self._sets.refresh()
        stream = self._sets.stream.value
        if self._faults is not None:
            self._faults.begin(stream)
        self._graph.launch(stream)
        self._device.call("cuStreamSynchronize", stream)
        if self._faults is not None:
            handles = self._sets.handles
            self._faults.end([(handles[n], a) for n, a in self._sets.outputs().items()])
        return sum(seconds_between(self._device, self._marks))

    def keep(self) -> None:
        """What was computed is what all other runs have to compute."""
        self.results = self._sets.computed()

    def compare(self) -> None:
        """Raise Failed where results of the last run are not those that were kept, bit by bit."""
        for n, got in self._sets.computed().items():
            if got.tobytes() != self.results[n].tobytes():
                what = f"another run computed another {n} than the first one"
                raise Failed(Failure("wrong", what))
