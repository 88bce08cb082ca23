"""Names of GPU targets, and this machine's device."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from tilewright.compiler.codegen.cuda import target
from tilewright.compiler.codegen.cuda.target import CudaTarget, cuda_target, is_cuda
from tilewright.compiler.errors import TargetError


def test_names() -> None:
    assert cuda_target("cuda:sm_90") == CudaTarget("sm_90")
    assert cuda_target("cuda:sm_89").capability == (8, 9)
    assert str(CudaTarget("sm_80")) == "cuda:sm_80"
    assert all(map(is_cuda, ("cuda", "cuda:sm_90")))
    assert not any(map(is_cuda, ("cpu", "cudalike")))


@pytest.mark.parametrize("name", ["cuda:", "cuda:sm_20", "cuda:90", "cuda:sm_90a", "cuda:sm_90 "])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(TargetError, match="'cuda:sm_80', 'cuda:sm_89', 'cuda:sm_90'"):
        cuda_target(name)


class Driver:
    """Answers as NVIDIA's driver does."""

    def __init__(self, capability: tuple[int, int], error: int = 0) -> None:
        self.capability, self.error = dict(zip((75, 76), capability, strict=True)), error

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.error

    def cuDeviceGet(self, device: Any, number: int) -> int:
        assert number == 0
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_int))[0] = self.capability[attribute]
        return 0


@pytest.mark.parametrize(
    ("capability", "arch"), [((9, 0), "sm_90"), ((8, 6), "sm_80"), ((12, 0), "sm_90")]
)
def test_this_machines_device(
    capability: tuple[int, int], arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device runs code for an older one of its family; PTX is translated for newer ones."""
    monkeypatch.setattr(target, "_driver", lambda: Driver(capability))
    assert cuda_target("cuda") == CudaTarget(arch, 0)


def test_devices_that_do_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_driver", lambda: Driver((7, 5)))
    with pytest.raises(TargetError, match="the device is sm_75; kernels need sm_80"):
        cuda_target("cuda")
    monkeypatch.setattr(target, "_driver", lambda: Driver((9, 0), 100))
    with pytest.raises(TargetError, match=r"finds no device .*100.*'cuda:sm_90' compiles without"):
        cuda_target("cuda")


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    target._driver.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(TargetError, match="no NVIDIA driver here"):
        cuda_target("cuda")
