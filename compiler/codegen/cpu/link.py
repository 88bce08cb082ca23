"""Object code -> callable addresses in this process.

Each call makes a linker instance of its own (LLVM's ORC with JITLink), so equal symbol names in two
links never meet, an unknown symbol is an error and not the end of the process, and everything is
unmapped together.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

import llvmlite.binding as llvm

from ...errors import LoweringError
from .target import host

_LIBRARY: Final = "kernels"
_NONE: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Linked:
    """Machine code mapped into this process; its addresses die with the last reference to it."""

    addresses: Mapping[str, int]
    _owners: tuple[object, ...]

    def address(self, name: str) -> int:
        """Where the exported symbol `name` lies. Raises LoweringError if it was not exported."""
        try:
            return self.addresses[name]
        except KeyError:
            known = ", ".join(sorted(self.addresses)[:8])
            raise LoweringError(f"no symbol {name!r} was linked; exported are {known}") from None


def link(
    objects: Sequence[bytes], exports: Collection[str], symbols: Mapping[str, int] = _NONE
) -> Linked:
    """Link `objects` with each other, `symbols` (name -> address) and the C and math libraries.

    Only `exports` and what they reach are linked. Raises LoweringError if an object is damaged, two
    of them define one symbol, or a symbol is nowhere to be found (LLVM prints which to stderr).
    """
    _initialise()
    try:
        jit = llvm.create_lljit_compiler(use_jit_link=True)
        builder = llvm.JITLibraryBuilder()
        for image in objects:
            builder.add_object_img(image)
        for name, address in symbols.items():
            builder.import_symbol(name, address)
        for name in exports:
            builder.export_symbol(name)
        library = builder.add_current_process().link(jit, _LIBRARY)
    except RuntimeError as error:
        raise LoweringError(f"linking {len(objects)} objects failed: {error}") from None
    # Order matters to nobody: the library keeps what it needs of the linker alive.
    return Linked(MappingProxyType({name: library[name] for name in exports}), (library, jit))


@cache
def _initialise() -> None:
    host().machine()
    # An interpreter linked without libm would leave expf, tanhf, ... unresolved: load it for all.
    # libgcc_s has the conversions to and from half floats where the CPU has no instruction.
    if sys.platform.startswith("linux"):
        for library in ("libm.so.6", "libgcc_s.so.1"):
            try:
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            except OSError:  # musl keeps libm inside libc, which is always there
                continue
