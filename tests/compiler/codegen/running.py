"""Compiles Kernel IR for this machine and runs it on memory with fences around it."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tilewright.compiler.codegen.cpu.assemble import assembly, build_object
from tilewright.compiler.codegen.cpu.link import link
from tilewright.compiler.codegen.cpu.lower import module_text, phase_symbols
from tilewright.compiler.codegen.cpu.target import CpuTarget, host
from tilewright.compiler.kernels.ir import Buffer, Kernel, Phase, Stmt, Store, loop, seq
from tilewright.ops.expr import Expr, var
from tilewright.ops.types import DType

Array = np.ndarray[Any, Any]

PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)


class Fenced:
    """`elements` of a dtype between two pages without access: one byte too far is a crash.

    at_end: the last byte borders on the page behind, else the first on the page before.
    """

    def __init__(self, dtype: Any, elements: int, at_end: bool = True) -> None:
        kind, page = np.dtype(dtype), mmap.PAGESIZE
        size = elements * kind.itemsize
        inner = max(1, -(-size // page)) * page
        self._map = mmap.mmap(-1, inner + 2 * page)
        self.raw = np.frombuffer(self._map, np.uint8)
        base = self.raw.ctypes.data
        for where in (base, base + page + inner):
            if _libc.mprotect(ctypes.c_void_p(where), ctypes.c_size_t(page), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        start = page + (inner - size if at_end else 0)
        self.array: Array = self.raw[start : start + size].view(kind)


def run(kernel: Kernel, arrays: Iterable[Array | None], at_end: bool = True) -> list[Array]:
    """The contents of all parameters after the kernel has run on fenced copies of `arrays` (None:
    filled with 0xA5). The same object given twice is the same memory."""
    fences: dict[int, Fenced] = {}
    memory: list[Fenced] = []
    for buffer, given in zip(kernel.params, arrays, strict=True):
        fence = fences.get(id(given)) if given is not None else None
        if fence is None:
            fence = Fenced(buffer.dtype.numpy, buffer.elements, at_end)
            if given is None:
                fence.array.view(np.uint8).fill(0xA5)
            else:
                assert (given.size, given.dtype) == (buffer.elements, buffer.dtype.numpy), buffer
                fence.array[:] = given.reshape(-1)
                fences[id(given)] = fence
        memory.append(fence)
    table = (ctypes.c_void_p * len(memory))(*[m.array.ctypes.data for m in memory])
    names = phase_symbols(kernel)
    linked = link([build_object(text_for(kernel, host()), host())], names)
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
    for phase, name in zip(kernel.phases, names, strict=True):
        function = kind(linked.address(name))
        for item in range(phase.items):
            function(ctypes.addressof(table), item)
    return [m.array.copy() for m in memory]


def text_for(kernel: Kernel, target: CpuTarget) -> str:
    return module_text(kernel, target.arithmetic)


def listing(kernel: Kernel, target: CpuTarget) -> str:
    """The assembly of a kernel."""
    return assembly(text_for(kernel, target), target)


def kernel_of(params: Iterable[Buffer], *body: Stmt | Iterable[Stmt]) -> Kernel:
    """A kernel of one phase with one item."""
    phase = Phase(1, var("item", 1), seq(*body))
    return Kernel("test", 1, (), tuple(params), (phase,))


def elementwise(
    fn: Callable[..., Expr], arrays: Iterable[Array], out: DType, *, kinds: Iterable[DType],
    lanes: int, lo: int = 0,
) -> Kernel:  # fmt: skip
    """y[i] = fn(x0[i], x1[i], ...) from element `lo` on; in lanes, or serially if lanes is 0."""
    n = max(a.size for a in arrays)
    inputs = [Buffer(f"x{k}", d, n, "in") for k, d in enumerate(kinds)]
    y, i = Buffer("y", out, n, "out"), var("i", n)
    body = Store(y, i, fn(*(x[i] for x in inputs)))
    how = {"kind": "vector", "lanes": lanes} if lanes else {}
    return kernel_of((*inputs, y), loop(i, (body,), lo=lo, **how))  # type: ignore[arg-type]


def apply_native(
    fn: Callable[..., Expr], *arrays: Array, out: DType, kinds: Iterable[DType], lanes: int = 16,
) -> Array:  # fmt: skip
    """fn over equally long arrays, compiled."""
    kernel = elementwise(fn, arrays, out, kinds=kinds, lanes=lanes)
    return run(kernel, [*arrays, None])[-1]
