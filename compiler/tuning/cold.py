"""Caches as a kernel finds them in a model: its weights in main memory, its inputs just written.

Between two inferences a model's other weights go through the caches, so a kernel's own are read
from memory each time, while the launch before has left its inputs in the caches. A kernel that is
simply called again finds its weights in the nearest cache that holds them, and configs that differ
in how well they read weights look equal.

A kernel that reads what a call was given is among the first of the call. Nobody has just written
that, and the memory of its results was last used in the call before, so it finds nothing in the
caches at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np

from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import Linked, link
from ..codegen.cpu.target import host
from ..inspect.machine import cache_sizes
from ..store import Store

FLUSH: Final = """\
declare void @llvm.x86.sse2.clflush(ptr)
declare void @llvm.x86.sse2.mfence()

define void @tilewright_flush(ptr %from, i64 %bytes) nounwind {
entry:
  br label %next
next:
  %at = phi i64 [ 0, %entry ], [ %after, %line ]
  %some = icmp slt i64 %at, %bytes
  br i1 %some, label %line, label %done
line:
  %p = getelementptr i8, ptr %from, i64 %at
  call void @llvm.x86.sse2.clflush(ptr %p)
  %after = add i64 %at, 64
  br label %next
done:
  call void @llvm.x86.sse2.mfence()
  ret void
}
"""


class _Flush:
    """Drops the cache lines of a stretch of memory, which x86 has an instruction for."""

    def __init__(self) -> None:
        target = host()
        key = [("kind", "flush"), ("llvm text", FLUSH), *target.fingerprint.items()]
        image = Store().get_or_build(key, lambda: build_object(FLUSH, target))
        self._linked: Linked = link([image], ["tilewright_flush"])
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._call = kind(self._linked.address("tilewright_flush"))

    def __call__(self, address: int, nbytes: int) -> None:
        self._call(address, nbytes)


class _Evict:
    """Where programs may not drop lines, or it is not known how: reads so much else that nothing is
    left of what was there before."""

    def __init__(self) -> None:
        largest = max(size for _, size, _ in cache_sizes())
        self._other = np.ones(2 * largest // 8, np.int64)

    def __call__(self, address: int, nbytes: int) -> None:
        self._other.sum()


@cache
def flush() -> Callable[[int, int], None]:
    """A function of an address and a number of bytes, which brings them to main memory."""
    return _Flush() if host().architecture == "x86_64" else _Evict()
