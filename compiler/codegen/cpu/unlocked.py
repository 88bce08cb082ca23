"""The calls into LLVM that take long, without llvmlite's lock, which admits one thread at a time.

LLVM needs no such lock between threads that share neither a context nor a target machine, and
nobody here does (`assemble.py`, `target.py`): so kernels are compiled side by side. Everything else
is asked of llvmlite itself.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite.binding import ffi


def parse(text: str, context: llvm.ContextRef) -> llvm.ModuleRef:
    """As llvmlite's `parse_assembly`. Raises RuntimeError with what LLVM says of a bad text."""
    message = ctypes.c_char_p()
    made = _library().LLVMPY_ParseAssembly(context, text.encode(), ctypes.byref(message))
    if not made:
        raise _failed(message)
    return llvm.ModuleRef(made, context)


def emit(machine: llvm.TargetMachine, module: llvm.ModuleRef, *, listing: bool = False) -> bytes:
    """The object file of a module, or its assembly listing in UTF-8. Raises RuntimeError."""
    message = ctypes.c_char_p()
    made = _library().LLVMPY_TargetMachineEmitToMemory(
        machine, module, not listing, ctypes.byref(message)
    )
    if not made:
        raise _failed(message)
    start, length = ffi.lib.LLVMPY_GetBufferStart(made), ffi.lib.LLVMPY_GetBufferSize(made)
    image = ctypes.string_at(start, length)
    ffi.lib.LLVMPY_DisposeMemoryBuffer(made)
    return image


def _failed(message: ctypes.c_char_p) -> RuntimeError:
    """What LLVM says, whose memory it wants back."""
    said = (message.value or b"no reason given").decode(errors="replace")
    ffi.lib.LLVMPY_DisposeString(message)
    return RuntimeError(said)


@cache
def _library() -> Any:
    """llvmlite's library once more: other function objects over the same code, without its lock,
    which take and give what llvmlite says of its own: a version with others is an error, no crash.
    """
    library = ctypes.CDLL(ffi.lib._name, handle=ffi.lib._handle)
    for name in ("LLVMPY_ParseAssembly", "LLVMPY_TargetMachineEmitToMemory"):
        ours, its = getattr(library, name), getattr(ffi.lib, name)
        ours.argtypes, ours.restype = its.argtypes, its.restype
    return library
