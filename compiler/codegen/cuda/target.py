"""Which NVIDIA GPU code is made for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...errors import TargetError

KNOWN: Final = ("sm_80", "sm_89", "sm_90")
PTX_FEATURES: Final = "+ptx80"
"""The PTX that drivers from CUDA 12.0 on take."""
ALIGNMENT: Final = 16
"""Bytes that the address of every buffer of a kernel is a multiple of: those of the widest access.
"""
_NAME: Final = re.compile(r"cuda(?::(\w+))?\Z")


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """An architecture such as "sm_90". device: the number of the device of this machine that is to
    run it; None for code that is looked at, or run by the first device that can."""

    arch: str
    device: int | None = None

    @property
    def capability(self) -> tuple[int, int]:
        """(9, 0) for sm_90."""
        digits = self.arch.removeprefix("sm_").removesuffix("a")
        return int(digits[:-1]), int(digits[-1])

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """What code was made for, as named fields."""
        return {"gpu": self.arch}

    def __str__(self) -> str:
        return f"cuda:{self.arch}"


def is_cuda(name: str) -> bool:
    """Whether a `target` argument means a GPU."""
    return name == "cuda" or name.startswith("cuda:")


def cuda_target(
    name: str, capability: Callable[[int], tuple[int, int]] | None = None
) -> CudaTarget:  # fmt: skip
    """What "cuda" (this machine's first device), "cuda:1" (its second one) or "cuda:sm_90" (an
    architecture, with or without a device) means.

    capability: tells that of a device by its number, and raises TargetError where there is none.
    Raises TargetError.
    """
    found = _NAME.match(name)
    if found is None or not (found[1] is None or found[1].isdecimal() or found[1] in KNOWN):
        listed = ", ".join(f"'cuda:{arch}'" for arch in KNOWN)
        raise TargetError(f"target={name!r} is not available; GPU targets are 'cuda', 'cuda:1' and"
                          f" so on for this machine's devices, {listed}")  # fmt: skip
    if found[1] in KNOWN:
        return CudaTarget(found[1])
    if capability is None:
        raise TargetError(f"target={name!r} is a device, and an architecture is wanted here")
    number = int(found[1] or 0)
    return CudaTarget(best_arch(capability(number)), number)


def best_arch(capability: tuple[int, int]) -> str:
    """The newest known architecture whose code a device runs, or has translated. Raises
    TargetError."""
    known = [arch for arch in KNOWN if translates_to(arch, capability)]
    if not known:
        raise TargetError(f"target='cuda': the device is sm_{capability[0]}{capability[1]}; kernels"
                          f" need {KNOWN[0]} or newer")  # fmt: skip
    return max(known, key=lambda arch: CudaTarget(arch).capability)


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether a device runs machine code of an architecture: of its own family, as new or older;
    code with features of one architecture only ("sm_90a") there alone."""
    major, minor = CudaTarget(arch).capability
    if arch.endswith("a"):
        return (major, minor) == capability
    return major == capability[0] and minor <= capability[1]


def translates_to(arch: str, capability: tuple[int, int]) -> bool:
    """Whether the driver makes machine code for a device of an architecture's PTX."""
    own = CudaTarget(arch).capability
    return own == capability if arch.endswith("a") else own <= capability
