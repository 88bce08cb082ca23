"""Names of GPU targets, and this machine's device."""

from __future__ import annotations

import pytest

from tilewright.compiler.codegen.cuda.target import (
    CudaTarget,
    cuda_target,
    is_cuda,
    runs_on,
    translates_to,
)
from tilewright.compiler.errors import TargetError


def test_names() -> None:
    assert cuda_target("cuda:sm_90") == CudaTarget("sm_90")
    assert cuda_target("cuda:sm_89").capability == (8, 9)
    assert str(CudaTarget("sm_80")) == "cuda:sm_80"
    assert all(map(is_cuda, ("cuda", "cuda:sm_90")))
    assert not any(map(is_cuda, ("cpu", "cudalike")))


@pytest.mark.parametrize("name", ["cuda:", "cuda:sm_20", "cuda:x90", "cuda:sm_90a", "cuda:sm_90 "])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(TargetError, match="'cuda:sm_80', 'cuda:sm_89', 'cuda:sm_90'"):
        cuda_target(name)


@pytest.mark.parametrize(
    ("capability", "arch"), [((9, 0), "sm_90"), ((8, 6), "sm_80"), ((12, 0), "sm_90")]
)
def test_this_machines_devices(capability: tuple[int, int], arch: str) -> None:
    """A device runs code for an older one of its family; PTX is translated for newer ones."""

    def told(number: int) -> tuple[int, int]:
        assert number in (0, 3)
        return capability

    assert cuda_target("cuda", told) == CudaTarget(arch, 0)
    assert cuda_target("cuda:3", told) == CudaTarget(arch, 3)


def test_devices_that_do_not_serve() -> None:
    with pytest.raises(TargetError, match="the device is sm_75; kernels need sm_80"):
        cuda_target("cuda", lambda number: (7, 5))
    with pytest.raises(TargetError, match="an architecture is wanted"):
        cuda_target("cuda:1")


def test_what_runs_where() -> None:
    assert runs_on("sm_80", (8, 9)) and not runs_on("sm_89", (8, 6))
    assert not runs_on("sm_90", (12, 0)) and translates_to("sm_90", (12, 0))
    assert runs_on("sm_90a", (9, 0)) and not translates_to("sm_90a", (10, 0))
    assert not translates_to("sm_90", (8, 9))
