"""What is taken from the operating system, each with a portable way to do without.

Linux sleeps and wakes by futex and limits processors by affinity masks and cgroups. Elsewhere idle
workers poll a few thousand times a second, and where threads cannot be had the pool is serial.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_STARTED: Final = 19  # of the fields of /proc/self/stat behind the name
_FUTEX_NUMBER: Final = {"x86_64": 202, "aarch64": 98}

_FUTEX: Final = """
declare i64 @syscall(i64, ...)

; Sleep until woken, unless the low half of the word has changed from %seen already.
define internal void @park(ptr %word, i32 %seen) nounwind {{
  call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i32 {wait}, i32 %seen, ptr null)
  ret void
}}

define internal void @unpark_all(ptr %word) nounwind {{
  call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i32 {wake}, i32 2147483647)
  ret void
}}
"""

_POLL: Final = """
declare i32 @usleep(i32)

define internal void @park(ptr %word, i32 %seen) nounwind {
  call i32 @usleep(i32 200)
  ret void
}

define internal void @unpark_all(ptr %word) nounwind {
  ret void
}
"""


def parking_ir(architecture: str, *, futex: bool | None = None) -> str:
    """LLVM definitions of park(word, seen) and unpark_all(word), by futex where there is one."""
    number = _FUTEX_NUMBER.get(architecture)
    if futex is None:
        futex = sys.platform.startswith("linux")
    if number is None or not futex:
        return _POLL
    private = 128  # FUTEX_PRIVATE_FLAG: the word is shared within one process only
    return _FUTEX.format(number=number, wait=0 | private, wake=1 | private)


@cache
def has_pthreads() -> bool:
    """Whether this process can make native threads through pthread_create."""
    try:
        return hasattr(ctypes.CDLL(None), "pthread_create")
    except (OSError, TypeError):
        return False


def available_processors() -> int:
    """Processors this process may use: its affinity mask, limited by its cgroups' quota; >= 1."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        with suppress(OSError):
            count = len(os.sched_getaffinity(0))
    quota = cgroup_quota()
    if quota is not None:
        # Rounded down: a thread too many is paid for by all of them being stopped at once.
        count = min(count, int(quota))
    return max(count, 1)


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """The tightest processor quota of this process's cgroups and their parents; None if unlimited.

    Reads both versions' files under `root`: `cpu.max`, and `cpu.cfs_quota_us` over
    `cpu.cfs_period_us`. Unreadable or odd files count as no limit.
    """
    quotas: list[float] = []
    for line in _lines(root / "proc/self/cgroup"):
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        _, controllers, path = parts
        if not controllers:
            mounts = root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"
        elif "cpu" in controllers.split(","):
            mounts = root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu"
        else:
            continue
        for mount in mounts:
            # The path may be the one outside of a container, where the mount point stands for it.
            group = mount / path.strip("/")
            for folder in (group, *group.parents):
                quotas += _quota(folder)
                if folder == mount:
                    break
    return min(quotas, default=None)


def _quota(group: Path) -> list[float]:
    """The processors one cgroup folder allows, in a list that is empty when it sets no limit."""
    limit = " ".join(_lines(group / "cpu.max")).split()
    if not limit:
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limit = " ".join(line for name in files for line in _lines(group / name)).split()
    try:
        quota, period = float(limit[0]), float(limit[1])
    except (IndexError, ValueError):  # "max", or no such file
        return []
    return [quota / period] if quota > 0 and period > 0 else []


def end_with_parent(number: int) -> None:
    """Have this process ended by a signal when the thread that started it ends, on Linux. Called by
    its main thread.

    What reads a pipe learns of that everywhere, but not in the middle of other work. `nohup` has
    processes ignore SIGHUP, and those that they start, too.
    """
    if sys.platform.startswith("linux"):
        signal.signal(number, signal.SIG_DFL)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Processor seconds that anybody has spent on this machine since it started, and those that a
    hypervisor gave to others; None where the system does not say. Counted in ticks of 10 ms."""
    words = next(iter(_lines(stat)), "").split()
    try:
        user, nice, system, _idle, _waiting, irq, soft_irq, stolen = map(int, words[1:9])
    except ValueError:
        return None
    return (user + nice + system + irq + soft_irq + stolen) / os.sysconf("SC_CLK_TCK")


@cache
def first_cache_ways(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Lines that one set of the first data cache holds: 8, as most have, where nothing says so."""
    for entry in sorted(folder.glob("index*")):
        files = ("level", "type", "ways_of_associativity")
        level, kind, ways = (" ".join(_lines(entry / f)).strip() for f in files)
        if level == "1" and kind in ("Data", "Unified") and ways.isdecimal() and int(ways):
            return int(ways)
    return 8


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def process_age() -> float:
    """Seconds since this process began, of which the start of Python is a part; 0.0 where that is
    not told."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks, each = int(fields[_STARTED]), os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / each)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
