"""A program's launches as one CUDA graph: captured from a stream once, launched as a whole after.

When an array of the caller lies somewhere else than in the call before, the parameters of the few
kernels that touch it are changed in the graph (`cuGraphExecKernelNodeSetParams`): copying arrays to
fixed places would move all their bytes once more, and capturing again takes as long as many calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from .cuda_device import Device, Handle
from .cuda_launch import BoundLaunch

_RELAXED: Final = 2
"""Of the capture modes, the one that forbids no other call meanwhile: none that this process makes,
in whatever thread (a collector of garbage that frees memory, say), depends on the capture."""
_EXTERNAL: Final = 1  # CU_EVENT_RECORD_EXTERNAL


class CudaGraph:
    """Launches that are launched together."""

    def __init__(
        self, device: Device, stream: int, bound: Sequence[BoundLaunch],
        marks: Sequence[Handle] = (),
    ) -> None:  # fmt: skip
        """Capture. stream: of this process, and idle. marks: events with times, recorded before
        every launch and behind the last. Raises DeviceError."""
        self._device, self._bound = device, bound
        graph = ctypes.c_void_p()
        device.call("cuStreamBeginCapture_v2", stream, _RELAXED)
        try:
            self._nodes = _captured(device, stream, bound, marks)
        finally:
            code = device.driver.code("cuStreamEndCapture", stream, ctypes.byref(graph))
        if code:
            raise device.failure("cuStreamEndCapture", code)
        self._graph = Handle(device, graph.value or 0, "cuGraphDestroy")
        made = ctypes.c_void_p()
        device.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, 0)
        self._exec = Handle(device, made.value or 0, "cuGraphExecDestroy")

    def update(self, number: int) -> None:
        """Take the parameters that launch `number` has now."""
        self._bound[number].update(self._device, self._exec.value, self._nodes[number])

    def launch(self, stream: int) -> None:
        """Put all launches into a stream. Raises DeviceError."""
        self._device.call("cuGraphLaunch", self._exec.value, stream)

    def close(self) -> None:
        """Give it back. It must not be running."""
        self._exec.close()
        self._graph.close()


def _captured(
    device: Device, stream: int, bound: Sequence[BoundLaunch], marks: Sequence[Handle]
) -> list[int]:
    """The graph's node of each launch."""
    nodes = []
    for k, b in enumerate(bound):
        if marks:
            device.call("cuEventRecordWithFlags", marks[k].value, stream, _EXTERNAL)
        b.start(device, stream)
        nodes.append(_last_node(device, stream))
    if marks:
        device.call("cuEventRecordWithFlags", marks[-1].value, stream, _EXTERNAL)
    return nodes


def _last_node(device: Device, stream: int) -> int:
    """The node of the last launch, on which the next one will depend."""
    status, number = ctypes.c_int(), ctypes.c_uint64()
    last, count = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_size_t()
    device.call("cuStreamGetCaptureInfo_v2", stream, ctypes.byref(status), ctypes.byref(number),
                None, ctypes.byref(last), ctypes.byref(count))  # fmt: skip
    assert count.value == 1, f"{count.value} ends of a stream"
    return last[0] or 0


def seconds_between(device: Device, marks: Sequence[Handle]) -> list[float]:
    """The times between events that a graph has reached, each from one to the next."""
    found = []
    for earlier, later in pairwise(marks):
        milliseconds = ctypes.c_float()
        device.call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier.value, later.value)
        found.append(milliseconds.value / 1e3)
    return found
