"""The native loop that runs a program: one call per inference, whatever the number of kernels."""

from __future__ import annotations

import ctypes
from functools import cache

from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import link
from ..codegen.cpu.target import host

# struct Step { ptr function; ptr table; i64 items; }
DRIVER = """\
define void @tilewright_run(ptr %pool, ptr %run, ptr %steps, i64 %count) nounwind {
entry:
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %loop, label %done
loop:
  %k = phi i64 [0, %entry], [%next, %after]
  %step = getelementptr [3 x i64], ptr %steps, i64 %k
  %table.at = getelementptr i64, ptr %step, i64 1
  %items.at = getelementptr i64, ptr %step, i64 2
  %function = load ptr, ptr %step, align 8
  %table = load ptr, ptr %table.at, align 8
  %items = load i64, ptr %items.at, align 8
  %single = icmp eq i64 %items, 1
  br i1 %single, label %alone, label %shared
alone:
  call void %function(ptr %table, i64 0)
  br label %after
shared:
  call void %run(ptr %pool, ptr %function, ptr %table, i64 %items)
  br label %after
after:
  %next = add i64 %k, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


class _Driver:
    def __init__(self) -> None:
        self.linked = link([build_object(DRIVER, host())], ["tilewright_run"])
        kind = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
        )
        self.run = kind(self.linked.address("tilewright_run"))


@cache
def driver() -> _Driver:
    """The driver, built on first use (a few milliseconds)."""
    return _Driver()
