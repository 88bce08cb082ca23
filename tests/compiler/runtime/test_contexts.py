"""Calls at once: each has an arena, and none sees what another one computes."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest

import tilewright as tw
from tilewright.compiler.errors import InputError, MemoryLimitError
from tilewright.compiler.runtime import contexts
from tilewright.compiler.runtime.contexts import Context

N = 64


def chain(threads: int) -> tw.Executable:
    """Five kernels one after another, in two places of an arena that are written again and again.

    Products with a permutation: exact, and no kernel can be fused with the next.
    """
    g = tw.Graph("chain")
    h = g.input("x", (N, N))
    for shift in range(1, 6):
        turn = g.constant(np.roll(np.eye(N, dtype=np.float32), shift, axis=1))
        h = g.matmul(h, turn) + np.float32(shift)
    g.output(h, name="y")
    exe = tw.compile(g, threads=threads)
    assert exe.plan.arena_bytes < 4 * N * N * 4, "places are used again"
    return exe


def want(x: np.ndarray) -> np.ndarray:
    return np.roll(x, 15, axis=1) + 15


def run_threads(work: Callable[[int], None], count: int) -> list[BaseException]:
    """Run work(k) in `count` threads that start together; what they raised."""
    start, raised = threading.Barrier(count), []

    def body(k: int) -> None:
        start.wait()
        try:
            work(k)
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=body, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return raised


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_eight_callers_of_one_program(threads: int) -> None:
    exe = chain(threads)

    def work(k: int) -> None:
        rng = np.random.default_rng(k)
        y = np.empty((N, N), np.float32)
        for call in range(200):
            x = rng.integers(-999, 999, (N, N)).astype(np.float32)
            np.testing.assert_array_equal(exe(x, out=y) if call % 2 else exe(x), want(x))

    assert not run_threads(work, 8)


def test_two_programs_on_one_pool() -> None:
    first, second = chain(2), chain(2)
    assert first._program.pool is second._program.pool

    def work(k: int) -> None:
        exe = (first, second)[k % 2]
        for call in range(100):
            x = np.full((N, N), 100 * k + call, np.float32)
            np.testing.assert_array_equal(exe(x), want(x))

    assert not run_threads(work, 4)


def test_calls_that_fail_leave_the_others_alone() -> None:
    exe = chain(2)

    def work(k: int) -> None:
        for call in range(100):
            x = np.full((N, N), 100 * k + call, np.float32)
            if k % 2:
                with pytest.raises(InputError):
                    exe(x[1:])
                with pytest.raises(InputError):
                    exe(x, out=x)
            else:
                np.testing.assert_array_equal(exe(x), want(x))

    assert not run_threads(work, 4)
    assert len(exe._program.contexts.idle) <= 2


def test_a_call_inside_a_call_has_a_context_of_its_own() -> None:
    """As a signal handler or a finalizer may make one, at any moment."""
    exe = chain(1)
    x = np.ones((N, N), np.float32)
    inner: list[np.ndarray] = []
    enter = exe._program._enter

    def interrupted(entry: int, objects: int) -> int:
        exe._program._enter = enter
        inner.append(exe(2 * x))
        return enter(entry, objects)

    exe._program._enter = interrupted
    np.testing.assert_array_equal(exe(x), want(x))
    np.testing.assert_array_equal(inner[0], want(2 * x))
    assert len(exe._program.contexts.idle) == 2


def test_contexts_wait_for_the_next_call_but_not_without_end() -> None:
    held = chain(1)._program.contexts
    held.most_idle = 2
    taken = [held.take() for _ in range(4)]
    assert len({id(c.arena) for c in taken}) == 4
    last = weakref.ref(taken[3].arena)
    for c in taken:
        held.give(c)
    assert held.idle == taken[:2]
    assert held.take() is taken[1], "the one used last"
    del taken, c
    gc.collect()
    assert last() is None, "the others are freed"


def test_no_memory_for_another_arena_fails_that_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    exe = chain(1)
    x = np.ones((N, N), np.float32)
    exe(x)
    context = exe._program.contexts.take()

    def none(*_: object) -> None:
        raise MemoryLimitError("no memory for the arena or a constant")

    monkeypatch.setattr(contexts, "allocated", none)
    with pytest.raises(MemoryLimitError):
        exe(x)
    exe._program.contexts.give(context)
    np.testing.assert_array_equal(exe(x), want(x))


def test_a_context_dies_with_its_program() -> None:
    exe = chain(1)
    exe(np.ones((N, N), np.float32))
    arena = weakref.ref(exe._program.contexts.idle[0].arena)
    assert isinstance(exe._program.contexts.idle[0], Context)
    del exe
    gc.collect()
    assert arena() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_child_forked_between_calls_of_others_calls_too(threads: int) -> None:
    """The contexts of calls that the fork cut off belong to nobody in the child."""
    exe = chain(threads)
    x = np.ones((N, N), np.float32)
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            exe(x)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for c in callers:
        c.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                code = 2
                try:
                    code = (
                        0 if all(np.array_equal(exe(k * x), want(k * x)) for k in range(5)) else 1
                    )
                finally:
                    os._exit(code)
            deadline = time.monotonic() + 60
            while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.005)
            assert os.waitstatus_to_exitcode(found[1]) == 0
    finally:
        over.set()
        for c in callers:
            c.join()
