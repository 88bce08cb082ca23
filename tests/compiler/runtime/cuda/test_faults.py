"""Devices that are not there, are of another kind, are full, or break."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import (
    ArchitectureError,
    DeviceError,
    DeviceLostError,
    DeviceMemoryError,
    DriverVersionError,
    LoweringError,
    NoDeviceError,
    TargetError,
)
from tilewright.compiler.runtime import gpu_code

from .nets import A, X, convnet, rows, softmax
from .stub import Stub


def test_no_driver(monkeypatch: pytest.MonkeyPatch, stub: Stub) -> None:
    exe = stub.compile(rows(), "cuda:sm_90")
    monkeypatch.setenv("TILEWRIGHT_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    stub.start()
    with pytest.raises(NoDeviceError, match=r"no NVIDIA driver here .*nowhere.*--gpus all"):
        tw.compile(rows(), target="cuda")
    with pytest.raises(NoDeviceError, match=r"for cuda:sm_90 does not run: .*'cpu' runs here"):
        exe(A)


def test_no_device(stub: Stub) -> None:
    stub.start("")
    with pytest.raises(NoDeviceError, match=r"CUDA_ERROR_NO_DEVICE \(100\).*CUDA_VISIBLE_DEVICES"):
        tw.compile(rows(), target="cuda")


def test_not_so_many_devices(stub: Stub) -> None:
    stub.start("9.0,8.0")
    with pytest.raises(NoDeviceError, match="target='cuda:2': there is only 0 to 1"):
        tw.compile(rows(), target="cuda:2")


def test_a_driver_that_is_too_old(stub: Stub) -> None:
    stub.start(version=11080)
    with pytest.raises(DriverVersionError, match=r"is of CUDA 11\.8: .*CUDA 12\.0 .*525"):
        tw.compile(rows(), target="cuda")


def test_ptx_that_is_too_new_for_the_driver(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gpu_code._ptx

    def newer(*args: Any) -> Any:
        entries, ptx, is_new = made(*args)
        return entries, ptx.replace(".version 8.0", ".version 8.7"), is_new

    monkeypatch.setattr(gpu_code, "_ptx", newer)
    stub.fail("cuModuleLoadDataEx:1=222")
    with pytest.raises(DriverVersionError, match=r"does not take PTX 8\.7: .*CUDA 12\.8 or newer"):
        tw.compile(rows(), target="cuda")


def test_ptx_that_the_driver_refuses(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gpu_code._ptx
    monkeypatch.setattr(gpu_code, "_ptx", lambda *a: (made(*a)[0], "nothing", False))
    with pytest.raises(LoweringError, match=r"refuses the PTX of kernel tw_.*ptxas: no \.target"):
        tw.compile(rows(), target="cuda")


def test_a_device_of_another_architecture(stub: Stub) -> None:
    stub.start("8.6,8.9")
    exe = tw.compile(rows(), target="cuda:sm_90")
    with pytest.raises(TargetError, match=r"are Stub 8\.6 \(sm_86\), Stub 8\.9 \(sm_89\); target="):
        exe(A)
    stub.start("7.5")
    with pytest.raises(TargetError, match="the device is sm_75; kernels need sm_80"):
        tw.compile(rows(), target="cuda")


def test_each_program_runs_where_its_target_says(stub: Stub) -> None:
    stub.start("8.6,9.0,8.9")
    places = {"cuda": (0, "sm_80"), "cuda:2": (2, "sm_89"), "cuda:sm_90": (1, "sm_90"),
              "cuda:sm_89": (2, "sm_89")}  # fmt: skip
    for target, (number, arch) in places.items():
        exe = stub.compile(rows(), target)
        np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
        assert exe.program().device.number == number and exe.target.arch == arch


def test_code_that_does_not_run_on_the_device(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    exe = tw.compile(rows(), target="cuda:sm_90")
    stub.start("8.0")
    monkeypatch.setattr(
        "tilewright.compiler.api.gpu_executable.opened_for", lambda target: _first()
    )
    with pytest.raises(ArchitectureError, match=r"is for sm_90, and does not run on .*'cuda:0'"):
        exe(A)


def _first() -> Any:
    from tilewright.compiler.runtime.cuda_device import device

    return device(0)


def test_a_device_that_is_full(stub: Stub) -> None:
    """A call says so, and the next one works if there is memory again."""
    exe = stub.compile(rows())
    stub.fail("cuMemAlloc_v2:1=2")
    with pytest.raises(
        DeviceMemoryError, match=r"input or output takes 640 B: device 0 .* free"
    ) as e:
        exe(A)
    assert (e.value.wanted_bytes, e.value.least_bytes) == (640, None)
    assert (e.value.free_bytes or 0) > 2**29
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)


def test_a_kernel_that_faults(stub: Stub) -> None:
    """Loses its device, and that alone; all that was on it says so without asking the driver."""
    stub.start("9.0,9.0")
    exe, same, other = (stub.compile(g, t) for g, t in (
        (convnet(), "cuda:0"), (rows(), "cuda:0"), (rows(), "cuda:1")))  # fmt: skip
    same(A)
    stub.fail("kernel:2=700")
    with pytest.raises(
        DeviceLostError, match=r"device 0 .* lost to this process.*ILLEGAL_ADDRESS"
    ) as e:
        exe(X)
    assert e.value.code == 700
    stub.clear()
    for again in (lambda: exe(X), lambda: same(A), lambda: stub.compile(rows(), "cuda:0")):
        with pytest.raises(DeviceLostError, match="TILEWRIGHT_POISON=1"):
            again()
    assert not [line for line in stub.log if "Launch" in line or "Memcpy" in line]
    np.testing.assert_allclose(other(A), softmax(A), 1e-5, 1e-7)
    exe.close()


def test_poison_names_the_kernel_that_faults(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("TILEWRIGHT_POISON", "1")
    exe = stub.compile(convnet())
    stub.fail("kernel:2=719")
    with pytest.raises(DeviceLostError) as e:
        exe(X)
    assert exe._compilation.launches[1].label in str(e.value)


def test_a_fault_outside_of_the_simulator_is_seen(stub: Stub) -> None:
    """The other way round: what the simulator finds becomes a fault of the device."""
    exe = stub.compile(rows())
    kernel, text, entry = stub.kernels[next(iter(stub.kernels))]
    (out,) = (b.name for b in kernel.params if b.role == "out")
    stub.kernels[entry.name] = kernel, text.replace(f"{out}[", f"{out}[999 + "), entry
    with pytest.raises(DeviceLostError, match="719"):
        exe(A)
    assert "is outside of its 160 elements" in str(stub.errors.pop())


def test_codes_without_a_name(stub: Stub) -> None:
    exe = stub.compile(rows())
    stub.fail("cuMemHostAlloc:1=12345")
    with pytest.raises(DeviceError, match="refuses cuMemHostAlloc: error 12345") as e:
        exe(A)
    assert e.value.code == 12345
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)


@pytest.mark.parametrize(
    "call",
    ["cuMemcpyHtoDAsync_v2", "cuStreamBeginCapture_v2", "cuGraphLaunch", "cuEventRecord",
     "cuMemcpyDtoHAsync_v2", "cuEventSynchronize", "cuStreamCreate", "cuEventCreate"],
)  # fmt: skip
def test_whatever_fails_once_the_next_call_works(stub: Stub, call: str) -> None:
    exe = stub.compile(rows())
    exe.program()._state.idle.clear()
    stub.fail(f"{call}:1=1")
    try:
        exe(A)
    except DeviceError as e:
        assert call.removesuffix("_v2") in str(e)
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    stub.fail("")
    np.testing.assert_allclose(exe(A * 2), softmax(A * 2), 1e-5, 1e-7)
    exe.close()
    assert stub.used() == 0


def test_a_capture_that_another_thread_ends_is_tried_again(stub: Stub) -> None:
    """Whoever waits for the whole device while a stream is captured spoils the capture. That is no
    reason to launch kernels one by one for ever; a driver that never captures is."""
    exe = stub.compile(rows())
    stub.fail("cuLaunchKernel:1=901")
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    assert not [line for line in stub.log if line.startswith("cuGraphLaunch")]
    np.testing.assert_allclose(exe(A), softmax(A), 1e-5, 1e-7)
    assert [line for line in stub.log if line.startswith("cuGraphLaunch")]
    assert exe.program().how == "one graph"
