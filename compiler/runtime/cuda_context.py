"""What a call in progress has for itself on a device: an arena, a stream, the launches bound to
both, their graph, and memory through which arrays of the host come and go."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import DeviceError, DeviceLostError
from .cuda_device import Device, Handle
from .cuda_graph import CudaGraph
from .cuda_launch import BoundLaunch, KernelLaunch, bind
from .places import Place

Array = npt.NDArray[Any]

DISTURBED: Final = frozenset((900, 901))
"""Codes of a capture that ended because somebody waited for the whole device meanwhile: another
library, in another thread."""
MOST_TRIES: Final = 3

_log: Final = logging.getLogger("tilewright")


@dataclass(frozen=True, slots=True)
class Bindings:
    """A program on a device, bound as far as it goes without memory of a call. arrays: bytes of
    every input and output. address: of a place in a constant. graphs: whether to make one."""

    device: Device
    launches: Sequence[KernelLaunch]
    functions: Mapping[str, int]
    constant: Callable[[Place], int]
    arena_bytes: int
    arrays: Sequence[int]
    graphs: bool


@dataclass(slots=True)
class _Owned:
    """All that a context has to give back, in the order in which that must happen. last: behind the
    last call; unmarked: the stream of a call that has no mark yet, or failed before it had."""

    device: Device
    last: Handle | None = None
    unmarked: int | None = None
    graph: CudaGraph | None = None
    parts: list[Handle] = field(default_factory=list)
    flying: deque[tuple[Handle, Any]] = field(default_factory=deque)
    spare: list[Handle] = field(default_factory=list)

    def close(self) -> None:
        """Wait for the last call, then give everything back."""
        if self.unmarked is not None:
            self.device.quietly("cuStreamSynchronize", self.unmarked)
        if self.last is not None:
            self.device.quietly("cuEventSynchronize", self.last.value)
        if self.graph is not None:
            self.graph.close()
        for part in self.parts:
            part.close()
        self.flying.clear()


class CudaContext:
    """Memory for one call at a time. All methods but `close` want the device's context to be
    current."""

    def __init__(self, bound: Bindings) -> None:
        """Raises DeviceMemoryError."""
        device = self.device = bound.device
        self._arrays, self._graphs = bound.arrays, bound.graphs
        self._own = _Owned(device)
        self._end = weakref.finalize(self, self._own.close)
        self._end.atexit = False
        what = "the arena of this program"
        self.arena = self._kept(device.memory(bound.arena_bytes, what)).value
        self.arena_bytes = bound.arena_bytes
        self.stream = self._kept(device.stream()).value

        def address(place: Place) -> int | None:
            if place.constant is not None:
                return bound.constant(place)
            return self.arena + place.offset if place.in_arena else None

        self.launches: list[BoundLaunch] = bind(bound.launches, bound.functions, address)
        self._touching: list[list[int]] = [[] for _ in bound.arrays]  # launches, by array
        for k, launch in enumerate(self.launches):
            for array in launch.arrays:
                self._touching[array].append(k)
        self._at: list[int | None] = [None] * len(bound.arrays)
        self._staged: dict[int, int] = {}
        self._pinned: dict[int, int] = {}
        self._last_stream = 0
        self._settled = True  # whether all calls before have ended
        self.graph_fault = "" if bound.graphs else "switched off"
        self._tries = 0

    def _kept(self, handle: Handle) -> Handle:
        self._own.parts.append(handle)
        return handle

    # ---------------------------------------------------------------- one call

    def begin(self, stream: int) -> None:
        """A call is put into a stream, behind the one before."""
        own = self._own
        while own.flying and self.device.is_over(own.flying[0][0].value):
            self._land()
        if own.last is not None and not self._settled and self._last_stream != stream:
            self.device.call("cuStreamWaitEvent", stream, own.last.value, 0)
        self._last_stream = own.unmarked = stream

    def put(self, number: int, array: Array) -> int:
        """Copy an array of the host to the device; where it is there. It may change after."""
        to, nbytes = self.staged(number), array.nbytes
        if nbytes:
            if not self._settled:
                assert self._own.last is not None
                self.device.call("cuEventSynchronize", self._own.last.value)
                self._settled = True
            pinned = self._pin(number)
            _bytes_at(pinned, nbytes).view(array.dtype).reshape(array.shape)[...] = array
            self.device.call("cuMemcpyHtoDAsync_v2", to, pinned, nbytes, self._last_stream)
        return to

    def fetch(self, number: int) -> None:
        """Have a result copied to the host's pinned memory."""
        nbytes = self._arrays[number]
        if nbytes:
            self.device.call("cuMemcpyDtoHAsync_v2", self._pin(number), self.staged(number), nbytes,
                             self._last_stream)  # fmt: skip

    def got(self, number: int, into: Array) -> None:
        """What was fetched, after `wait`."""
        if into.nbytes:
            source = _bytes_at(self._pin(number), into.nbytes)
            into[...] = source.view(into.dtype).reshape(into.shape)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """On the device."""
        if nbytes:
            self.device.call("cuMemcpyDtoDAsync_v2", to, source, nbytes, self._last_stream)

    def staged(self, number: int) -> int:
        """Memory of this context for an input or output."""
        if number not in self._staged:
            made = self.device.memory(self._arrays[number], "a copy of an input or output")
            self._staged[number] = self._kept(made).value
        return self._staged[number]

    def _pin(self, number: int) -> int:
        if number not in self._pinned:
            made = self.device.pinned(self._arrays[number])
            self._pinned[number] = self._kept(made).value
        return self._pinned[number]

    def point(self, at: Sequence[int]) -> None:
        """The arrays of this call lie there."""
        changed: dict[int, None] = {}
        for number, address in enumerate(at):
            if self._at[number] != address:
                self._at[number] = address
                for k in self._touching[number]:
                    self.launches[k].point(number, address)
                    changed[k] = None
        if self._own.graph is not None:
            for k in changed:
                self._own.graph.update(k)

    def run(self) -> None:
        """Put all launches into the stream: as a graph, or one by one where there is none."""
        if self._own.graph is None and not self.graph_fault and self.launches:
            self._capture()
        if self._own.graph is not None:
            self._own.graph.launch(self._last_stream)
        else:
            for launch in self.launches:
                launch.start(self.device, self._last_stream)

    def _capture(self) -> None:
        try:
            self._own.graph = CudaGraph(self.device, self.stream, self.launches)
        except DeviceLostError:
            raise
        except DeviceError as e:
            self._tries += 1
            if e.code in DISTURBED and self._tries < MOST_TRIES:
                return  # one by one, this time
            self.graph_fault = str(e)
            _log.warning("the program's kernels are launched one by one, which takes longer: they"
                         " do not become a CUDA graph: %s", e)  # fmt: skip

    def mark(self, keep: Any) -> int:
        """All of the call is in the stream: an event behind it. keep: what must live until then."""
        own = self._own
        event = own.spare.pop() if own.spare else self._kept(self.device.event())
        self.device.call("cuEventRecord", event.value, self._last_stream)
        own.flying.append((event, keep))
        own.last, own.unmarked, self._settled = event, None, False
        return event.value

    def wait(self) -> None:
        """Until the call has ended. Raises DeviceLostError where one of its kernels faulted."""
        assert self._own.last is not None
        self.device.call("cuEventSynchronize", self._own.last.value)
        self._settled = True
        while self._own.flying:
            self._land()

    def _land(self) -> None:
        """The oldest call has ended: what it used may go."""
        event, _ = self._own.flying.popleft()
        self._own.spare.append(event)

    def close(self) -> None:
        """Wait for the last call, and give everything back."""
        self._end()


def _bytes_at(address: int, count: int) -> Array:
    return np.frombuffer(memoryview((ctypes.c_ubyte * count).from_address(address)), np.uint8)
