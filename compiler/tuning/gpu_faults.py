"""What TILEWRIGHT_FAULT (`faults.py`) asks of candidates on a GPU.

Faults of running code are kernels of their own, ahead of the candidate's in its stream: they are
PTX, which the driver translates. Those that end the process, and the memory that is asked for until
it is refused, are the host's; results are changed in the device's memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy.typing as npt

from ..codegen.cuda.entry import Entry
from ..codegen.cuda.target import CudaTarget
from ..runtime.cuda_device import Device, Handle
from ..runtime.cuda_launch import BoundLaunch, bind, kernel_launches
from ..runtime.cuda_modules import load_modules
from ..runtime.gpu_code import GpuCode
from ..runtime.places import Place
from . import faults

Array = npt.NDArray[Any]

_PTX: Final = """\
.version 8.0
.target sm_80
.address_size 64

.visible .entry fault_hang(.param .u64 at)
{
  .reg .b64 %a;
  .reg .b32 %x;
  ld.param.u64 %a, [at];
again:
  ld.volatile.global.u32 %x, [%a];
  bra again;
}

.visible .entry fault_segv(.param .u64 at)
{
  .reg .b64 %a;
  .reg .b32 %x;
  mov.b64 %a, 0;
  mov.b32 %x, 1;
  st.volatile.global.u32 [%a], %x;
  ret;
}
"""
_ON_DEVICE: Final = ("hang", "segv")
_ON_HOST: Final = ("abort", "exit")
_PIECES: Final = 8


class GpuFaults:
    """The faults of one candidate. given: their names. The device's context must be current."""

    def __init__(self, device: Device, target: CudaTarget, given: Sequence[str]) -> None:
        self._device, self._given = device, given
        self._runs = 0
        self._launches: list[BoundLaunch] = []
        if not set(given) & set(_ON_DEVICE):
            return
        entries = tuple(Entry(f"fault_{f}", 1, 1) for f in _ON_DEVICE)
        launches = kernel_launches(0, entries, [Place(0, array=0)], device.driver)
        code = GpuCode(entries, _PTX, None)
        self._modules = load_modules(device, target, [code], launches)
        self._word = device.memory(4, "a fault")
        wanted = [x for x in launches if x.name.removeprefix("fault_") in given]
        self._launches = bind(wanted, self._modules.functions, lambda place: None)
        for x in self._launches:
            x.point(0, self._word.value)

    def begin(self, stream: int) -> None:
        """Do what is to happen ahead of a run."""
        self._runs += 1
        for f in _ON_HOST:
            if f in self._given:
                ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(faults.address(f))(0, 0)
        if "memory" in self._given:
            self._fill()
        for x in self._launches:
            x.start(self._device, stream)

    def end(self, results: Sequence[tuple[Handle, Array]]) -> None:
        """Do what is to happen to the results of a run: the device's memory, and an array that it
        fits into."""
        for at, flat in results:
            self._device.call("cuMemcpyDtoH_v2", flat.ctypes.data, at.value, flat.nbytes)
        faults.in_results(self._given, self._runs, [flat for _, flat in results])
        for at, flat in results:
            self._device.upload(at.value, flat)

    def _fill(self) -> None:
        """Allocate until that is refused. Raises DeviceMemoryError."""
        held = []
        while True:
            size = self._device.facts.memory_bytes // _PIECES
            held.append(self._device.memory(size, "a fault that takes all there is"))
