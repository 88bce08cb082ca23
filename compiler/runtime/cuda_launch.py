"""Launches of CUDA kernels: a description without addresses, and the same bound to memory.

A parameter is an address of eight bytes, or so many bytes that are made from one, such as the
descriptor of a tensor for the tensor memory accelerator, which a kernel takes by value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..codegen.cuda.entry import DescribedTensor, Entry
from ..codegen.cuda.tensor_maps import DESCRIPTOR_ALIGNMENT, DESCRIPTOR_BYTES, encoding
from .cuda_device import Device
from .cuda_driver import Driver, KernelNodeParams, LaunchAttribute, LaunchConfig
from .places import Place

Dims = tuple[int, int, int]

_CLUSTER: Final = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
_ALIGNMENT: Final = 64
"""Bytes: what the driver wants of a tensor's descriptor."""


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: the address of a place, or what `encode` makes of that address, `size` bytes
    (which must not depend on it)."""

    place: Place
    size: int = 8
    encode: Callable[[int], bytes] | None = None

    def value(self, address: int) -> bytes:
        """As the kernel gets it."""
        return address.to_bytes(8, "little") if self.encode is None else self.encode(address)


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """One CUDA kernel and how it is launched. step: the number of the program's launch that it is a
    phase of. shared_bytes: of dynamic shared memory. cluster: blocks that run together on
    neighbouring multiprocessors, in each direction; None for a kernel that does not ask."""

    name: str
    step: int
    grid: Dims
    block: Dims
    params: tuple[Param, ...]
    shared_bytes: int = 0
    cluster: Dims | None = None


class BoundLaunch:
    """A launch with memory of its own for parameters, as the driver takes them."""

    def __init__(
        self, launch: KernelLaunch, function: int, address: Callable[[Place], int | None]
    ) -> None:
        """address: of a place, None where it is not known yet."""
        self.launch = launch
        self._function = function
        starts, end = [], 0
        for p in launch.params:
            starts.append(end)
            end += -(-p.size // _ALIGNMENT) * _ALIGNMENT
        self._memory = ctypes.create_string_buffer(end + _ALIGNMENT)
        base = -(-ctypes.addressof(self._memory) // _ALIGNMENT) * _ALIGNMENT
        self._at = [base + start for start in starts]
        self._pointers = (ctypes.c_void_p * max(len(starts), 1))(*self._at)
        self._params = ctypes.addressof(self._pointers)
        self._node = KernelNodeParams(
            function, launch.grid, launch.block, launch.shared_bytes, self._params
        )
        self._attribute = LaunchAttribute(_CLUSTER, 0, launch.cluster or (1, 1, 1))
        self._config = LaunchConfig(
            launch.grid, launch.block, launch.shared_bytes, None,
            ctypes.addressof(self._attribute), 1,
        )  # fmt: skip
        self.arrays: dict[int, list[int]] = {}  # number of an array: the parameters in it
        for k, p in enumerate(launch.params):
            known = address(p.place)
            if known is not None:
                self._put(k, known)
            if p.place.array is not None:
                self.arrays.setdefault(p.place.array, []).append(k)

    def _put(self, k: int, address: int) -> None:
        value = self.launch.params[k].value(address)
        ctypes.memmove(self._at[k], value, len(value))

    def point(self, array: int, start: int) -> None:
        """An array of the caller begins there now."""
        for k in self.arrays.get(array, ()):
            self._put(k, start + self.launch.params[k].place.offset)

    def start(self, device: Device, stream: int) -> None:
        """Put it into a stream. Raises DeviceError."""
        launch = self.launch
        if launch.cluster is None:
            device.call("cuLaunchKernel", self._function, *launch.grid, *launch.block,
                        launch.shared_bytes, stream, self._params, None)  # fmt: skip
        else:
            self._config.stream = stream
            device.call("cuLaunchKernelEx", ctypes.addressof(self._config), self._function,
                        self._params, None)  # fmt: skip

    def update(self, device: Device, graph: int, node: int) -> None:
        """Give a graph's node the parameters of now. Raises DeviceError."""
        device.call("cuGraphExecKernelNodeSetParams_v2", graph, node,
                    ctypes.addressof(self._node))  # fmt: skip


def bind(
    launches: Sequence[KernelLaunch], functions: Mapping[str, int],
    address: Callable[[Place], int | None],
) -> list[BoundLaunch]:  # fmt: skip
    """All launches of a program in one context's memory."""
    return [BoundLaunch(x, functions[x.name], address) for x in launches]


def kernel_launches(
    number: int, entries: Sequence[Entry], found: Sequence[Place], library: Driver
) -> list[KernelLaunch]:
    """The phases of launch `number`. entries: as code was made for them; found: the places of the
    kernel's parameters. Descriptors of tensors come behind those."""
    addresses = tuple(map(Param, found))
    made = []
    for e in entries:
        maps = (Param(found[m.buffer], DESCRIPTOR_BYTES, partial(descriptor, library, m))
                for m in e.tensor_maps)  # fmt: skip
        cluster = (e.cluster, 1, 1) if e.cluster > 1 else None
        made.append(KernelLaunch(e.name, number, (e.blocks, 1, 1), (e.threads, 1, 1),
                                 (*addresses, *maps), e.shared_bytes, cluster))  # fmt: skip
    return made


def descriptor(library: Driver, tensor: DescribedTensor, address: int) -> bytes:
    """What a kernel gets of a tensor that begins there. Raises DeviceError."""
    e = encoding(tensor)
    memory = ctypes.create_string_buffer(DESCRIPTOR_BYTES + DESCRIPTOR_ALIGNMENT)
    start = -ctypes.addressof(memory) % DESCRIPTOR_ALIGNMENT
    wide = [(ctypes.c_uint64 * max(len(x), 1))(*x) for x in (e.dims, e.strides)]
    narrow = [(ctypes.c_uint32 * len(x))(*x) for x in (e.box, e.steps)]
    library.call("cuTensorMapEncodeTiled", ctypes.addressof(memory) + start, e.data_type, e.rank,
                 address, *wide, *narrow, e.interleave, e.swizzle, e.promotion, e.fill)  # fmt: skip
    return memory.raw[start : start + DESCRIPTOR_BYTES]
