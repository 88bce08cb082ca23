"""The thread pool that runs a kernel's items: native code, entered once per parallel region.

A region is `fn(table, item)` for item in 0..items. The caller opens it, takes items itself, and
closes it when none are left; workers join while it is open and take items by an atomic counter. The
caller waits only for workers that joined, so one that sleeps, or that the system has put aside,
delays nobody. Workers that find nothing to do spin for a while, then sleep.

The caller takes items from the front, workers from the back. Kernels number their items in the
order in which results lie in memory, so what a processor wrote in one region it mostly finds in its
own caches in the next.

All coordination is in one 64-bit word, so that "is it still open, and count me in" is one
compare-and-swap:

    bit  0..11  workers inside the region
    bit     12  open
    bit     13  quit
    bit 16..63  generation, one more for each region

The pool belongs to its process: after a fork the child has the memory but not the threads, so the
child's pool is reset and starts workers of its own when it is next used.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from ..codegen.cpu.assemble import build_object
from ..codegen.cpu.link import Linked, link
from ..codegen.cpu.target import host
from ..errors import OptionError
from ..store import Store
from .linux import available_processors, has_pthreads, parking_ir

THREADS_VARIABLE: Final = "TILEWRIGHT_THREADS"
MAX_THREADS: Final = 1024

_ACTIVE: Final = (1 << 12) - 1
_OPEN: Final = 1 << 12
_QUIT: Final = 1 << 13
_GENERATION_SHIFT: Final = 16

_SPIN_SECONDS: Final = 200e-6
"""How long an idle worker watches for the next region before it sleeps."""

_log: Final = logging.getLogger("tilewright")


def default_threads() -> int:
    """TILEWRIGHT_THREADS, or as many threads as this process has processors.

    Raises OptionError if the variable is not a whole number from 1 to MAX_THREADS.
    """
    text = os.environ.get(THREADS_VARIABLE, "").strip()
    if not text:
        return min(available_processors(), MAX_THREADS)
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_THREADS):
        raise OptionError(
            f"{THREADS_VARIABLE}={text!r}: expected a whole number from 1 to {MAX_THREADS};"
            " unset it to use all processors of this process"
        )
    return int(text)


class _Pool(ctypes.Structure):
    """The pool's memory. What is written by different threads lies 128 bytes apart."""

    _fields_ = [
        ("state", ctypes.c_uint64),
        ("_state_pad", ctypes.c_uint8 * 120),
        ("next", ctypes.c_int64),  # items taken: bits 0..31 from the front, 32..63 from the back
        ("_next_pad", ctypes.c_uint8 * 120),
        ("fn", ctypes.c_void_p),  # the region: constant while it is open
        ("table", ctypes.c_void_p),
        ("items", ctypes.c_int64),
        ("busy", ctypes.c_uint32),  # one caller at a time
        ("_region_pad", ctypes.c_uint8 * 100),
        ("sleeping", ctypes.c_int32),
        ("spins", ctypes.c_uint32),  # looks before sleeping
        ("workers", ctypes.c_int32),  # threads that were started
        ("_sleeping_pad", ctypes.c_uint8 * 116),
    ]


def pool_ir(architecture: str, *, pthreads: bool = True) -> str:
    """LLVM IR of the pool for "x86_64", "aarch64" or any other architecture."""
    declared, relax = _RELAX.get(architecture, ("", ""))
    text = declared + parking_ir(architecture) + _POOL_IR + (_LIFE_IR if pthreads else "")
    text = text.replace("$RELAX$", relax)
    for field in ("next", "fn", "table", "items", "busy", "sleeping", "spins", "workers"):
        text = text.replace(f"&{field}", f"getelementptr i8, ptr %pool, i64 {_offset(field)}")
    words = {
        "ACTIVE": _ACTIVE,
        "OPEN": _OPEN,
        "NOT_OPEN": ~_OPEN,
        "QUIT": _QUIT,
        "SHIFT": _GENERATION_SHIFT,
        "OPEN_NEXT": (1 << _GENERATION_SHIFT) + _OPEN,
        "HANDLES": ctypes.sizeof(_Pool),
    }
    for word, value in words.items():
        text = text.replace(f"${word}$", str(value))
    return text


def _offset(field: str) -> int:
    return int(getattr(_Pool, field).offset)


# One look's wait while spinning: (declaration, call). On Arm `isb` waits tens of cycles, as x86's
# pause does; `yield` is a no-op on most cores.
_RELAX: Final = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}

_POOL_IR: Final = """
declare i32 @sched_yield()

; Take and run items until none are left, from the front or from the back. The word `next` changes
; by one claim at a time, so that claims are valid as long as they count fewer than the items.
define internal void @take_items(ptr %pool, i1 %front) nounwind noinline {
entry:
  %p.fn = &fn
  %p.table = &table
  %p.items = &items
  %p.next = &next
  %fn = load ptr, ptr %p.fn
  %table = load ptr, ptr %p.table
  %items = load i64, ptr %p.items
  %end = sub i64 %items, 1
  %claim = select i1 %front, i64 1, i64 4294967296
  br label %take
take:
  %taken = atomicrmw add ptr %p.next, i64 %claim monotonic
  %first = and i64 %taken, 4294967295
  %behind = lshr i64 %taken, 32
  %count = add i64 %first, %behind
  %some = icmp slt i64 %count, %items
  br i1 %some, label %work, label %done
work:
  %last = sub i64 %end, %behind
  %item = select i1 %front, i64 %first, i64 %last
  call void %fn(ptr %table, i64 %item)
  br label %take
done:
  ret void
}

; A worker's life. %last is the generation it took part in last.
define internal ptr @pool_worker(ptr %pool) nounwind {
entry:
  %p.spins = &spins
  %p.sleeping = &sleeping
  %spins = load i32, ptr %p.spins
  br label %watch
watch:
  %last = phi i64 [ 0, %entry ], [ %gen, %work ], [ %last, %idle ], [ %last, %join ],
                  [ %last, %rise ]
  %looks = phi i32 [ 0, %entry ], [ 0, %work ], [ %more, %idle ], [ %looks, %join ], [ 0, %rise ]
  %state = load atomic i64, ptr %pool acquire, align 8
  %quit.bit = and i64 %state, $QUIT$
  %quit = icmp ne i64 %quit.bit, 0
  br i1 %quit, label %leave, label %look
look:
  %gen = lshr i64 %state, $SHIFT$
  %fresh = icmp ne i64 %gen, %last
  %open.bit = and i64 %state, $OPEN$
  %open = icmp ne i64 %open.bit, 0
  %go = and i1 %fresh, %open
  br i1 %go, label %join, label %idle

join:                                   ; fails if the region was closed or someone else joined
  %counted = add i64 %state, 1
  %swap = cmpxchg ptr %pool, i64 %state, i64 %counted seq_cst monotonic, align 8
  %joined = extractvalue { i64, i1 } %swap, 1
  br i1 %joined, label %work, label %watch
work:
  call void @take_items(ptr %pool, i1 false)
  %left = atomicrmw sub ptr %pool, i64 1 release, align 8
  br label %watch

idle:
  $RELAX$
  %more = add i32 %looks, 1
  %patient = icmp ult i32 %more, %spins
  br i1 %patient, label %watch, label %doze
doze:                                   ; whoever opens a region after this sees a sleeper
  %before = atomicrmw add ptr %p.sleeping, i32 1 seq_cst
  %now = load atomic i64, ptr %pool seq_cst, align 8
  %still = icmp eq i64 %now, %state
  br i1 %still, label %sleep, label %rise
sleep:
  %seen = trunc i64 %state to i32
  call void @park(ptr %pool, i32 %seen)
  br label %rise
rise:
  %after = atomicrmw sub ptr %p.sleeping, i32 1 seq_cst
  br label %watch
leave:
  ret ptr null
}

; Wake all sleepers, so that they watch by the time the first region opens.
define void @pool_wake(ptr %pool) nounwind {
entry:
  %p.sleeping = &sleeping
  %sleeping = load atomic i32, ptr %p.sleeping seq_cst, align 4
  %some = icmp sgt i32 %sleeping, 0
  br i1 %some, label %wake, label %done
wake:
  call void @unpark_all(ptr %pool)
  br label %done
done:
  ret void
}

; Run fn(table, item) for all items; returns when all are done.
define void @pool_run(ptr %pool, ptr %fn, ptr %table, i64 %items) nounwind {
entry:
  %p.fn = &fn
  %p.table = &table
  %p.items = &items
  %p.next = &next
  %p.busy = &busy
  %p.workers = &workers
  %workers = load atomic i32, ptr %p.workers monotonic, align 4
  %alone = icmp eq i32 %workers, 0
  %short = icmp slt i64 %items, 2
  %serial = or i1 %alone, %short
  br i1 %serial, label %each, label %claim

claim:                                  ; another caller's region, or one around this: do it alone
  %swap = cmpxchg ptr %p.busy, i32 0, i32 1 acquire monotonic, align 4
  %mine = extractvalue { i32, i1 } %swap, 1
  br i1 %mine, label %open, label %each

each:
  %item = phi i64 [ 0, %entry ], [ 0, %claim ], [ %following, %body ]
  %some = icmp slt i64 %item, %items
  br i1 %some, label %body, label %done
body:
  call void %fn(ptr %table, i64 %item)
  %following = add i64 %item, 1
  br label %each

open:
  store ptr %fn, ptr %p.fn
  store ptr %table, ptr %p.table
  store i64 %items, ptr %p.items
  store atomic i64 0, ptr %p.next monotonic, align 8
  %opened = atomicrmw add ptr %pool, i64 $OPEN_NEXT$ seq_cst, align 8
  call void @pool_wake(ptr %pool)
  call void @take_items(ptr %pool, i1 true)
  %closed = atomicrmw and ptr %pool, i64 $NOT_OPEN$ seq_cst, align 8
  br label %wait
wait:
  %looks = phi i32 [ 0, %open ], [ %more, %rest ], [ %looks, %yield ]
  %state = load atomic i64, ptr %pool acquire, align 8
  %active = and i64 %state, $ACTIVE$
  %over = icmp eq i64 %active, 0
  br i1 %over, label %release, label %rest
rest:
  $RELAX$
  %more = add i32 %looks, 1
  %patient = icmp ult i32 %more, 2000
  br i1 %patient, label %wait, label %yield
yield:                                  ; a worker may need this very processor to finish its item
  %ignored = call i32 @sched_yield()
  br label %wait
release:
  store atomic i32 0, ptr %p.busy release, align 4
  br label %done
done:
  ret void
}

; Used to measure how long one look of a spinning worker takes.
define void @pool_relax(i64 %times) nounwind {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  $RELAX$
  %i.next = add i64 %i, 1
  %again = icmp slt i64 %i.next, %times
  br i1 %again, label %next, label %done
done:
  ret void
}
"""

_LIFE_IR: Final = """
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(ptr, ptr)

; Start up to %count workers; returns 0 or the system's error number for the first that failed.
define i32 @pool_start(ptr %pool, i32 %count) nounwind {
entry:
  %p.workers = &workers
  %handles = getelementptr i8, ptr %pool, i64 $HANDLES$
  br label %next
next:
  %i = phi i32 [ 0, %entry ], [ %i.next, %started ]
  %some = icmp slt i32 %i, %count
  br i1 %some, label %start, label %done
start:
  %handle = getelementptr ptr, ptr %handles, i32 %i
  %error = call i32 @pthread_create(ptr %handle, ptr null, ptr @pool_worker, ptr %pool)
  %ok = icmp eq i32 %error, 0
  br i1 %ok, label %started, label %done
started:
  %i.next = add i32 %i, 1
  store atomic i32 %i.next, ptr %p.workers monotonic, align 4
  br label %next
done:
  %result = phi i32 [ 0, %next ], [ %error, %start ]
  ret i32 %result
}

; Send the workers home and wait until they have left this code.
define void @pool_stop(ptr %pool) nounwind {
entry:
  %p.workers = &workers
  %workers = load atomic i32, ptr %p.workers monotonic, align 4
  %handles = getelementptr i8, ptr %pool, i64 $HANDLES$
  %told = atomicrmw or ptr %pool, i64 $QUIT$ seq_cst, align 8
  call void @unpark_all(ptr %pool)
  br label %next
next:
  %i = phi i32 [ 0, %entry ], [ %i.next, %join ]
  %some = icmp slt i32 %i, %workers
  br i1 %some, label %join, label %done
join:
  %p.handle = getelementptr ptr, ptr %handles, i32 %i
  %handle = load ptr, ptr %p.handle
  %ignored = call i32 @pthread_join(ptr %handle, ptr null)
  %i.next = add i32 %i, 1
  br label %next
done:
  store atomic i32 0, ptr %p.workers monotonic, align 4
  ret void
}
"""


class _Native:
    """The pool's code, mapped into this process for as long as anything refers to it."""

    def __init__(self) -> None:
        target = host()
        self.threads = has_pthreads()
        names = ["pool_run", "pool_wake", "pool_relax"]
        if self.threads:
            names += ["pool_start", "pool_stop"]
        text = pool_ir(target.architecture, pthreads=self.threads)
        key = [("kind", "thread pool"), ("llvm text", text), *target.fingerprint.items()]
        image = Store().get_or_build(key, lambda: build_object(text, target))
        self.code: Linked = link([image], names)
        pointer, word = ctypes.c_void_p, ctypes.c_int64
        call = ctypes.CFUNCTYPE
        self.run = call(None, pointer, pointer, pointer, word)(self.code.address("pool_run"))
        self.wake = call(None, pointer)(self.code.address("pool_wake"))
        if self.threads:
            start, stop = self.code.address("pool_start"), self.code.address("pool_stop")
            self.start = call(ctypes.c_int, pointer, ctypes.c_int32)(start)
            self.stop = call(None, pointer)(stop)
        self.spins = _spins(call(None, word)(self.code.address("pool_relax")))


def _spins(relax: Callable[[int], None]) -> int:
    """How many looks fill _SPIN_SECONDS; the instruction costs 20 to 140 cycles, by CPU."""
    looks, seconds = 500, float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        relax(looks)
        seconds = min(seconds, time.perf_counter() - begin)
    return max(100, min(int(looks * _SPIN_SECONDS / max(seconds, 1e-9)), 1_000_000))


@lru_cache(maxsize=1)
def _native() -> _Native:
    return _Native()


class ThreadPool:
    """`threads` threads that run regions: the caller and `threads - 1` workers.

    Workers start at first use. Callers on several threads, and regions inside regions, are safe: a
    region that finds the pool taken is run by its caller alone. `close`, or the interpreter's exit,
    ends the workers; after that the pool still works, with the caller alone.

    `run_address` is native `void pool_run(ptr pool, ptr fn, ptr table, i64 items)`, which calls
    `void fn(ptr table, i64 item)` for item in 0..items. `wake_address` is native
    `void pool_wake(ptr pool)`: a load if nobody sleeps, else a system call.
    """

    def __init__(self, threads: int) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise OptionError(f"threads={threads}: expected 1 to {MAX_THREADS}")
        self.threads: Final = threads
        self._native = _native()
        self.run_address: Final = self._native.code.address("pool_run")
        self.wake_address: Final = self._native.code.address("pool_wake")
        self._memory = ctypes.create_string_buffer(ctypes.sizeof(_Pool) + 8 * threads + 128)
        self._address = -(-ctypes.addressof(self._memory) // 128) * 128
        self._started = False
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _stop, self._native, self._memory, self._address)
        self._reset()
        _pools.add(self)

    @property
    def address(self) -> int:
        """The first argument of the native functions: the same for the pool's life, also in forked
        children."""
        return self._address

    def start(self) -> None:
        """Start workers if there are none. To be called before each inference: that is what starts
        a forked child's own."""
        if not self._started:
            self._start()

    @property
    def workers(self) -> int:
        """Threads that run now besides the callers."""
        return int(self._state.workers)

    def wake(self) -> None:
        """Make sleeping workers watch for work; call once before a series of regions."""
        self.start()
        self._native.wake(self._address)

    def run(self, fn: int, table: int, items: int) -> None:
        """Run native `fn(table, item)` for item in 0..items, and return when all are done."""
        self.start()
        self._native.run(self._address, fn, table, items)

    def close(self) -> None:
        """End the workers and wait for them."""
        self._finalizer()

    @property
    def _state(self) -> _Pool:
        return _Pool.from_address(self._address)

    def _start(self) -> None:
        with self._lock:
            if self._started:
                return
            self._started = True
            wanted = self.threads - 1
            if not (wanted and self._native.threads and self._finalizer.alive):
                return
            # Threads inherit the mask. With it, Ctrl-C interrupts the main thread's system calls,
            # never a worker's, and no Python exception can come between start and bookkeeping.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            try:
                signal.pthread_sigmask(signal.SIG_BLOCK, _MASKED)
                error = self._native.start(self._address, wanted)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if error:
            _log.warning(
                "only %d of %d threads could be started (%s); continuing with those",
                self.workers + 1, self.threads, os.strerror(error),
            )  # fmt: skip

    def _reset(self) -> None:
        """Forget workers: none were started yet, or they stayed behind in the parent process."""
        ctypes.memset(self._address, 0, ctypes.sizeof(_Pool))
        self._state.spins = self._native.spins
        self._lock = threading.Lock()
        self._started = False


# Faults of the code itself must reach the worker: a debugger or faulthandler wants to see them.
_FAULTS: Final = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP")
_MASKED: Final = {s for s in signal.valid_signals() if getattr(s, "name", "") not in _FAULTS}


def _stop(native: _Native, memory: ctypes.Array[ctypes.c_char], address: int) -> None:
    """End a pool's workers; `memory` is here so that it lives until they have left it."""
    if _Pool.from_address(address).workers:
        native.stop(address)


_pools: Final[weakref.WeakSet[ThreadPool]] = weakref.WeakSet()
_shared: Final[dict[int, ThreadPool]] = {}
_shared_lock = threading.Lock()


def thread_pool(threads: int | None = None) -> ThreadPool:
    """The process's pool of `threads` threads (default `default_threads()`), made when first asked.

    Raises OptionError if `threads` or TILEWRIGHT_THREADS makes no sense.
    """
    count = default_threads() if threads is None else threads
    with _shared_lock:
        if count not in _shared:
            _shared[count] = ThreadPool(count)
        return _shared[count]


def _after_fork() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for pool in list(_pools):
        pool._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
