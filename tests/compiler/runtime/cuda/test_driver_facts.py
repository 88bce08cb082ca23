"""What the runtime believes of NVIDIA's driver, beside what NVIDIA's own bindings (`cuda-bindings`,
which numba-cuda brings along) say: functions' arguments, structures as they lie in memory, and the
numbers behind names. The stub driver cannot tell: it was written from the same beliefs."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import pytest

from tilewright.compiler.codegen.cuda import tensor_maps
from tilewright.compiler.runtime import (
    cuda_context,
    cuda_device,
    cuda_driver,
    cuda_graph,
    cuda_launch,
    cuda_modules,
    device_views,
)

cuda = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not there")
cydriver = pytest.importorskip("cuda.bindings.cydriver")

BYTES = {"int": 4, "unsigned int": 4, "size_t": 8, "unsigned char": 1, "CUdevice": 4,
         "CUdeviceptr": 8, "CUresult": 4, "cuuint32_t": 4, "unsigned PY_LONG_LONG": 8}  # fmt: skip
HANDLES = ("CUcontext", "CUstream", "CUevent", "CUmodule", "CUfunction", "CUgraph", "CUgraphNode",
           "CUgraphExec")  # fmt: skip


def signature(name: str) -> list[str] | None:
    """The types of a function's arguments as C writes them, None where the bindings have a newer
    version of it only."""
    plain = name.removesuffix("_v2").removesuffix("WithFlags")
    found = cydriver.__pyx_capi__
    capsule = found.get(name) or found.get(plain) or found.get(name.removesuffix("_v2"))
    if name == "cuStreamGetCaptureInfo_v2":
        capsule = found.get(name)
    if capsule is None:
        return None
    text: Callable[[Any], bytes] = ctypes.pythonapi.PyCapsule_GetName
    ctypes.pythonapi.PyCapsule_GetName.restype = ctypes.c_char_p
    ctypes.pythonapi.PyCapsule_GetName.argtypes = [ctypes.py_object]
    said = re.fullmatch(r"CUresult \((.*)\)", text(capsule).decode())
    assert said is not None
    return [] if said[1] == "void" else said[1].split(", ")


@pytest.mark.parametrize("name", sorted(cuda_driver._FUNCTIONS))
def test_functions_take_what_they_are_given(name: str) -> None:
    wanted = signature(name)
    if wanted is None:
        pytest.skip("the bindings have another version of it")
    types = cuda_driver._FUNCTIONS[name]
    assert len(types) == len(wanted), wanted
    for ours, theirs in zip(types, wanted, strict=True):
        pointer = theirs.endswith("*") or theirs in HANDLES
        assert pointer or ours not in (ctypes.c_void_p, ctypes.c_char_p), (ours, theirs)
        # What is left are enumerations, which are ints.
        assert ctypes.sizeof(ours) == (8 if pointer else BYTES.get(theirs, 4)), (ours, theirs)


def test_every_function_has_a_counterpart() -> None:
    missing = [n for n in cuda_driver._FUNCTIONS if signature(n) is None]
    assert set(missing) <= {"cuStreamGetCaptureInfo_v2"}


def same(theirs: Any, ours: Any) -> Any:
    """Our structure over the bytes of theirs."""
    return ours.from_address(int(theirs.getPtr()))


def test_what_a_launch_is_described_by() -> None:
    c = cuda.CUlaunchConfig()
    c.gridDimX, c.gridDimY, c.gridDimZ = 11, 12, 13
    c.blockDimX, c.blockDimY, c.blockDimZ = 21, 22, 23
    c.sharedMemBytes, c.hStream = 31, cuda.CUstream(41)
    a = cuda.CUlaunchAttribute()
    a.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    a.value.clusterDim.x, a.value.clusterDim.y, a.value.clusterDim.z = 51, 52, 53
    c.attrs, c.numAttrs = [a, a], 2
    ours = same(c, cuda_driver.LaunchConfig)
    assert (tuple(ours.grid), tuple(ours.block)) == ((11, 12, 13), (21, 22, 23))
    assert (ours.shared_bytes, ours.stream, ours.count) == (31, 41, 2)
    listed = (cuda_driver.LaunchAttribute * 2).from_address(ours.attributes)
    for x in listed:  # the second one shows the size
        assert x.id == cuda_launch._CLUSTER and tuple(x.dims) == (51, 52, 53)


def test_what_a_kernel_in_a_graph_is_described_by() -> None:
    n = cuda.CUDA_KERNEL_NODE_PARAMS_v2()
    n.gridDimX, n.gridDimY, n.gridDimZ = 11, 12, 13
    n.blockDimX, n.blockDimY, n.blockDimZ = 21, 22, 23
    n.sharedMemBytes, n.func = 31, cuda.CUfunction(41)
    n.kern, n.ctx = cuda.CUkernel(51), cuda.CUcontext(61)
    ours = same(n, cuda_driver.KernelNodeParams)
    assert (tuple(ours.grid), tuple(ours.block)) == ((11, 12, 13), (21, 22, 23))
    assert (ours.shared_bytes, ours.function, ours.kernel, ours.context) == (31, 41, 51, 61)
    fields = [name for name, _ in cuda_driver.KernelNodeParams._fields_]
    assert fields[4:6] == ["params", "extra"] and ctypes.sizeof(ours) == 72


def test_numbers_behind_names() -> None:
    device = cuda.CUdevice_attribute
    for field, name in {
        "major": "COMPUTE_CAPABILITY_MAJOR", "minor": "COMPUTE_CAPABILITY_MINOR",
        "multiprocessors": "MULTIPROCESSOR_COUNT", "clock_khz": "CLOCK_RATE",
        "memory_clock_khz": "MEMORY_CLOCK_RATE", "bus_bits": "GLOBAL_MEMORY_BUS_WIDTH",
        "l2_bytes": "L2_CACHE_SIZE", "pools": "MEMORY_POOLS_SUPPORTED",
    }.items():  # fmt: skip
        assert cuda_device._ATTRIBUTES[field] == getattr(device, f"CU_DEVICE_ATTRIBUTE_{name}")
    assert len(cuda_device._ATTRIBUTES) == 8
    function = cuda.CUfunction_attribute
    most = function.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    large = function.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    assert (most, large) == (cuda_modules._DYNAMIC_SHARED_BYTES, cuda_modules._LARGE_CLUSTERS)
    jit = cuda.CUjit_option
    assert cuda_modules._ERROR_LOG == jit.CU_JIT_ERROR_LOG_BUFFER
    assert cuda_modules._ERROR_LOG_BYTES == jit.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES
    assert cuda_graph._RELAXED == cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    assert cuda_graph._EXTERNAL == cuda.CUevent_record_flags.CU_EVENT_RECORD_EXTERNAL
    assert cuda_device._NON_BLOCKING == cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
    assert cuda_device._NO_TIMING == cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING
    assert cuda_device.LEGACY == cuda.CU_STREAM_LEGACY


def test_numbers_of_errors() -> None:
    def codes(*names: str) -> set[int]:
        return {int(getattr(cuda.CUresult, f"CUDA_ERROR_{n}")) for n in names}

    assert codes("OUT_OF_MEMORY") == {cuda_driver.OUT_OF_MEMORY}
    assert codes("NOT_INITIALIZED") == {cuda_driver.NOT_INITIALIZED}
    assert codes("NOT_READY") == {cuda_driver.NOT_READY}
    assert codes("UNSUPPORTED_PTX_VERSION") == {cuda_driver.OLD_FOR_PTX}
    assert codes("INVALID_IMAGE", "NO_BINARY_FOR_GPU", "INVALID_PTX") == set(
        cuda_driver.WRONG_IMAGE)  # fmt: skip
    assert codes("STREAM_CAPTURE_UNSUPPORTED", "STREAM_CAPTURE_INVALIDATED") == (
        cuda_context.DISTURBED)  # fmt: skip
    assert codes("ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT",
                 "CONTEXT_IS_DESTROYED", "ASSERT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION",
                 "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED",
                 ) <= cuda_driver.LOST  # fmt: skip
    assert not codes("LAUNCH_OUT_OF_RESOURCES", "NOT_FOUND", "INVALID_VALUE") & cuda_driver.LOST


def test_numbers_of_tensor_maps() -> None:
    kinds = cuda.CUtensorMapDataType
    names = {"f16": "FLOAT16", "f32": "FLOAT32", "f64": "FLOAT64", "bf16": "BFLOAT16",
             "i8": "UINT8", "u8": "UINT8", "u16": "UINT16", "u32": "UINT32", "i32": "INT32",
             "u64": "UINT64", "i64": "INT64"}  # fmt: skip
    for kind, number in tensor_maps._TYPES.items():
        assert number == getattr(kinds, f"CU_TENSOR_MAP_DATA_TYPE_{names[kind]}")
    assert tensor_maps._TF32 == kinds.CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
    swizzles = cuda.CUtensorMapSwizzle
    assert tensor_maps._SWIZZLES == {0: swizzles.CU_TENSOR_MAP_SWIZZLE_NONE,
                                     128: swizzles.CU_TENSOR_MAP_SWIZZLE_128B}  # fmt: skip
    promotion = cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B
    assert promotion == tensor_maps._LINES_OF_256
    assert tensor_maps.DESCRIPTOR_BYTES == 128


def test_what_pointers_are_asked_for() -> None:
    ordinal = cuda.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    assert ordinal == device_views._ORDINAL
