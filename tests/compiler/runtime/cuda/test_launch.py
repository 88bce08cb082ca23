"""Launches with shared memory, clusters, and parameters that are no addresses."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from tilewright.compiler.codegen.cuda.entry import Entry
from tilewright.compiler.codegen.cuda.target import CudaTarget
from tilewright.compiler.errors import DeviceError
from tilewright.compiler.runtime.cuda_device import Device, device
from tilewright.compiler.runtime.cuda_graph import CudaGraph
from tilewright.compiler.runtime.cuda_launch import KernelLaunch, Param, bind
from tilewright.compiler.runtime.cuda_modules import load_modules
from tilewright.compiler.runtime.gpu_code import GpuCode
from tilewright.compiler.runtime.places import Place

from .stub import Stub

PTX = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(
	.param .u64 .ptr .align 4 k_param_0,
	.param .align 64 .b8 k_param_1[128]
)
.reqntid 128, 1, 1
{
	ret;
}
"""
BASE = 0x1000


def described(address: int) -> bytes:
    return address.to_bytes(8, "little") * 16


def launch(**how: Any) -> KernelLaunch:
    array = Place(256, array=0)
    params = (Param(Place(64)), Param(array, 128, described))
    return KernelLaunch("k", 0, (4, 2, 1), (128, 1, 1), params, **how)


def loaded(d: Device, x: KernelLaunch) -> Any:
    code = GpuCode((Entry("k", 8, 128),), PTX, None)
    modules = load_modules(d, CudaTarget("sm_90"), [code], [x])
    made = bind([x], modules.functions, lambda p: BASE + p.offset if p.in_arena else None)
    return modules, made[0]


def seen(stub: Stub) -> list[tuple[tuple[int, ...], list[bytes]]]:
    """What kernels are launched with, as it comes in."""
    found: list[tuple[tuple[int, ...], list[bytes]]] = []

    def look(name: bytes, device: int, dims: Any, params: Any, sizes: Any, n: int) -> int:
        stub.during = look
        found.append((tuple(dims[:10]), [ctypes.string_at(params[k], sizes[k]) for k in range(n)]))
        return 0

    stub.during = look
    return found


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("cluster", [None, (2, 1, 1), (4, 2, 2)])
def test_what_a_kernel_gets(stub: Stub, graph: bool, cluster: Any) -> None:
    if cluster == (4, 2, 2):
        cluster = (4, 2, 1)
    found = seen(stub)
    with device(0) as d:
        x = launch(shared_bytes=100_000, cluster=cluster)
        _keep, b = loaded(d, x)
        assert "cuFuncSetAttribute 8 100000" in stub.log
        stream = d.stream()
        b.point(0, 0x7000)
        if graph:
            g = CudaGraph(d, stream.value, [b])
            b.point(0, 0x8000)
            g.update(0)
            g.launch(stream.value)
        else:
            b.start(d, stream.value)
        d.call("cuStreamSynchronize", stream.value)
    start = 0x8000 if graph else 0x7000
    dims = (4, 2, 1, 128, 1, 1, 100_000, *(cluster or (0, 0, 0)))
    assert found == [(dims, [(BASE + 64).to_bytes(8, "little"), described(start + 256)])]
    stub.during = None


def test_large_clusters_are_asked_for(stub: Stub) -> None:
    with device(0) as d:
        loaded(d, launch(cluster=(16, 1, 1)))
    assert "cuFuncSetAttribute 14 1" in stub.log


def test_more_shared_memory_than_there_is(stub: Stub) -> None:
    with device(0) as d, pytest.raises(DeviceError, match="cuFuncSetAttribute"):
        loaded(d, launch(shared_bytes=1 << 20))


def test_the_stub_keeps_the_rules(stub: Stub) -> None:
    """Calls that NVIDIA's driver refuses, too, are refused."""
    with device(0) as d:
        _keep, b = loaded(d, launch())
        stream = d.stream()
        d.call("cuStreamBeginCapture_v2", stream.value, 1)
        with pytest.raises(DeviceError, match="900"):
            d.memory(16, "memory")
        with pytest.raises(DeviceError, match="901"):
            b.start(d, stream.value)
        with pytest.raises(DeviceError, match="901"):
            d.call("cuStreamEndCapture", stream.value, ctypes.byref(ctypes.c_void_p()))
        with pytest.raises(DeviceError, match="906"):
            d.call("cuStreamBeginCapture_v2", 1, 2)
        memory = d.memory(16, "memory")
        with pytest.raises(DeviceError, match="INVALID_VALUE"):
            d.call("cuMemcpyHtoD_v2", memory.value + 8, memory.value, 16)
        memory.close()
        with pytest.raises(DeviceError, match="INVALID_VALUE"):
            d.call("cuMemFree_v2", memory.value)
    said = d.driver.named(d.driver.code("cuStreamSynchronize", stream.value))
    assert "INVALID_CONTEXT" in said
    for what in ("cuMemAlloc while a stream is captured", "capture of the legacy stream",
                 "are in no allocation", "again", "no context is current"):  # fmt: skip
        assert what in stub.problems
    stub.clear()
