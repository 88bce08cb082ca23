"""The native side of a call: one per inference, whatever the number of arrays and kernels.

`enter` takes the caller's arrays as they are, a tuple of numpy objects: it looks whether each input
is what the program was compiled for, writes the addresses of all arrays where kernels look for
them, and runs the steps. Where an array is anything else it does nothing and says so, and Python
finds out what is wrong, or makes a copy that fits.
"""

from __future__ import annotations

import ctypes
from dataclasses import asdict
from functools import cache
from typing import Any, Final

from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import Linked, link
from ..codegen.cpu.target import host
from ..store import Store
from .fields import READABLE, Fields, fields


class Frame(ctypes.Structure):
    """What one call runs: `count` steps, on a pool. `wake` is null where no step has two items."""

    _fields_ = [
        ("pool", ctypes.c_void_p),
        ("run", ctypes.c_void_p),  # void run(pool, function, table, items)
        ("wake", ctypes.c_void_p),  # void wake(pool)
        ("steps", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    ]


class Expected(ctypes.Structure):
    """The type of an input: dtype is the address of numpy's object."""

    _fields_ = [
        ("dtype", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class Slot(ctypes.Structure):
    """An address that changes from call to call: `inner` bytes behind the start of an array goes to
    entry `entry` of a table."""

    _fields_ = [("entry", ctypes.c_int64), ("array", ctypes.c_int64), ("inner", ctypes.c_int64)]


class Entry(ctypes.Structure):
    """What `enter` needs of a context: what inputs must be, which addresses to write, and what to
    run then. type: the address of the class of plain arrays."""

    _fields_ = [
        ("frame", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("expected", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("slots", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("type", ctypes.c_void_p),
    ]


# struct Step { ptr function; ptr table; i64 items; }
RUN: Final = """\
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


# Returns whether the program ran. %objects: a tuple of arrays, inputs and then outputs.
ENTER: Final = """
define i64 @tilewright_enter(ptr %call, ptr %objects) nounwind {
begin:
  %table.at = getelementptr ptr, ptr %call, i64 1
  %expected.at = getelementptr ptr, ptr %call, i64 2
  %inputs.at = getelementptr ptr, ptr %call, i64 3
  %slots.at = getelementptr ptr, ptr %call, i64 4
  %count.at = getelementptr ptr, ptr %call, i64 5
  %type.at = getelementptr ptr, ptr %call, i64 6
  %frame = load ptr, ptr %call, align 8
  %table = load ptr, ptr %table.at, align 8
  %expected = load ptr, ptr %expected.at, align 8
  %inputs = load i64, ptr %inputs.at, align 8
  %slots = load ptr, ptr %slots.at, align 8
  %count = load i64, ptr %count.at, align 8
  %type = load ptr, ptr %type.at, align 8
  %arrays = getelementptr i8, ptr %objects, i64 $items$
  br label %input

input:                                  ; is the next input as expected?
  %k = phi i64 [0, %begin], [%k.next, %fits]
  %k.more = icmp slt i64 %k, %inputs
  br i1 %k.more, label %look, label %slot
look:
  %array.at = getelementptr ptr, ptr %arrays, i64 %k
  %array = load ptr, ptr %array.at, align 8
  %of.at = getelementptr i8, ptr %array, i64 $type$
  %of = load ptr, ptr %of.at, align 8
  %plain = icmp eq ptr %of, %type
  br i1 %plain, label %plain.array, label %other
plain.array:
  %want = getelementptr [3 x i64], ptr %expected, i64 %k
  %want.rank.at = getelementptr i64, ptr %want, i64 1
  %want.dims.at = getelementptr i64, ptr %want, i64 2
  %want.dtype = load ptr, ptr %want, align 8
  %want.rank = load i64, ptr %want.rank.at, align 8
  %want.dims = load ptr, ptr %want.dims.at, align 8
  %dtype.at = getelementptr i8, ptr %array, i64 $dtype$
  %flags.at = getelementptr i8, ptr %array, i64 $flags$
  %rank.at = getelementptr i8, ptr %array, i64 $rank$
  %dims.at = getelementptr i8, ptr %array, i64 $dims$
  %dtype = load ptr, ptr %dtype.at, align 8
  %flags = load i32, ptr %flags.at, align 4
  %rank.32 = load i32, ptr %rank.at, align 4
  %dims = load ptr, ptr %dims.at, align 8
  %rank = sext i32 %rank.32 to i64
  %readable.flags = and i32 %flags, $readable$
  %readable = icmp eq i32 %readable.flags, $readable$
  %same.dtype = icmp eq ptr %dtype, %want.dtype
  %same.rank = icmp eq i64 %rank, %want.rank
  %same = and i1 %same.dtype, %same.rank
  %good = and i1 %same, %readable
  br i1 %good, label %dim, label %other
dim:
  %d = phi i64 [0, %plain.array], [%d.next, %equal]
  %d.more = icmp slt i64 %d, %rank
  br i1 %d.more, label %compare, label %fits
compare:
  %extent.at = getelementptr i64, ptr %dims, i64 %d
  %want.extent.at = getelementptr i64, ptr %want.dims, i64 %d
  %extent = load i64, ptr %extent.at, align 8
  %want.extent = load i64, ptr %want.extent.at, align 8
  %same.extent = icmp eq i64 %extent, %want.extent
  br i1 %same.extent, label %equal, label %other
equal:
  %d.next = add i64 %d, 1
  br label %dim
fits:
  %k.next = add i64 %k, 1
  br label %input

slot:                                   ; write the next address
  %j = phi i64 [0, %input], [%j.next, %write]
  %j.more = icmp slt i64 %j, %count
  br i1 %j.more, label %write, label %start
write:
  %this = getelementptr [3 x i64], ptr %slots, i64 %j
  %number.at = getelementptr i64, ptr %this, i64 1
  %inner.at = getelementptr i64, ptr %this, i64 2
  %where = load i64, ptr %this, align 8
  %number = load i64, ptr %number.at, align 8
  %inner = load i64, ptr %inner.at, align 8
  %object.at = getelementptr ptr, ptr %arrays, i64 %number
  %object = load ptr, ptr %object.at, align 8
  %data.at = getelementptr i8, ptr %object, i64 $data$
  %data = load i64, ptr %data.at, align 8
  %address = add i64 %data, %inner
  %place = getelementptr i64, ptr %table, i64 %where
  store i64 %address, ptr %place, align 8
  %j.next = add i64 %j, 1
  br label %slot

start:
  call void @tilewright_run(ptr %frame)
  ret i64 1
other:
  ret i64 0
}
"""


def enter_ir(f: Fields) -> str:
    """LLVM IR of `enter` where objects keep their fields so."""
    text = ENTER.replace("$readable$", str(READABLE))
    for name, offset in asdict(f).items():
        text = text.replace(f"${name}$", str(offset))
    return text


class _Driver:
    """run(frame): the steps of a frame. enter(entry, objects): whether arrays fitted, and the
    program ran; both by address. None where arrays can't be read so (`fields`).

    Threads that come first at once may make several, so the functions keep their code themselves.
    """

    def __init__(self) -> None:
        target = host()
        known = fields()
        text = RUN if known is None else RUN + enter_ir(known)
        names = ["tilewright_run"] if known is None else ["tilewright_run", "tilewright_enter"]
        key = [("kind", "driver"), ("llvm text", text), *target.fingerprint.items()]
        image = Store().get_or_build(key, lambda: build_object(text, target))
        linked = link([image], names)
        pointer = ctypes.c_void_p
        self.run = _function(linked, "tilewright_run", ctypes.CFUNCTYPE(None, pointer))
        self.enter = None
        if known is not None:
            kind = ctypes.CFUNCTYPE(ctypes.c_int64, pointer, pointer)
            self.enter = _function(linked, "tilewright_enter", kind)


def _function(linked: Linked, name: str, kind: Any) -> Any:
    """A function of a ctypes kind, which keeps its code."""
    made = kind(linked.address(name))
    made.code = linked
    return made


@cache
def driver() -> _Driver:
    """The driver, built on first use where it is not stored (a few milliseconds)."""
    return _Driver()
