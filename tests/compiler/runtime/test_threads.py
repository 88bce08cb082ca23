"""The pool runs every item once, waits for nobody who is late, and survives forks and exits."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tilewright.compiler.codegen.cpu.assemble import assembly, build_object
from tilewright.compiler.codegen.cpu.link import Linked, link
from tilewright.compiler.codegen.cpu.target import NAMED, host
from tilewright.compiler.errors import OptionError
from tilewright.compiler.runtime import linux, threads
from tilewright.compiler.runtime.threads import ThreadPool, default_threads, pool_ir, thread_pool

# count: table[item] += 1.  slow: the same after some microseconds of arithmetic.
# nap: the same after item x 10 ms of sleep.
# nested: runs count over 7 items of the row that is its own, from inside a region.
KERNELS = """
declare void @pool_run(ptr, ptr, ptr, i64)
declare i32 @usleep(i32)

define void @nap(ptr %table, i64 %item) nounwind {
  %items = trunc i64 %item to i32
  %microseconds = mul i32 %items, 10000
  %ignored = call i32 @usleep(i32 %microseconds)
  call void @count(ptr %table, i64 %item)
  ret void
}

define void @count(ptr %table, i64 %item) nounwind {
  %p = getelementptr i32, ptr %table, i64 %item
  %old = atomicrmw add ptr %p, i32 1 monotonic
  ret void
}

define void @slow(ptr %table, i64 %item) nounwind {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %j, %next ]
  %v = phi double [ 1.0, %entry ], [ %w, %next ]
  %w = fmul double %v, 0x3FF0000010000000
  %j = add i64 %i, 1
  %again = icmp slt i64 %j, 20000
  br i1 %again, label %next, label %done
done:
  %bit = fcmp ogt double %w, 0.0
  %one = zext i1 %bit to i32
  %p = getelementptr i32, ptr %table, i64 %item
  %old = atomicrmw add ptr %p, i32 %one monotonic
  ret void
}

define void @nested(ptr %frame, i64 %item) nounwind {
  %pool = load ptr, ptr %frame
  %p.table = getelementptr ptr, ptr %frame, i64 1
  %table = load ptr, ptr %p.table
  %start = mul i64 %item, 7
  %row = getelementptr i32, ptr %table, i64 %start
  call void @pool_run(ptr %pool, ptr @count, ptr %row, i64 7)
  ret void
}
"""


@pytest.fixture(scope="module")
def kernels() -> Linked:
    run = thread_pool(1).run_address
    names = ["count", "slow", "nap", "nested"]
    return link([build_object(KERNELS, host())], names, {"pool_run": run})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.001)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_every_item_runs_exactly_once(kernels: Linked, size: int) -> None:
    pool = ThreadPool(size)
    try:
        expected = np.zeros(5000, np.int32)
        table = np.zeros(5000, np.int32)
        for items in [0, 1, 2, 3, 17, 5000] * 20:
            pool.run(kernels.address("count"), table.ctypes.data, items)
            expected[:items] += 1
            assert np.array_equal(table, expected), items
        assert pool.workers == size - 1
    finally:
        pool.close()


def test_the_caller_takes_items_from_the_front_and_workers_from_the_back() -> None:
    """Every item writes who ran it, after waiting until both threads have begun."""
    who = build_object(
        """
        declare i64 @pthread_self()
        declare i32 @sched_yield()
        define void @who(ptr %table, i64 %item) nounwind {
        entry:
          %old = atomicrmw add ptr %table, i64 1 seq_cst
          br label %wait
        wait:
          %ignored = call i32 @sched_yield()
          %begun = load atomic i64, ptr %table seq_cst, align 8
          %both = icmp sge i64 %begun, 2
          br i1 %both, label %go, label %wait
        go:
          %me = call i64 @pthread_self()
          %slot = add i64 %item, 1
          %p = getelementptr i64, ptr %table, i64 %slot
          store i64 %me, ptr %p
          ret void
        }
        """,
        host(),
    )
    linked = link([who], ["who"])
    pool = ThreadPool(2)
    try:
        for _ in range(20):
            table = np.zeros(1 + 50, np.int64)
            pool.run(linked.address("who"), table.ctypes.data, 50)
            mine = table[1:] == threading.get_ident()
            front = int(mine.sum())
            assert 0 < front < 50
            assert mine[:front].all() and not mine[front:].any()
    finally:
        pool.close()


def test_two_threads_share_the_work(kernels: Linked) -> None:
    """Each item is made to wait for the other, which only ends if both run at once."""
    meeting = build_object(
        """
        define void @meet(ptr %table, i64 %item) nounwind {
        entry:
          %old = atomicrmw add ptr %table, i32 1 seq_cst
          br label %wait
        wait:
          %here = load atomic i32, ptr %table seq_cst, align 4
          %both = icmp eq i32 %here, 2
          br i1 %both, label %done, label %wait
        done:
          ret void
        }
        """,
        host(),
    )
    code = link([meeting], ["meet"])
    table = np.zeros(1, np.int32)
    pool = thread_pool(2)
    pool.wake()
    wait_until(lambda: pool._state.sleeping == 1)  # the region itself must wake the worker
    pool.run(code.address("meet"), table.ctypes.data, 2)
    assert table[0] == 2


def test_a_region_ends_after_the_last_item_of_a_worker(kernels: Linked) -> None:
    pool = thread_pool(3)
    pool.wake()
    for _ in range(3):
        table = np.zeros(3, np.int32)
        pool.run(kernels.address("nap"), table.ctypes.data, 3)
        assert (table == 1).all()


def test_a_worker_that_never_comes_is_not_waited_for(kernels: Linked) -> None:
    pool = ThreadPool(4)
    pool._started = True
    pool._state.workers = 3  # claimed, but no such threads exist
    table = np.zeros(100, np.int32)
    pool.run(kernels.address("count"), table.ctypes.data, 100)
    assert (table == 1).all()
    pool._state.workers = 0


def test_sleeping_workers_are_woken_by_a_region_and_by_wake(kernels: Linked) -> None:
    pool = ThreadPool(3)
    try:
        table = np.zeros(64, np.int32)
        for _ in range(3):
            pool.wake()
            wait_until(lambda: pool._state.sleeping == 2)
            pool.run(kernels.address("slow"), table.ctypes.data, 64)
        assert (table == 3).all()
    finally:
        pool.close()


def test_regions_inside_regions_run_to_the_end(kernels: Linked) -> None:
    pool = thread_pool(2)
    table = np.zeros(7 * 40, np.int32)
    frame = (ctypes.c_void_p * 2)(pool.address, table.ctypes.data)
    for _ in range(50):
        pool.run(kernels.address("nested"), ctypes.addressof(frame), 40)
    assert (table == 50).all()


def test_callers_on_several_threads_do_not_mix_their_regions(kernels: Linked) -> None:
    pool = thread_pool(2)
    tables = [np.zeros(50, np.int32) for _ in range(4)]

    def work(table: np.ndarray) -> None:
        for _ in range(300):
            pool.run(kernels.address("count"), table.ctypes.data, 50)

    callers = [threading.Thread(target=work, args=(table,)) for table in tables]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    for table in tables:
        assert (table == 300).all()


def own_threads() -> set[str]:
    """The system's numbers of this process's threads; none where it does not tell."""
    return set(os.listdir("/proc/self/task")) if sys.platform == "linux" else set()


def test_a_closed_pool_works_alone(kernels: Linked) -> None:
    others = own_threads()
    pool = ThreadPool(3)
    table = np.zeros(10, np.int32)
    pool.run(kernels.address("count"), table.ctypes.data, 10)
    assert pool.workers == 2
    workers = own_threads() - others
    assert len(workers) == 2 or sys.platform != "linux"
    pool.close()
    # one that was joined is listed until the system has tidied up; others come and go meanwhile
    wait_until(lambda: not workers & own_threads())
    pool.run(kernels.address("count"), table.ctypes.data, 10)
    assert (table == 2).all() and pool.workers == 0
    pool.close()


def test_fewer_threads_than_asked_for_is_a_warning(
    kernels: Linked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ThreadPool(3)
    monkeypatch.setattr(pool._native, "start", lambda address, count: 11)
    table = np.zeros(10, np.int32)
    pool.run(kernels.address("count"), table.ctypes.data, 10)
    assert (table == 1).all()
    assert "only 1 of 3 threads" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_leave_signals_to_the_main_thread() -> None:
    pool = ThreadPool(2)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = set(os.listdir("/proc/self/task"))
    try:
        pool.wake()
        (task,) = set(os.listdir("/proc/self/task")) - before
        wait_until(lambda: pool._state.sleeping == 1)  # past the C library's own set-up
        status = Path(f"/proc/self/task/{task}/status").read_text()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert blocked >> (signal.SIGINT - 1) & 1
        assert not blocked >> (signal.SIGSEGV - 1) & 1
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    finally:
        pool.close()


def test_pools_are_shared_by_count() -> None:
    assert thread_pool(2) is thread_pool(2)
    assert thread_pool(2) is not thread_pool(3)
    assert thread_pool().threads == default_threads()
    for wrong in (0, -1, 5000):
        with pytest.raises(OptionError, match=f"threads={wrong}"):
            thread_pool(wrong)


# Scripts run in processes of their own; `kernel`, `table` and `pool` are ready when they start.
PREAMBLE = """
import ctypes, os, signal, sys, threading, time
from tilewright.compiler.codegen.cpu.assemble import build_object
from tilewright.compiler.codegen.cpu.link import link
from tilewright.compiler.codegen.cpu.target import host
from tilewright.compiler.runtime.threads import thread_pool
code = link([build_object('''
    define void @count(ptr %table, i64 %item) nounwind {
      %p = getelementptr i32, ptr %table, i64 %item
      %old = atomicrmw add ptr %p, i32 1 monotonic
      ret void
    }
    ''', host())], ["count"])
kernel = code.address("count")
data = (ctypes.c_int32 * 100)()
table = ctypes.addressof(data)
pool = thread_pool(3)
pool.run(kernel, table, 100)
assert list(data) == [1] * 100 and pool.workers == 2
"""


def child(script: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", PREAMBLE + textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_workers_of_its_own() -> None:
    script = """
        address = pool.address
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                assert pool.workers == 0
                for _ in range(100):
                    pool.run(kernel, table, 100)
                assert list(data) == [101] * 100 and pool.workers == 2, (list(data), pool.workers)
                assert pool.address == address and thread_pool(3) is pool
                if os.fork() == 0:           # and so does the child's child
                    pool.run(kernel, table, 100)
                    sys.exit(0 if pool.workers == 2 else 1)
                sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
            children.append(pid)
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pool.run(kernel, table, 100)
        assert list(data) == [2] * 100 and pool.workers == 2
        print("fine")
    """
    code, out, err = finish(child(script))
    assert (code, out) == (0, "fine\n"), err


@pytest.mark.parametrize(
    "script",
    [
        "print('fine')",
        "sys.exit(0)",
        "pool.close(); pool.run(kernel, table, 100)",
        # A daemon thread is inside regions while the interpreter goes down.
        """
        def forever():
            while True:
                pool.run(kernel, table, 100)
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.05)
        """,
        "del pool, code; import gc; gc.collect()",
    ],
)
def test_the_interpreter_exits_cleanly(script: str) -> None:
    code, _, err = finish(child(script))
    assert code == 0, err
    assert not err


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_interrupts_a_loop_of_regions() -> None:
    process = child(
        """
        print("ready", flush=True)
        try:
            while True:
                pool.run(kernel, table, 100)
        except KeyboardInterrupt:
            before = data[0]
            pool.run(kernel, table, 100)
            assert len(set(data)) == 1 and data[0] == before + 1
            print("interrupted", flush=True)
            raise
        """
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert out == "interrupted\n", err
    assert code == -signal.SIGINT


@pytest.mark.parametrize("name", sorted(NAMED))
def test_the_pool_compiles_for_every_target(name: str) -> None:
    target = NAMED[name]
    listing = assembly(pool_ir(target.architecture), target)
    assert {"x86_64": "pause", "aarch64": "isb"}[target.architecture] in listing
    assert "syscall" in listing


def test_without_futex_or_pthreads_the_pool_still_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "usleep" in linux.parking_ir("x86_64", futex=False)
    assert "usleep" in linux.parking_ir("riscv64", futex=True)
    text = pool_ir("x86_64", pthreads=False)
    assert "pthread" not in text and "pool_run" in text
    build_object(text, host())


def test_polling_workers_run_the_items_too(
    kernels: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = linux.parking_ir
    monkeypatch.setattr(threads, "parking_ir", lambda name: plain(name, futex=False))
    polling = threads._Native()
    monkeypatch.setattr(threads, "_native", lambda: polling)
    pool = ThreadPool(3)
    try:
        table = np.zeros(200, np.int32)
        for _ in range(10):
            pool.run(kernels.address("slow"), table.ctypes.data, 200)
            time.sleep(0.002)
        assert (table == 10).all() and pool.workers == 2
    finally:
        pool.close()


def test_a_pool_without_threads_is_serial(kernels: Linked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "has_pthreads", lambda: False)
    serial = threads._Native()
    monkeypatch.setattr(threads, "_native", lambda: serial)
    pool = ThreadPool(4)
    table = np.zeros(200, np.int32)
    pool.run(kernels.address("count"), table.ctypes.data, 200)
    assert (table == 1).all() and pool.workers == 0
    pool.close()


def test_default_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_THREADS", "7")
    assert default_threads() == 7
    for wrong in ("0", "-2", "two", "1.5", "99999", "٣"):
        monkeypatch.setenv("TILEWRIGHT_THREADS", wrong)
        with pytest.raises(OptionError, match="TILEWRIGHT_THREADS="):
            default_threads()
    monkeypatch.setattr(threads, "available_processors", lambda: 5)
    monkeypatch.setenv("TILEWRIGHT_THREADS", "")
    assert default_threads() == 5
    monkeypatch.delenv("TILEWRIGHT_THREADS")
    assert default_threads() == 5


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "250000 100000\n"}, 2.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            },
            1.5,
        ),
        # A container sees the outer path, but the mount point is its own group.
        ({"proc/self/cgroup": "0::/outer/x\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n3:cpuset:/\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "nonsense\n0::/a\n", "sys/fs/cgroup/a/cpu.max": "x y\n"}, None),
    ],
)
def test_cgroup_quotas(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    write(tmp_path, files)
    assert linux.cgroup_quota(tmp_path) == quota


def test_processors_are_affinity_limited_by_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 6)
    for quota, expected in ((None, 6), (2.9, 2), (0.5, 1), (64.0, 6)):
        monkeypatch.setattr(linux, "cgroup_quota", lambda quota=quota: quota)
        assert linux.available_processors() == expected


def test_ways_of_the_first_cache(tmp_path: Path) -> None:
    for k, (level, kind, ways) in enumerate((("1", "Instruction", "4"), ("1", "Data", "12"),
                                             ("2", "Unified", "16"))):  # fmt: skip
        entry = tmp_path / f"index{k}"
        entry.mkdir()
        (entry / "level").write_text(level + "\n")
        (entry / "type").write_text(kind + "\n")
        (entry / "ways_of_associativity").write_text(ways + "\n")
    assert linux.first_cache_ways(tmp_path) == 12
    (tmp_path / "index1/ways_of_associativity").write_text("0\n")
    assert linux.first_cache_ways.__wrapped__(tmp_path) == 8, "nothing to go by"
