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

_Message = ctypes.POINTER(ctypes.c_char_p)


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
    """llvmlite's library once more: other function objects over the same code, without its lock."""
    library = ctypes.CDLL(ffi.lib._name, handle=ffi.lib._handle)
    parse, emit = library.LLVMPY_ParseAssembly, library.LLVMPY_TargetMachineEmitToMemory
    parse.argtypes = [ffi.LLVMContextRef, ctypes.c_char_p, _Message]
    parse.restype = ffi.LLVMModuleRef
    emit.argtypes = [ffi.LLVMTargetMachineRef, ffi.LLVMModuleRef, ctypes.c_int, _Message]
    emit.restype = ffi.LLVMMemoryBufferRef
    return library
