"""What `tilewright doctor` says of GPUs."""

from __future__ import annotations

import pytest

from tilewright.compiler.cli import doctor
from tilewright.compiler.runtime import gpu_code

from .stub import Stub


def gpu() -> dict[str, doctor.Finding]:
    return {f.topic: f for f in doctor._gpu()}


def test_without_a_driver(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    stub.start()
    (found,) = gpu().values()
    assert found.state == "missing" and "no NVIDIA driver" in found.value
    assert "apt-get install nvidia-driver" in found.remedy


def test_with_an_old_driver(stub: Stub) -> None:
    stub.start(version=11040)
    (found,) = gpu().values()
    assert "is of CUDA 11.4" in found.value and "apt-get install" in found.remedy


def test_with_devices(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.start("9.0,7.5")
    load = gpu_code.load

    def noted(kernels: object, *args: object, **more: object) -> object:
        kernels = list(kernels)  # type: ignore[call-overload]
        for k in kernels:
            stub.knows_kernel(k)
        return load(kernels, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("tilewright.compiler.api.gpu.load", noted)
    found = gpu()
    assert found["CUDA driver"].value == "CUDA 12.4"
    assert found["cuda:0"].value == "Stub 9.0, sm_90, 1.0 GiB, code for sm_90"
    assert found["cuda:1"].state == "missing" and "need sm_80" in found["cuda:1"].value
    assert found["GPU code"].state == "ok" and "as one graph" in found["GPU code"].value
    stub.start(fail="kernel:1=700")
    assert gpu()["GPU code"].state == "bad"
