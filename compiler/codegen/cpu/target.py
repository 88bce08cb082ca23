"""What the code generator must know about a CPU: instruction set, vector width, registers."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cache
from typing import Final

import llvmlite
import llvmlite.binding as llvm

from ...errors import TargetError
from .llvm_text import Arithmetic

CPU_VARIABLE: Final = "TILEWRIGHT_CPU"
"""Names a target of `NAMED` that `host()` uses instead of everything this machine can do."""


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """One instruction set to generate code for.

    `features` is LLVM's flat list ("+avx2,-avx512f,..."); the vector width and the number of vector
    registers follow from it and from nothing else.
    """

    triple: str
    cpu: str
    features: str
    vector_bits: int
    vector_registers: int

    @classmethod
    def of(cls, triple: str, cpu: str, features: str) -> CpuTarget:
        """The target with its vector unit read off the architecture and the features."""
        bits, registers = _vector_unit(_architecture(triple), _enabled(features))
        return cls(triple, cpu, features, bits, registers)

    @property
    def architecture(self) -> str:
        """ "x86_64", "aarch64", ..."""
        return _architecture(self.triple)

    def lanes(self, dtype_bytes: int) -> int:
        """How many elements of `dtype_bytes` bytes one vector register holds."""
        return self.vector_bits // (8 * dtype_bytes)

    @property
    def tile_registers(self) -> int:
        """Vector registers for a tile of sums, the vectors beside it and one scalar. AArch64 reads
        no operand from memory: scalars of the steps ahead take registers, too."""
        return self.vector_registers - (3 if self.architecture == "aarch64" else 0)

    @property
    def halves_vectors(self) -> bool:
        """Whether instructions on whole vectors take two passes through units of half the width."""
        return self.vector_bits == 512 and self.cpu in _HALVING

    @property
    def has_fma(self) -> bool:
        """Whether multiply-adds in one rounding are instructions, not calls into the C library."""
        return self.architecture == "aarch64" or "fma" in _enabled(self.features)

    @property
    def arithmetic(self) -> Arithmetic:
        """What kernels may be written with."""
        return Arithmetic(self.has_fma, {"avx512f", "avx512vl"} <= _enabled(self.features))

    @property
    def runs_here(self) -> bool:
        """Whether code for this target can be executed by this process."""
        native = _native()
        if self.architecture != native.architecture:
            return False
        return _enabled(self.features) <= _enabled(native.features)

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """Everything that decides which bytes come out of one LLVM text, as named fields."""
        return {
            "triple": self.triple,
            "cpu": self.cpu,
            "features": self.features,
            "vector_bits": self.vector_bits,
            "vector_registers": self.vector_registers,
            "llvm": ".".join(map(str, llvm.llvm_version_info)),
            "llvmlite": llvmlite.__version__,
        }

    def machine(self) -> llvm.TargetMachine:
        """LLVM's code generator for this target, one per target and thread: no two threads may use
        one at a time.

        Position-independent code in the small code model: the linker (`link.py`) lays an object out
        in one block and adds stubs for what lies farther away, so constants are one load away
        instead of an address build and a load.
        """
        found = _machines.made.get(self)
        if found is None:
            found = _machines.made[self] = _machine(self)
        return found


def _architecture(triple: str) -> str:
    first = triple.split("-", 1)[0]
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(first, first)


def _enabled(features: str) -> frozenset[str]:
    return frozenset(f[1:] for f in features.split(",") if f.startswith("+"))


def _vector_unit(architecture: str, enabled: frozenset[str]) -> tuple[int, int]:
    """(bits, registers) of the widest vector registers that generated code may use."""
    if architecture == "aarch64":
        return 128, 32  # scalable vectors (SVE) are not used: their width is unknown here
    if "avx512f" in enabled:
        return 512, 32
    if "avx" in enabled:
        return 256, 16
    return 128, 16


_HALVING: Final = frozenset({"znver4"})
"""What LLVM calls the CPUs whose vector registers hold 512 bits, and whose units take 256."""

_X86: Final = "x86_64-unknown-linux-gnu"
_ARM: Final = "aarch64-unknown-linux-gnu"
_V2: Final = "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+sahf"
_V3: Final = _V2 + ",+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+movbe"
_V4: Final = _V3 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"

NAMED: Final[dict[str, CpuTarget]] = {
    "x86-64-avx512": CpuTarget.of(_X86, "skylake-avx512", _V4),
    "x86-64-avx2": CpuTarget.of(_X86, "haswell", _V3),
    "x86-64-sse": CpuTarget.of(_X86, "nehalem", _V2),
    "aarch64-neon": CpuTarget.of(_ARM, "generic", "+neon"),
}


def host() -> CpuTarget:
    """The CPU of this machine, or the lesser one that the environment variable asks for.

    Raises TargetError if TILEWRIGHT_CPU names no known target, or one this machine cannot run.
    """
    return _host(os.environ.get(CPU_VARIABLE, ""))


def named(name: str) -> CpuTarget:
    """A CPU of `NAMED`, for cross-compilation. Raises TargetError for any other name."""
    try:
        return NAMED[name]
    except KeyError:
        raise TargetError(f"unknown CPU {name!r}; known are {', '.join(NAMED)}") from None


@cache
def _initialise_native() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


@cache
def _initialise_all() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


@cache
def _native() -> CpuTarget:
    """This machine with all it can do."""
    _initialise_native()
    triple = llvm.get_process_triple()
    try:
        features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot detect features on this system: the architecture's baseline
        features = ""
    if not _enabled(features) and _architecture(triple) == "aarch64":
        features = "+neon"
    return CpuTarget.of(triple, llvm.get_host_cpu_name(), features)


@cache
def _host(wanted: str) -> CpuTarget:
    native = _native()
    if not wanted:
        return native
    target = named(wanted)
    if not target.runs_here:
        missing = sorted(_enabled(target.features) - _enabled(native.features))
        same = target.architecture == native.architecture
        reason = f"it lacks {', '.join(missing)}" if same else f"it is {native.architecture}"
        raise TargetError(
            f"{CPU_VARIABLE}={wanted}: this machine ({native.cpu}) cannot run that code, {reason};"
            f" unset {CPU_VARIABLE} to use what the machine has"
        )
    return CpuTarget.of(native.triple, target.cpu, target.features)


class _Machines(threading.local):
    """A thread's code generators."""

    def __init__(self) -> None:
        self.made: dict[CpuTarget, llvm.TargetMachine] = {}


_machines: Final = _Machines()


def _machine(target: CpuTarget) -> llvm.TargetMachine:
    _initialise_native()
    if target.architecture != _native().architecture:
        _initialise_all()
    try:
        family = llvm.Target.from_triple(target.triple)
        return family.create_target_machine(
            cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="default"
        )
    except RuntimeError as error:
        raise TargetError(f"LLVM has no code generator for {target.triple}: {error}") from None
