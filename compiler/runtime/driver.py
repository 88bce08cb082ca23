"""The native loop that runs a program: one call per inference, whatever the number of kernels."""

from __future__ import annotations

import ctypes
from functools import cache

from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import link
from ..codegen.cpu.target import host
from ..store import Store


class Frame(ctypes.Structure):
    """What one call runs: `count` steps, on a pool. `wake` is null where no step has two items."""

    _fields_ = [
        ("pool", ctypes.c_void_p),
        ("run", ctypes.c_void_p),  # void run(pool, function, table, items)
        ("wake", ctypes.c_void_p),  # void wake(pool)
        ("steps", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    ]


# struct Step { ptr function; ptr table; i64 items; }
DRIVER = """\
define void @tilewright_run(ptr %frame) nounwind {
entry:
  %run.at = getelementptr ptr, ptr %frame, i64 1
  %wake.at = getelementptr ptr, ptr %frame, i64 2
  %steps.at = getelementptr ptr, ptr %frame, i64 3
  %count.at = getelementptr ptr, ptr %frame, i64 4
  %pool = load ptr, ptr %frame, align 8
  %run = load ptr, ptr %run.at, align 8
  %wake = load ptr, ptr %wake.at, align 8
  %steps = load ptr, ptr %steps.at, align 8
  %count = load i64, ptr %count.at, align 8
  %sleepy = icmp ne ptr %wake, null
  br i1 %sleepy, label %rouse, label %start
rouse:
  call void %wake(ptr %pool)
  br label %start
start:
  %any = icmp sgt i64 %count, 0
  br i1 %any, label %loop, label %done
loop:
  %k = phi i64 [0, %start], [%next, %after]
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
        target = host()
        key = [("kind", "driver"), ("llvm text", DRIVER), *target.fingerprint.items()]
        image = Store().get_or_build(key, lambda: build_object(DRIVER, target))
        self.linked = link([image], ["tilewright_run"])
        self.run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.linked.address("tilewright_run"))


@cache
def driver() -> _Driver:
    """The driver, built on first use where it is not stored (a few milliseconds)."""
    return _Driver()
