"""PTX -> machine code by ptxas or nvJitLink, and that as text by nvdisasm: all of them optional,
none asks for a device. Where no assembler is, the driver assembles PTX when it loads it.

ptxas, where it is, sees a kernel as a whole program. nvJitLink makes code that could be linked with
other code: divisions are calls there, which keep products of warp groups from overlapping, and
threads cannot hand registers to others. What it loses so stands in its log.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from ...errors import LoweringError, TargetError
from .target import CudaTarget
from .toolkit import INSTALL, part

_PTX: Final = 2  # nvJitLinkInputType
_FUNCTION: Final = re.compile(
    r"Function properties for (?P<name>\S+)[^\n]*\n\D*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_SHARED: Final = re.compile(r"(\d+) bytes smem")
_TARGET: Final = re.compile(r"^\.target (sm_\w+)", re.MULTILINE)
_LOSS: Final = re.compile(r"\(C\d+\) Potential Performance Loss[^\n]*")
_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Usage:
    """What one phase of a kernel takes of a multiprocessor: registers of a thread, bytes of shared
    memory of a block, and bytes of a thread in local memory: what did not fit in registers, and
    arrays whose indices are not known."""

    registers: int
    shared_bytes: int
    local_bytes: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """Machine code for one architecture, and what every entry takes. losses: what ptxas says makes
    it slower than it could be."""

    cubin: bytes
    usage: Mapping[str, Usage]
    losses: tuple[str, ...] = ()


def assembler() -> Path | None:
    """What makes machine code on this machine, if anything does."""
    return part("ptxas") or part("nvJitLink")


def can_assemble() -> bool:
    """Whether an assembler is here."""
    return assembler() is not None


def assembled(ptx: str, target: CudaTarget) -> Assembled:
    """Raises TargetError where no assembler is, LoweringError where it refuses the PTX."""
    exact = _TARGET.search(ptx)
    arch = exact[1] if exact else target.arch
    tool = part("ptxas")
    cubin, log = _by_ptxas(tool, ptx, arch) if tool else _by_library(ptx, arch)
    return Assembled(cubin, usage_of(log), tuple(_LOSS.findall(log)))


def _by_ptxas(tool: Path, ptx: str, arch: str) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        done = subprocess.run([tool, f"-arch={arch}", "-O3", "-v", "-o", made, source], text=True,
                              capture_output=True, check=False, timeout=_SECONDS)  # fmt: skip
        if done.returncode:
            raise LoweringError(f"ptxas refuses a kernel: {done.stderr.strip()[:400]}")
        return made.read_bytes(), done.stderr


def _by_library(ptx: str, arch: str) -> tuple[bytes, str]:
    library = _library()
    options = [f"-arch={arch}", "-O3", "-Xptxas=-v"]
    handle = ctypes.c_void_p()
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    _check(library.nvJitLinkCreate(ctypes.byref(handle), len(options), given), library, None)
    try:
        text = ptx.encode()
        _check(library.nvJitLinkAddData(handle, _PTX, text, len(text), b"kernel"), library, handle)
        _check(library.nvJitLinkComplete(handle), library, handle)
        cubin = _bytes(library, "LinkedCubin", handle)
        log = _bytes(library, "InfoLog", handle).decode(errors="replace")
    finally:
        library.nvJitLinkDestroy(ctypes.byref(handle))
    return cubin, log


def usage_of(log: str) -> dict[str, Usage]:
    """What ptxas says of every function."""
    found = {}
    for m in _FUNCTION.finditer(log):
        shared = _SHARED.search(m["rest"])
        local = max(int(m["stack"]), int(m["stores"]), int(m["loads"]))
        found[m["name"]] = Usage(int(m["registers"]), int(shared[1]) if shared else 0, local)
    return found


def disassembly(cubin: bytes) -> str:
    """The instructions, without the offsets of the file. Raises TargetError where nvdisasm is
    missing or fails."""
    tool = part("nvdisasm")
    if tool is None:
        raise TargetError(f"machine code of GPUs is shown by nvdisasm, which is missing: {INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=False,
                              timeout=_SECONDS)  # fmt: skip
    if done.returncode:
        raise TargetError(f"nvdisasm fails: {done.stderr.strip()[:200]}")
    return done.stdout


@cache
def _library() -> ctypes.CDLL:
    path = part("nvJitLink")
    if path is None:
        raise TargetError(f"machine code of GPUs is made by nvJitLink, which is missing: {INSTALL}")
    library = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.nvJitLinkCreate.argtypes = [pointer, ctypes.c_uint32, pointer]
    library.nvJitLinkAddData.argtypes = [
        pointer, ctypes.c_int, ctypes.c_char_p, size, ctypes.c_char_p
    ]  # fmt: skip
    library.nvJitLinkComplete.argtypes = [pointer]
    library.nvJitLinkDestroy.argtypes = [pointer]
    for what in ("LinkedCubin", "InfoLog", "ErrorLog"):
        getattr(library, f"nvJitLinkGet{what}Size").argtypes = [pointer, pointer]
        getattr(library, f"nvJitLinkGet{what}").argtypes = [pointer, pointer]
    return library


def _bytes(library: ctypes.CDLL, what: str, handle: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    code = getattr(library, f"nvJitLinkGet{what}Size")(handle, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    code = code or getattr(library, f"nvJitLinkGet{what}")(handle, buffer)
    if code:
        raise TargetError(f"nvJitLink does not hand out its {what} (error {code})")
    return buffer.raw[: size.value]


def _check(code: int, library: ctypes.CDLL, handle: ctypes.c_void_p | None) -> None:
    if code:
        log = "" if handle is None else _bytes(library, "ErrorLog", handle).decode(errors="replace")
        raise LoweringError(f"nvJitLink refuses a kernel (error {code}): {log.strip()[:400]}")
